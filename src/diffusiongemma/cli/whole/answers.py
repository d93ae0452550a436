"""Whole answers: how soon the first draft and the first canvas are there, and tokens a second."""

import time
from typing import Any

import torch

from diffusiongemma.cli.whole.clock import Clock
from diffusiongemma.cli.whole.parts import recipe
from diffusiongemma.diffusion.commit import Commit
from diffusiongemma.engine.events import Refined
from diffusiongemma.engine.quick import Quick
from diffusiongemma.engine.runner import read
from diffusiongemma.model.model import DiffusionGemma


@torch.no_grad()
def measured(
    model: DiffusionGemma, clock: Clock, *, rows: int, context: int, canvases: int, steps: int
) -> dict[str, Any]:
    """Seconds from the prompt's ids to what a user sees.

    The first answer builds and is not counted, the second is watched, the third is timed.

    Args:
        model: the network.
        clock: of its device.
        rows: answers together.
        context: tokens of each prompt.
        canvases: of each answer.
        steps: of each canvas.
    """
    quick, asked = Quick(model), (rows, context, canvases, steps)
    _answer(model, quick, clock, *asked, watched=False)
    draft = _answer(model, quick, clock, *asked, watched=True)["first_draft_seconds"]
    clock.forget()
    said = _answer(model, quick, clock, *asked, watched=False) | {"first_draft_seconds": draft}
    tokens = rows * canvases * model.config.canvas_length
    first, whole = said["first_canvas_seconds"], said["seconds"]
    said["tokens"] = tokens
    said["tokens_per_second"] = tokens / whole
    said["decode_tokens_per_second"] = tokens / (whole - said["prefill_seconds"])
    said["later_canvas_seconds"] = (whole - first) / max(1, canvases - 1)
    said["peak_bytes"] = clock.peak()
    weights = [*model.parameters(), *model.buffers()]
    said["weight_bytes"] = sum(weight.nbytes for weight in weights)
    return said


def _answer(
    model: DiffusionGemma,
    quick: Quick,
    clock: Clock,
    rows: int,
    context: int,
    canvases: int,
    steps: int,
    *,
    watched: bool,
) -> dict[str, Any]:
    config = model.config
    dice = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(0, config.vocab_size, (rows, context), generator=dice)
    one = recipe(config, steps, canvases * config.canvas_length)
    seen: dict[str, Any] = {}

    def all_of_it() -> None:
        held = model.context(rows)
        for row in range(rows):
            read(model, held.pick([row]), ids_BT[row].tolist())
        clock.wait()
        seen["prefill_seconds"] = since()
        for _, item in quick.answer(held, [one] * rows, watched=watched):
            if isinstance(item, Refined):
                seen.setdefault("first_draft_seconds", since())
            if isinstance(item, Commit):
                seen.setdefault("first_canvas_seconds", since())
                assert item.steps == steps, f"{item.steps} steps instead of {steps}"

    start = time.perf_counter()

    def since() -> float:
        return time.perf_counter() - start

    seen["seconds"] = clock.once(all_of_it)
    return seen
