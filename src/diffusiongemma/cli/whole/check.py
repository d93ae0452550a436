"""Whether it is right on this device, before anything is timed: kernels against their references,
a captured step against the same step run plainly, and the network against transformers.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from diffusiongemma.cli.benching import theirs as other
from diffusiongemma.cli.whole import parts, rival, twins
from diffusiongemma.cli.whole.network import TOY, made
from diffusiongemma.engine.graphs import Steps
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.model import DiffusionGemma

_TOYS = 20
Check = Callable[[], dict[str, Any]]


def checks(device: torch.device, size: str, *, alone: bool) -> Iterator[tuple[str, Check]]:
    """Every check by name; `alone` leaves those out that need transformers."""
    yield from twins.checks(device, size)
    yield "captured step", lambda: captured(device)
    if other.found() and not alone:
        yield "float32 beside transformers", lambda: exact(device)
        yield "bfloat16 beside transformers", lambda: rounded(device)


def captured(device: torch.device) -> dict[str, Any]:
    """Steps and commits as graphs, and the same without capture, on the same noise.

    Raises:
        AssertionError: they differ.
    """
    model = made(TOY, device, torch.bfloat16)
    seen = []
    for plain in (False, True):
        steps = parts.opened(model, 2, 70, 4 * TOY.canvas_length, 6)
        seen.append(_walk(steps, plain))
    for number, (graph, bare) in enumerate(zip(*seen, strict=True)):
        for name, one, two in zip(("best", "canvas", "entropy"), graph, bare, strict=True):
            assert torch.equal(one, two), f"{name} differs after {number + 1} steps"
    return {"steps": len(seen[0]), "captured": device.type == "cuda", "equal": True}


def _walk(steps: Steps, plain: bool) -> list[tuple[torch.Tensor, ...]]:
    """Six steps of a canvas, one row's commit, four steps, both rows' commit, two steps."""
    steps.plain, seen = plain, []
    for number in range(14):
        if number == 6:
            steps.advance([1])
        elif number == 11:
            steps.advance([0, 1])
        else:
            steps.step()
        drafts = steps.drafts
        shown = (drafts.best_BL, drafts.canvas_BL, drafts.entropy_BL)
        seen.append(tuple(one.clone() for one in shown))
    return seen


def exact(device: torch.device) -> dict[str, Any]:
    """Largest difference of logits in float32; both sides on this device."""
    model = made(TOY, device, torch.float32)
    ours, truth = _logits(model, model), _theirs(model)
    difference = float((ours - truth).abs().max())
    assert difference < 1e-3 * float(truth.abs().max()), f"logits differ by {difference}"
    return {"largest_difference": difference, "largest_logit": float(truth.abs().max())}


def rounded(device: torch.device) -> dict[str, Any]:
    """How far bfloat16 is from float32: ours over theirs, median over small random networks."""
    ratios = []
    for seed in range(_TOYS):
        config = dataclasses.replace(TOY, layers=TOY.layers * (1 + seed % 2))
        wide = made(config, device, torch.float32)
        _shake(wide, seed)
        narrow = made(config, device, torch.bfloat16)
        for weight, other_weight in zip(narrow.parameters(), wide.parameters(), strict=True):
            weight.copy_(other_weight)
            other_weight.copy_(weight)  # the same numbers on both sides
        truth = _logits(wide, wide)
        ours = (_logits(narrow, wide) - truth).abs().mean()
        ratios.append(float(ours / (_theirs(narrow) - truth).abs().mean()))
    middle = sorted(ratios)[len(ratios) // 2]
    assert middle <= 1.1, f"bfloat16 is {middle:.2f} times as far from float32 as transformers'"
    return {"median_ratio": middle, "ratios": ratios}


def _shake(model: DiffusionGemma, seed: int) -> None:
    dice = torch.Generator(device=model.device).manual_seed(seed)
    for weight in model.parameters():
        weight.mul_(1 + 0.1 * torch.randn(weight.shape, generator=dice, device=weight.device))


def _drawn(config: ModelConfig, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    dice = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (1, 60 + config.canvas_length), generator=dice)
    ids = ids.to(device)
    return ids[:, :60], ids[:, 60:]


@torch.no_grad()
def _logits(model: DiffusionGemma, like: DiffusionGemma) -> torch.Tensor:
    ids_BT, canvas_BL = _drawn(like.config, like.device)
    context = model.context()
    model.encode(model.embed(ids_BT), context)
    return model.logits(model.denoise(canvas_BL, None, context)).float()


@torch.no_grad()
def _theirs(model: DiffusionGemma) -> torch.Tensor:
    ids_BT, canvas_BL = _drawn(model.config, model.device)
    said: Any = rival.sharing(model).model(input_ids=ids_BT, decoder_input_ids=canvas_BL)
    return said.logits.float()
