"""Answers through `Steps`: what `diffusion.loop.answer` gives, with the host out of the way.

A canvas is read back when it is finished, or at every step if somebody watches. Memory and
captured steps are kept for the next answer of the same kind; two answers at once never share them.
"""

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from diffusiongemma.core.errors import CheckpointError
from diffusiongemma.diffusion.loop import Commit, Recipe, cut, width_of_next
from diffusiongemma.diffusion.temperature import temperature
from diffusiongemma.engine.events import Refined
from diffusiongemma.engine.graphs import Steps
from diffusiongemma.kernels.readout import Ask
from diffusiongemma.model.context import Context
from diffusiongemma.model.model import DiffusionGemma

_DONE, _BROKEN = 1, 2
_ROOM = 2048  # tokens of an answer that there is room for at first, if its limit is not lower
_WASTE = 4  # times the memory that is wanted that kept memory may have
_GRAIN = 1024  # tokens that capacities are multiples of, so that kept memory fits again


def takes(model: DiffusionGemma, recipes: Sequence[Recipe], lengths: Sequence[int]) -> bool:
    """Whether answers can be made this way.

    On a GPU, without rules or questions of one's own, with room for a canvas of full width; and
    several only if a limit tells that all their canvases have that, and how much memory they want.

    Args:
        model: the network.
        recipes: one for each answer.
        lengths: tokens of each prompt.
    """
    first = recipes[0]
    alike = all(replace(one, seed=first.seed) == first for one in recipes)
    plain = first.rule is None and first.ask in (None, Ask())
    fits = first.canvas_length <= model.config.canvas_length
    sure = _limited(first) if len(recipes) > 1 else first.canvas_length
    room = sure is not None and max(lengths) + sure <= first.longest
    return model.device.type == "cuda" and alike and plain and fits and room


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
    ) -> Iterator[tuple[int, Refined | Commit]]:
        """Answer every prompt of a context, which is copied and stays as it is.

        Args:
            context: one encoded prompt a row.
            recipes: one for each row, equal but for their seeds.
            watched: whether to tell of every step.
            ended: rows that whoever consumes this wants no more of.

        Yields:
            (row, step or commit).
        """
        wanted = self._capacity(recipes[0], max(context.lengths))
        with self._borrowed(recipes, wanted) as steps:
            steps.slots.context.adopt(context)
            yield from _Answers(steps, recipes, watched, ended).run()

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
            steps = Steps(self.model, context, recipes, recipes[0].canvas_length)
        try:
            yield steps
        finally:
            steps.slots.context.truncate([0] * len(recipes))
            self._idle[:] = [steps]


class _Answers:
    """Answers on their way, one a row."""

    def __init__(
        self, steps: Steps, recipes: Sequence[Recipe], watched: bool, ended: Container[int]
    ) -> None:
        self.steps, self.recipes, self.watched, self.ended = steps, recipes, watched, ended
        rows = len(recipes)
        self.made, self.canvas, self.number = [0] * rows, [0] * rows, [0] * rows
        self.done = [False] * rows

    def run(self) -> Iterator[tuple[int, Refined | Commit]]:
        """Until every answer has ended."""
        steps = self.steps
        steps.begin(self.recipes)
        flags = steps.step()
        while True:
            ended = []
            for row, flag in enumerate(flags):
                if not self.done[row]:
                    yield from self._told(row, flag)
                    if self._last(row, flag):
                        commit = self._commit(row)
                        yield row, commit
                        self.done[row] = commit.reason is not None or row in self.ended
                        ended += [] if self.done[row] else [row]
            if all(self.done):
                return
            flags = self._on(ended)

    def _on(self, ended: list[int]) -> list[int]:
        """The next step; canvases that ended are committed with it."""
        if not ended:
            return self.steps.step()
        context, width = self.steps.slots.context, self.steps.width
        recipe = self.recipes[0]
        wide = all(width_of_next(recipe, context.lengths[n] + width) == width for n in ended)
        if wide and all(context.room[row] >= width for row in ended):
            return self.steps.advance(ended)
        return self._moved(ended)

    def _moved(self, ended: list[int]) -> list[int]:
        """Commit by itself, and go on in more memory or with a narrower canvas."""
        assert len(self.recipes) == 1, "several rows have room for all they may want; see takes"
        (row,) = ended
        steps, recipe = self.steps, self.recipes[0]
        model, context = steps.model, steps.slots.context
        if context.room[row] < steps.width:
            context = context.enlarged(min(recipe.longest, 2 * context.rows[row].room))
        with torch.no_grad():
            model.encode(model.embed(steps.best_BL.clone()), context)
        width = width_of_next(recipe, context.lengths[row])
        self.steps = Steps(model, context, self.recipes, width)
        self.steps.begin(self.recipes, self.canvas[row])
        return self.steps.step()

    def _last(self, row: int, flag: int) -> bool:
        most = self.recipes[row].config.max_denoising_steps
        return bool(flag & _DONE) or self.number[row] == most

    def _told(self, row: int, flag: int) -> Iterator[tuple[int, Refined]]:
        """Count a step, and tell of it if somebody watches."""
        steps, config = self.steps, self.recipes[row].config
        self.number[row] += 1
        number, most = self.number[row], config.max_denoising_steps
        if flag & _BROKEN:
            raise CheckpointError(
                f"the network's predictions are not numbers at step {number} of canvas "
                f"{self.canvas[row]}: its weights are damaged, or {steps.model.dtype} is too "
                "narrow for them; fetch them again, or open with dtype float32"
            )
        if self.watched:
            yield (
                row,
                Refined(
                    canvas=self.canvas[row],
                    step=number,
                    best=tuple(steps.best_BL[row].tolist()),
                    entropy=tuple(steps.entropy_BL[row].tolist()),
                    accepted=tuple(steps.accepted_BL[row].tolist()),
                    revised=tuple(steps.revised_BL[row].tolist()),
                    temperature=temperature(number, most, config.t_min, config.t_max),
                    before=tuple(steps.before_BL[row].tolist()),
                    after=tuple(steps.canvas_BL[row].tolist()),
                ),
            )

    def _commit(self, row: int) -> Commit:
        """Read the canvas back, cut it at the answer's end, and begin to count anew."""
        steps, recipe = self.steps, self.recipes[row]
        whole = tuple(steps.best_BL[row].tolist())
        made = self.made[row]
        tokens, reason = cut(whole, recipe.eos, recipe.config.max_new_tokens, made)
        room = recipe.longest - steps.slots.context.lengths[row] - steps.width
        commit = Commit(
            canvas=self.canvas[row],
            tokens=tokens,
            steps=self.number[row],
            revisions=int(steps.revisions_B[row]),
            reason=reason or ("context" if room <= 0 else None),
            whole=whole,
            entropy=tuple(steps.entropy_BL[row, : len(tokens)].tolist()),
        )
        self.made[row], self.number[row] = made + len(tokens), 0
        self.canvas[row] += 1
        return commit
