"""Answers through `Steps`: what the engine gives, with the host out of the way.

A canvas is read back when it is finished, or at every step if somebody watches. Memory and
captured steps are kept for the next answer of the same kind; two answers at once never share them.
"""

from collections.abc import Container, Generator, Iterator, Sequence
from contextlib import contextmanager

import torch

from diffusiongemma.diffusion.commit import Commit
from diffusiongemma.diffusion.drafts import BROKEN, DONE
from diffusiongemma.diffusion.loop import Recipe
from diffusiongemma.engine import told
from diffusiongemma.engine.events import Refined
from diffusiongemma.engine.graphs import Steps
from diffusiongemma.engine.scheduler import Row, row_of
from diffusiongemma.kernels.readout import Ask
from diffusiongemma.model.context import Context
from diffusiongemma.model.model import DiffusionGemma

_ROOM = 2048  # tokens of an answer that there is room for at first, if its limit is not lower
_WASTE = 4  # times the memory that is wanted that kept memory may have
_GRAIN = 1024  # tokens that capacities are multiples of, so that kept memory fits again


def takes(model: DiffusionGemma, recipes: Sequence[Recipe], lengths: Sequence[int]) -> bool:
    """Whether answers can be made this way.

    On a GPU, without rules or questions of one's own, with room for a canvas of full width; and
    several only if limits tell that all their canvases have that, and how much memory they want.

    Args:
        model: the network.
        recipes: one for each answer.
        lengths: tokens of each prompt.
    """
    first = recipes[0]
    alike = all(_kind(one) == _kind(first) for one in recipes)
    plain = all(one.rule is None and one.ask in (None, Ask()) for one in recipes)
    fits = first.canvas_length <= model.config.canvas_length
    wanted = [_limited(one) if len(recipes) > 1 else one.canvas_length for one in recipes]
    room = all(
        most is not None and length + most <= one.longest
        for one, most, length in zip(recipes, wanted, lengths, strict=True)
    )
    return model.device.type == "cuda" and alike and plain and fits and room


def _kind(recipe: Recipe) -> tuple[int, int]:
    """What a capture depends on; options are data."""
    return recipe.canvas_length, id(recipe.bias_V)


def _limited(recipe: Recipe) -> int | None:
    """Tokens of all canvases that an answer may have, if a limit says so and they are not many."""
    most = recipe.config.max_new_tokens
    if most is None or most > _ROOM:
        return None
    return -(-most // recipe.canvas_length) * recipe.canvas_length


class Quick:
    """Makes answers, and keeps what is dear to make."""

    def __init__(self, model: DiffusionGemma) -> None:
        self.model = model
        self._idle: list[Steps] = []  # at most one: memory is for weights

    def answer(
        self,
        context: Context,
        recipes: Sequence[Recipe],
        *,
        watched: bool,
        ended: Container[int] = (),
    ) -> Generator[tuple[int, Refined | Commit], None, None]:
        """Answer every prompt of a context, which is copied and stays as it is.

        Args:
            context: one encoded prompt a row.
            recipes: one for each row, with canvases of one length and one bias.
            watched: whether to tell of every step.
            ended: rows that whoever consumes this wants no more of.

        Yields:
            (row, step or commit).
        """
        both = zip(recipes, context.lengths, strict=True)
        wanted = max(self._capacity(recipe, length) for recipe, length in both)
        with self._borrowed(recipes, wanted) as steps:
            steps.slots.context.adopt(context)
            yield from _Answers(steps, context, recipes, watched, ended).run()

    def _capacity(self, recipe: Recipe, prompt: int) -> int:
        """Tokens of context for a prompt and its answer, at first."""
        canvases = -(-_ROOM // recipe.canvas_length) * recipe.canvas_length
        whole = prompt + (_limited(recipe) or canvases)
        return min(recipe.longest, -(-whole // _GRAIN) * _GRAIN)

    @contextmanager
    def _borrowed(self, recipes: Sequence[Recipe], wanted: int) -> Iterator[Steps]:
        """Steps of one's own; those that were kept if they are of this kind."""
        steps = self._idle.pop() if self._idle else None
        if steps is None or not steps.serves(recipes, wanted, _WASTE * wanted):
            del steps  # before memory for others is asked for
            context = self.model.context(len(recipes), wanted)
            steps = Steps(self.model, context, recipes[0].bias_V, recipes[0].canvas_length)
        try:
            yield steps
        finally:
            steps.slots.context.truncate([0] * len(recipes))
            self._idle[:] = [steps]


class _Answers:
    """Answers on their way, one a row."""

    def __init__(
        self,
        steps: Steps,
        context: Context,
        recipes: Sequence[Recipe],
        watched: bool,
        ended: Container[int],
    ) -> None:
        self.steps, self.recipes, self.watched, self.ended = steps, recipes, watched, ended
        both = zip(recipes, context.lengths, strict=True)
        self.rows = [row_of(number, *one) for number, one in enumerate(both)]

    def run(self) -> Iterator[tuple[int, Refined | Commit]]:
        """Until every answer has ended."""
        self.steps.begin(self.recipes)
        flags = self.steps.step()
        while True:
            ended = []
            for row, flag in zip(self.rows, flags, strict=True):
                if not row.done:
                    yield from self._told(row, flag)
                    row.done = row.done or row.id in self.ended
                    ended += [row] if row.waiting and not row.done else []
            if all(row.done for row in self.rows):
                return
            flags = self._on(ended)

    def _told(self, row: Row, flag: int) -> Iterator[tuple[int, Refined | Commit]]:
        """Of a step, and of its canvas if that is finished."""
        steps, drafts = self.steps, self.steps.drafts
        if flag & BROKEN:
            raise told.broken(row, steps.model.dtype)
        last = row.stepped(done=bool(flag & DONE))
        if self.watched:
            yield row.id, told.event(row, drafts, row.id, self.recipes[row.id].config)
        if last:
            commit = row.commit(*told.finished(row, drafts, row.id))
            if not row.done:
                row.follow([row.width])
            yield row.id, commit

    def _on(self, ended: list[Row]) -> list[int]:
        """The next step; canvases that ended are committed with it."""
        for row in ended:
            row.read()
        if not ended:
            return self.steps.step()
        room, width = self.steps.slots.context.room, self.steps.width
        if all(row.width == width and room[row.id] >= width for row in ended):
            return self.steps.advance([row.id for row in ended])
        return self._moved(ended)

    def _moved(self, ended: list[Row]) -> list[int]:
        """Commit by itself, and go on in more memory or with a narrower canvas."""
        assert len(self.rows) == 1, "several rows have room for all they may want; see takes"
        (row,), (recipe,) = ended, self.recipes
        steps = self.steps
        model, context = steps.model, steps.slots.context
        if context.room[0] < steps.width:
            context = context.enlarged(min(recipe.longest, 2 * context.rows[0].room))
        with torch.no_grad():
            model.encode(model.embed(steps.drafts.best_BL.clone()), context)
        self.steps = Steps(model, context, recipe.bias_V, row.width)
        self.steps.begin([recipe], row.canvas)
        return self.steps.step()
