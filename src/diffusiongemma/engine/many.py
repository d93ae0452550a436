"""Several answers at once: rows that need encoding encode together, the others denoise together.

Rows may be at different canvases, steps and lengths. Each row gets exactly what
`diffusion.loop.answer` gives it alone; that is this file's test.
"""

from collections import defaultdict
from collections.abc import Container, Iterator, Sequence

import torch

from diffusiongemma.diffusion.loop import Commit, Draft, DraftStep, Recipe, width_of_next
from diffusiongemma.engine.quick import Quick, takes
from diffusiongemma.model.context import Context
from diffusiongemma.model.model import DiffusionGemma, Inputs


class _Row:
    """One answer on its way: chunks still to encode, then a canvas being drafted."""

    def __init__(self, number: int, context: Context, recipe: Recipe, chunks: list[Inputs]) -> None:
        self.number, self.context, self.recipe = number, context, recipe
        self.chunks = chunks
        self.draft: Draft | None = None
        self.canvas = self.made = 0
        self.done = False

    def open(self, device: torch.device) -> Draft:
        """The canvas being drafted, begun if need be."""
        if self.draft is None:
            width = width_of_next(self.recipe, self.context.lengths[0])
            self.draft = Draft(self.recipe, self.canvas, width, device)
        return self.draft

    def close(self, last: DraftStep) -> Commit:
        """Finish the canvas."""
        assert self.draft is not None
        room = self.recipe.longest - self.context.lengths[0] - self.draft.width
        commit = self.draft.commit(last, self.made, room)
        self.draft, self.done = None, commit.reason is not None
        self.made, self.canvas = self.made + len(commit.tokens), self.canvas + 1
        return commit


def answer_many(
    quick: Quick,
    prompts: Sequence[Inputs],
    recipes: Sequence[Recipe],
    chunk: int,
    ended: Container[int] = (),
) -> Iterator[tuple[int, DraftStep | Commit]]:
    """Answer every prompt.

    Args:
        quick: the network, and what it keeps for captured steps; where those are possible, only
            commits are told.
        prompts: embedded prompts, B = 1 each.
        recipes: one for each prompt.
        chunk: tokens of a prompt that are encoded in one pass.
        ended: rows that whoever consumes this wants no more of; looked at before every pass.

    Yields:
        (row, step or commit), rows interleaved.
    """
    model = quick.model
    context = model.context(rows=len(prompts))
    rows = [
        _Row(number, context.pick([number]), recipe, list(prompt.chunks(chunk)))
        for number, (prompt, recipe) in enumerate(zip(prompts, recipes, strict=True))
    ]
    if takes(model, recipes, [prompt.span_BT.shape[1] for prompt in prompts]):
        while reading := [row for row in rows if row.chunks]:
            _encode(model, context, reading)
        for row, item in quick.answer(context, recipes, watched=False, ended=ended):
            if isinstance(item, Commit):
                yield row, item
        return
    while waiting := [row for row in rows if not row.done and row.number not in ended]:
        _encode(model, context, [row for row in waiting if row.chunks])
        ready = [row for row in waiting if not row.chunks]
        for group in _alike(ready, model.device):
            yield from _denoise(model, context, group)


def _encode(model: DiffusionGemma, context: Context, rows: list[_Row]) -> None:
    if rows:
        inputs, lengths_B = Inputs.stack([row.chunks.pop(0) for row in rows])
        model.encode(inputs, context.pick([row.number for row in rows]), lengths_B)


def _alike(rows: list[_Row], device: torch.device) -> list[list[_Row]]:
    """Rows that one call can take: canvases of one width, read in one way."""
    groups: defaultdict[tuple[int, int, int], list[_Row]] = defaultdict(list)
    for row in rows:
        kind = (row.open(device).width, id(row.recipe.shaper), id(row.recipe.ask))
        groups[kind].append(row)
    return list(groups.values())


def _denoise(
    model: DiffusionGemma, context: Context, rows: list[_Row]
) -> Iterator[tuple[int, DraftStep | Commit]]:
    drafts = [row.open(model.device) for row in rows]
    canvas_BL = torch.cat([draft.canvas_BL for draft in drafts])
    zeros = torch.zeros(
        1, drafts[0].width, model.config.hidden_size, dtype=model.dtype, device=model.device
    )
    soft_BLD = torch.cat([zeros if d.soft_BLD is None else d.soft_BLD for d in drafts])
    hidden_BLD = model.denoise(canvas_BL, soft_BLD, context.pick([row.number for row in rows]))
    heat_B = torch.tensor([draft.temperature for draft in drafts], device=model.device)
    uniform_BL = torch.cat([draft.uniform_BL for draft in drafts])
    recipe = rows[0].recipe
    readout = model.readout(hidden_BLD, heat_B, uniform_BL, recipe.shaper, recipe.ask)
    for place, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
        seen = draft.take(hidden_BLD[place : place + 1], readout.row(place))
        yield row.number, seen
        if not seen.last:
            continue
        commit = row.close(seen)
        yield row.number, commit
        if not row.done:
            ids_BT = torch.tensor([commit.whole], device=model.device)
            row.chunks = [model.embed(ids_BT)]
