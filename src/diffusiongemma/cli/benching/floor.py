"""The least that a step could take: its multiplications over this machine's matrix-product rate.

Counted are the products of a step, from the configuration: projections, attention, both branches of
feed-forward, router, self-conditioning, the head and the expected embedding. Nothing else is: a
step at its floor would norm, softmax and sample for free.
"""

import time

import torch

from diffusiongemma.model import masks
from diffusiongemma.model.config import ModelConfig


def step_flops(config: ModelConfig, context: int, rows: int) -> int:
    """Floating point operations of one denoising step, two for a multiplication and its sum.

    Args:
        config: the architecture.
        context: tokens before the canvas.
        rows: canvases in the batch.
    """
    width, tokens = config.hidden_size, config.canvas_length
    count = 3 * width * config.intermediate_size + 2 * config.vocab_size * width
    routed = 3 * width * config.moe_intermediate_size * config.top_k_experts
    for layer in config.layers:
        query = config.num_attention_heads * layer.head_dim
        keys = layer.num_key_value_heads * layer.head_dim
        size = config.sliding_window if layer.sliding else None
        seen = masks.canvas_sees(context, size)
        count += 2 * width * query + (2 if layer.sliding else 1) * width * keys
        count += 2 * query * (seen.stop - seen.start + tokens)
        count += 3 * width * config.intermediate_size + width * config.num_experts + routed
    return 2 * count * tokens * rows


def gemm_rate(dtype: torch.dtype, seconds: float = 0.5) -> float:
    """The best rate that this machine multiplies matrices at, in operations a second.

    The best of many runs of two shapes, with as many threads as torch has now.
    """
    best = 0.0
    for rows, inputs, outputs in ((256, 512, 2048), (1024, 1024, 1024)):
        x = torch.randn(rows, inputs).to(dtype)
        weight = torch.randn(outputs, inputs).to(dtype)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            best = max(best, 2 * rows * inputs * outputs / (time.perf_counter() - start))
    return best
