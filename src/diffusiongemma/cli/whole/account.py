"""What a step must read and multiply, part by part, and the least time that this takes.

A part's floor is the larger of its bytes over the read bandwidth and its operations over the rate
of matrix products, both measured in the same run; the floor of a step is their sum. Bytes are those
of weights and of the context, each read once; the embedding table is read twice, for logits and for
the expected embedding. Everything else a step would do for free.
"""

from dataclasses import dataclass

from diffusiongemma.model import masks
from diffusiongemma.model.config import ModelConfig

PARTS = ("experts", "dense and projections", "attention", "head", "self-conditioning")


@dataclass(frozen=True, slots=True)
class Work:
    """Bytes read, and floating point operations."""

    bytes: float
    flops: float

    def seconds(self, bandwidth: float, rate: float) -> float:
        """The floor, at bytes and operations a second."""
        return max(self.bytes / bandwidth, self.flops / rate)


def step(
    config: ModelConfig, context: int, rows: int, distinct: float, wide: int = 2, expert: float = 2
) -> dict[str, Work]:
    """One denoising step.

    Args:
        config: the architecture.
        context: tokens before the canvas.
        rows: canvases in the batch.
        distinct: experts that a layer hits.
        wide: bytes of a weight outside the experts.
        expert: bytes of an expert's weight.
    """
    width, tokens = config.hidden_size, config.canvas_length * rows
    one = 3 * width * config.moe_intermediate_size
    layers, table = len(config.layers), config.vocab_size * width
    dense = keys_bytes = seen_flops = 0
    for layer in config.layers:
        query = config.num_attention_heads * layer.head_dim
        keys = layer.num_key_value_heads * layer.head_dim
        dense += 2 * width * query + (2 if layer.sliding else 1) * width * keys
        dense += 3 * width * config.intermediate_size + width * config.num_experts
        seen = masks.canvas_sees(context, config.sliding_window if layer.sliding else None)
        length = seen.stop - seen.start + config.canvas_length
        keys_bytes += 2 * 2 * keys * length * rows
        seen_flops += 4 * query * length * tokens
    routes, condition = config.top_k_experts * tokens, 3 * width * config.intermediate_size
    return {
        "experts": Work(layers * distinct * one * expert, 2 * layers * one * routes),
        "dense and projections": Work(dense * wide, 2 * dense * tokens),
        "attention": Work(keys_bytes, seen_flops),
        "head": Work(table * 2, 2 * table * tokens),
        "self-conditioning": Work(table * 2 + condition * 2, 2 * (table + condition) * tokens),
    }
