"""What rows have on the device, and the forwards that a step of the engine makes."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from diffusiongemma.core.patches import Patches
from diffusiongemma.diffusion.drafts import BROKEN, DONE, Drafts
from diffusiongemma.diffusion.loop import DraftStep, Recipe
from diffusiongemma.diffusion.step import RuleError, take
from diffusiongemma.engine import told
from diffusiongemma.engine.events import Refined
from diffusiongemma.engine.scheduler import Row
from diffusiongemma.kernels.readout import Ask, Readout
from diffusiongemma.model.context import Context
from diffusiongemma.model.model import DiffusionGemma, Inputs

PROMPT_CHUNK = 1024  # tokens of a prompt that are read in one pass


@dataclass(slots=True)
class Seat:
    """A row's place on the device.

    Attributes:
        slot: in the drafts.
        recipe: of its answer.
        context: one row, which finished canvases join.
        ids: all tokens that the context should come to hold so far.
        images: in them.
        chunks: what is still to be read.
        replaced: whether somebody put another canvas in place of one, so that none can be repeated.
    """

    slot: int
    recipe: Recipe
    context: Context
    ids: list[int]
    images: Sequence[Patches]
    chunks: list[Inputs] = field(default_factory=list)
    replaced: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """What a step found of a row.

    Attributes:
        done: whether its canvas is stable and sure.
        place: of its canvas in the step.
        hidden_BLD: of all canvases of the step.
        readout: of all canvases of the step.
        error: why the row cannot go on; the rest is then of no use.
    """

    done: bool = False
    place: int = 0
    hidden_BLD: Tensor | None = None
    readout: Readout | None = None
    error: Exception | None = None


@torch.no_grad()
def read(
    model: DiffusionGemma,
    context: Context,
    ids: Sequence[int],
    images: Sequence[Patches] = (),
    seen: int = 0,
) -> None:
    """Read what a context of one row lacks of a prompt.

    Args:
        model: the network.
        context: holds the prompt's beginning, or nothing.
        ids: the prompt.
        images: in it.
        seen: how many of them the context holds.
    """
    for chunk in chunks(model, ids[context.lengths[0] :], images[seen:]):
        model.encode(chunk, context)


def chunks(
    model: DiffusionGemma, ids: Sequence[int], images: Sequence[Patches] = ()
) -> list[Inputs]:
    """Tokens in pieces that are read in one pass each."""
    if not ids:
        return []
    inputs = model.embed(torch.tensor([list(ids)], device=model.device), images)
    return list(inputs.chunks(PROMPT_CHUNK))


class Runner:
    """Runs what is planned."""

    def __init__(self, model: DiffusionGemma) -> None:
        self.model = model
        self.seats: dict[int, Seat] = {}
        self._drafts: Drafts | None = None

    @torch.no_grad()
    def seat(
        self,
        number: int,
        recipe: Recipe,
        context: Context,
        ids: Sequence[int],
        images: Sequence[Patches],
    ) -> list[int]:
        """Make room for a row.

        Args:
            number: of the request.
            recipe: of its answer.
            context: one row, which may hold the prompt.
            ids: the prompt.
            images: in it.

        Returns:
            tokens of each chunk that is to be read.

        Raises:
            InputError: images and their placeholders do not fit each other.
        """
        waiting = [] if context.lengths[0] else chunks(self.model, ids, images)
        slot = self._slot(recipe.canvas_length)
        self.seats[number] = Seat(slot, recipe, context, list(ids), images, waiting)
        self.drafts.open([recipe.config], [recipe.seed], rows=[slot])
        return [one.span_BT.shape[1] for one in waiting]

    @property
    def drafts(self) -> Drafts:
        """Of all rows."""
        assert self._drafts is not None, "a row has a seat"
        return self._drafts

    def drop(self, number: int) -> None:
        """A row is gone; with the last one all memory of drafts goes."""
        self.seats.pop(number, None)
        if not self.seats:
            self._drafts = None

    @torch.no_grad()
    def read(self, rows: Sequence[Row]) -> None:
        """Every row reads its next chunk, together."""
        if rows:
            seats = [self.seats[row.id] for row in rows]
            inputs, lengths_B = Inputs.stack([seat.chunks[0] for seat in seats])
            self.model.encode(inputs, self._context(seats), lengths_B)
            for row, seat in zip(rows, seats, strict=True):
                seat.chunks.pop(0)
                row.read()

    def draft(self, rows: Sequence[Row]) -> dict[int, Seen]:
        """Every row takes a step of its canvas; those that one call can take, together."""
        groups: defaultdict[tuple[int, ...], list[Row]] = defaultdict(list)
        for row in rows:
            recipe = self.seats[row.id].recipe
            ask = recipe.ask or Ask()
            ways = (recipe.bias_V, recipe.rule, ask.ids_BL, ask.members_V)
            groups[row.width, ask.top, *map(id, ways)].append(row)
        found: dict[int, Seen] = {}
        for group in groups.values():
            found |= self._group(group)
        return found

    @torch.no_grad()
    def commit(self, row: Row, whole: Sequence[int]) -> list[int]:
        """A canvas is to join the context, in chunks of so many tokens, and the next one begins."""
        seat = self.seats[row.id]
        seat.ids += whole
        seat.chunks = chunks(self.model, whole)
        self.drafts.follow(seat.slot)
        return [one.span_BT.shape[1] for one in seat.chunks]

    @torch.no_grad()
    def restart(self, row: Row) -> None:
        """After a step that was interrupted: the row as it was when its canvas began.

        What is decided by its place comes out the same; a context that was being written is read
        again from its beginning.
        """
        seat, again = self.seats[row.id], None
        whole = seat.context.lengths[0] == row.length and len(seat.chunks) == len(row.waiting)
        if seat.context.rows[0].torn or not whole:
            seat.context.truncate([0])
            seat.chunks = chunks(self.model, seat.ids, seat.images)
            again = [one.span_BT.shape[1] for one in seat.chunks]
        recipe = seat.recipe
        self.drafts.open([recipe.config], [recipe.seed], row.canvas, rows=[seat.slot])
        row.restart(again)

    def finished(self, row: Row) -> tuple[list[int], list[float], int]:
        """See `told.finished`."""
        return told.finished(row, self.drafts, self.seats[row.id].slot)

    def event(self, row: Row) -> Refined:
        """See `told.event`."""
        seat = self.seats[row.id]
        return told.event(row, self.drafts, seat.slot, seat.recipe.config)

    def look(self, row: Row, seen: Seen, *, last: bool) -> DraftStep:
        """See `told.look`."""
        seat = self.seats[row.id]
        assert seen.hidden_BLD is not None and seen.readout is not None
        hidden_BLD = seen.hidden_BLD[seen.place : seen.place + 1]
        given = (row, self.drafts, seat.slot, seat.recipe.config, hidden_BLD)
        replace = partial(self._replace, row, row.canvas)
        readout = seen.readout.row(seen.place)
        return told.look(*given, readout, done=seen.done, last=last, replace=replace)

    def _replace(self, row: Row, canvas: int, canvas_BL: Tensor) -> None:
        """Another canvas in place of the one that a row's next step would see."""
        seat = self.seats.get(row.id)
        if seat is not None and row.canvas == canvas:
            self.drafts.canvas_BL[seat.slot, : row.width] = canvas_BL[0]
            seat.replaced = True

    def _group(self, rows: list[Row]) -> dict[int, Seen]:
        """A step of rows of one width that are read in one way; without those whose rule fails."""
        found: dict[int, Seen] = {}
        while rows:
            try:
                return found | self._step(rows)
            except RuleError as error:
                found[rows[error.row].id] = Seen(error=error.cause)
                rows = [row for place, row in enumerate(rows) if place != error.row]
        return found

    @torch.no_grad()
    def _step(self, rows: Sequence[Row]) -> dict[int, Seen]:
        seats = [self.seats[row.id] for row in rows]
        slots, recipe = [seat.slot for seat in seats], seats[0].recipe
        part = self.drafts.part(slots, rows[0].width)
        context = self._context(seats)
        # Where all are zeros, which they are before the first step, there is less to do without.
        expected_BLD = part.expected_BLD if any(row.step for row in rows) else None
        hidden_BLD = self.model.denoise(part.canvas_BL, expected_BLD, context)
        policy = {"bias_V": recipe.bias_V, "rule": recipe.rule, "ask": recipe.ask}
        readout = take(self.model, hidden_BLD, part, **policy)
        self.drafts.put(slots, part)
        found = {}
        for place, (row, flag) in enumerate(zip(rows, part.flags_B.tolist(), strict=True)):
            broken = told.broken(row, self.model.dtype) if flag & BROKEN else None
            found[row.id] = Seen(bool(flag & DONE), place, hidden_BLD, readout, broken)
        return found

    def _context(self, seats: Sequence[Seat]) -> Context:
        return Context([seat.context.rows[0] for seat in seats], self.model.device)

    def _slot(self, width: int) -> int:
        """A free slot of the drafts, which grow if need be."""
        taken = {seat.slot for seat in self.seats.values()}
        rows = 0 if self._drafts is None else len(self._drafts.canvas_B)
        free = next((n for n in range(rows) if n not in taken), rows)
        if self._drafts is None:
            self._drafts = Drafts.of(self.model, 1, width)
        elif free == rows or width > self._drafts.width:
            most = max(rows, free + 1), max(width, self._drafts.width)
            self._drafts = self._drafts.enlarged(*most)
        return free
