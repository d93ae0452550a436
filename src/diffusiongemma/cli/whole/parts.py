"""Where a step's time goes: each part by itself, over all layers' own weights, then the whole.

What the parts do not explain are norms, rotations, additions and the gaps between kernels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusiongemma.cli.whole.clock import Clock
from diffusiongemma.cli.whole.network import Watch
from diffusiongemma.diffusion.config import SamplerConfig
from diffusiongemma.diffusion.loop import Recipe
from diffusiongemma.diffusion.step import refine
from diffusiongemma.engine.graphs import Steps
from diffusiongemma.engine.runner import read
from diffusiongemma.kernels.readout import softcapped
from diffusiongemma.model import slots as slotted
from diffusiongemma.model.block import Block
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.model import DiffusionGemma


def recipe(config: ModelConfig, steps: int, tokens: int) -> Recipe:
    """A fixed number of steps: no canvas stops early, no answer ends."""
    sampler = SamplerConfig(
        max_denoising_steps=steps, confidence_threshold=0.0, max_new_tokens=tokens
    )
    return Recipe(
        config=sampler,
        seed=0,
        vocabulary=config.vocab_size,
        canvas_length=config.canvas_length,
        longest=config.max_position_embeddings,
    )


@torch.no_grad()
def opened(model: DiffusionGemma, rows: int, context: int, room: int, steps: int) -> Steps:
    """Steps over random prompts that are read, ready to go."""
    config = model.config
    dice = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(0, config.vocab_size, (rows, context), generator=dice)
    held = model.context(rows, context + room)
    for row in range(rows):  # one by one: the reading of a prompt needs memory of its own
        read(model, held.pick([row]), ids_BT[row].tolist())
    one = recipe(config, steps, room)
    ready = Steps(model, held, None, config.canvas_length)
    ready.begin([one] * rows)
    return ready


@torch.no_grad()
def measured(model: DiffusionGemma, steps: Steps, clock: Clock) -> dict[str, Any]:
    """Seconds of each part and of the whole step, and experts hit."""
    steps.step()
    with Watch(model) as watch:
        model.denoise(steps.drafts.canvas_BL, None, steps.slots.context)
    found: dict[str, Any] = {"experts_hit": watch.distinct()}
    seconds = {name: clock.seconds(work) for name, work in _works(model, steps, watch).items()}
    whole = clock.seconds(lambda: _again(steps))
    parts = {
        "experts": seconds["experts"],
        "dense and projections": seconds["projections"] + seconds["router"],
        "attention": seconds["attention"],
        "head": seconds["head"],
        "statistics": max(0.0, seconds["readout"] - seconds["head"] - seconds["soft"]),
        "self-conditioning": seconds["soft"] + seconds["condition"],
        "acceptance": seconds["acceptance"],
    }
    parts["norms, rotations, gaps"] = max(0.0, whole - sum(parts.values()))
    found["part_seconds"], found["step_seconds"] = parts, whole
    steps.drafts.step_B.zero_()
    turns = min(8, int(steps.drafts.most_B[0]))
    found["step_and_look_seconds"] = (
        clock.once(lambda: [steps.step() for _ in range(turns)]) / turns
    )
    return found


def _again(steps: Steps) -> None:
    """The first step, however often it was made: temperatures end with a canvas's last step."""
    steps.drafts.step_B.zero_()
    steps._refine()


def _works(model: DiffusionGemma, steps: Steps, watch: Watch) -> dict[str, Callable[[], Any]]:
    config, device, ops = model.config, model.device, model.ops
    drafts = steps.drafts
    tokens = drafts.canvas_BL.numel()
    dice = torch.Generator(device=device).manual_seed(2)
    x_SD = torch.randn(tokens, config.hidden_size, generator=dice, device=device).to(model.dtype)
    hidden_BLD = x_SD.view(*drafts.canvas_BL.shape, -1)
    heat_B = torch.full((len(hidden_BLD),), 0.6, device=device)
    uniform_BL = drafts.draws()[0]
    readout = model.readout(hidden_BLD, heat_B, uniform_BL)
    table_VD, cap = model.embedding.weight, config.final_logit_softcapping
    soft = torch.softmax(softcapped(x_SD, table_VD, cap), -1).to(model.dtype)
    routes = [(layer[-1], _shares(layer[-1])) for layer in watch.chosen]
    return {
        "experts": lambda: _experts(model, x_SD, routes),
        "projections": lambda: _projections(model, x_SD),
        "router": lambda: [block.router(x_SD, ops) for block in _blocks(model)],
        "attention": lambda: _attention(model, steps, x_SD),
        "head": lambda: torch.nn.functional.linear(x_SD, table_VD),
        "soft": lambda: soft @ table_VD,
        "readout": lambda: model.readout(hidden_BLD, heat_B, uniform_BL),
        "condition": lambda: model.self_conditioning(x_SD, x_SD, ops),
        "acceptance": lambda: refine(drafts, readout, drafts.draws()[1], ops),
    }


def _blocks(model: DiffusionGemma) -> list[Block]:
    return [block for block in model.blocks if isinstance(block, Block)]


def _shares(expert_SG: Tensor) -> Tensor:
    return torch.full(expert_SG.shape, 1 / expert_SG.shape[1], device=expert_SG.device)


def _experts(model: DiffusionGemma, x_SD: Tensor, routes: Sequence[tuple[Tensor, Tensor]]) -> None:
    for block, route in zip(_blocks(model), routes, strict=True):
        block.experts(x_SD, model.ops, *route)


def _projections(model: DiffusionGemma, x_SD: Tensor) -> None:
    ops = model.ops
    for block in _blocks(model):
        attention = block.attention
        parts = [
            one(x_SD, ops) for one in (attention.q, attention.k, attention.v) if one is not None
        ]
        attention.o(parts[0], ops)
        block.dense(x_SD, ops)


def _attention(model: DiffusionGemma, steps: Steps, x_SD: Tensor) -> None:
    through = slotted.Refine(steps.slots, model.ops)
    for number, layer in enumerate(model.config.layers):
        heads, keys = model.config.num_attention_heads, layer.num_key_value_heads
        wide = x_SD.repeat(1, -(-heads * layer.head_dim // x_SD.shape[1]))
        q_SNH = wide[:, : heads * layer.head_dim].contiguous().unflatten(-1, (heads, -1))
        k_SKH = wide[:, : keys * layer.head_dim].unflatten(-1, (keys, -1))
        through.attend(number, q_SNH, k_SKH, k_SKH)
