"""The engine: requests come, rows work together, readers take what comes of theirs.

    submit -> scheduler.plan -> runner: read, draft -> settle: steps, canvases, ends -> readers

Every row gets what it gets alone, bit for bit, whoever else is there and in whichever order, which
is what `tests/oracle.py` says.
"""

import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

import torch

from diffusiongemma.core.errors import InputError
from diffusiongemma.core.patches import Patches
from diffusiongemma.diffusion.commit import Commit
from diffusiongemma.diffusion.loop import DraftStep, Recipe
from diffusiongemma.engine.events import Refined
from diffusiongemma.engine.quick import Quick, takes
from diffusiongemma.engine.runner import Runner, Seen, read
from diffusiongemma.engine.scheduler import Row, Scheduler, row_of
from diffusiongemma.model.context import Context
from diffusiongemma.model.model import DiffusionGemma


class Look(Enum):
    """What is told beside commits."""

    NOTHING = 0
    EVENTS = 1  # `Refined`
    STEPS = 2  # `DraftStep`


Item = Refined | DraftStep | Commit


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt, read and checked, and what decides its answer.

    Attributes:
        ids: of the prompt, images spread out.
        images: one for each image span of `ids`.
        recipe: of the answer.
    """

    ids: tuple[int, ...]
    images: tuple[Patches, ...]
    recipe: Recipe


class Engine:
    """Answers requests. Any thread may ask; a step is taken for all rows that are ready."""

    def __init__(self, model: DiffusionGemma) -> None:
        self.model = model
        self._lock = threading.RLock()
        self._scheduler, self._runner = Scheduler(), Runner(model)
        self._looks: dict[int, Look] = {}
        self._told: dict[int, deque[Item | Exception]] = {}
        self._dropped: deque[int] = deque()
        self._next = 0
        self._busy = False  # a step is being taken
        self._quick = Quick(model)

    def answer(
        self,
        requests: Sequence[Request],
        *,
        look: Look = Look.NOTHING,
        paced: bool = False,
        context: Context | None = None,
    ) -> "Reader | Captured":
        """Answer requests, and read what comes of them.

        Args:
            requests: one or more.
            look: what to tell beside commits.
            paced: whether they step only while somebody waits for what comes.
            context: of a single request: one row that holds the whole prompt.

        Raises:
            InputError: images and their placeholders do not fit each other.
        """
        recipes = [request.recipe for request in requests]
        lengths = [len(request.ids) for request in requests]
        if look is not Look.STEPS and takes(self.model, recipes, lengths):
            return Captured(self._quick, requests, look, context)
        numbers: list[int] = []
        try:
            for request in requests:
                numbers.append(self.submit(request, look=look, paced=paced, context=context))
        except BaseException:
            self.drop(numbers)
            raise
        return Reader(self, numbers)

    def submit(
        self,
        request: Request,
        *,
        look: Look = Look.NOTHING,
        paced: bool = False,
        context: Context | None = None,
    ) -> int:
        """Take a request in.

        Args:
            request: the prompt and its options.
            look: what to tell beside commits.
            paced: whether its row steps only while somebody waits in `take`.
            context: one row that holds the whole prompt, and that canvases join.

        Returns:
            the request's number.

        Raises:
            InputError: images and their placeholders do not fit each other.
        """
        with self._lock, _mode():
            self._free()
            self._reap()
            held = self.model.context() if context is None else context
            number, self._next = self._next, self._next + 1
            chunks = self._runner.seat(number, request.recipe, held, request.ids, request.images)
            row = row_of(number, request.recipe, held.lengths[0], chunks)
            row.paced = paced
            self._scheduler.add(row)
            self._looks[number], self._told[number] = look, deque()
        return number

    def abort(self, number: int) -> None:
        """Forget a request, whatever has become of it."""
        with self._lock:
            self._scheduler.drop(number)
            self._runner.drop(number)
            self._looks.pop(number, None)
            self._told.pop(number, None)

    def step(self) -> bool:
        """One step of all rows that are ready; whether there were any.

        Whatever interrupts it, all its rows go back to where their canvases began, and come out the
        same; what was told of them is not told again.
        """
        with self._lock, _mode():
            self._free()
            self._reap()
            work = self._scheduler.plan()
            if not work:
                return False
            left = {row.id: row for row in (*work.reads, *work.drafts)}
            self._busy = True
            try:
                self._runner.read(work.reads)
                seen = self._runner.draft(work.drafts)
                for row in work.drafts:
                    del left[row.id]
                    self._settle(row, seen[row.id])
            except BaseException:
                self._back(left.values())
                raise
            finally:
                self._busy = False
            return True

    def take(self, numbers: Sequence[int]) -> tuple[int, Item] | None:
        """Wait for what comes next of some requests: (place among them, item); None at their end.

        Raises:
            Exception: what a request ended with, if it did not end by itself.
        """
        with self._lock:
            while True:
                for place, number in enumerate(numbers):
                    if told := self._told.get(number):
                        item = told.popleft()
                        if isinstance(item, Exception):
                            self.abort(number)
                            raise item
                        return place, item
                rows = [self._scheduler.rows.get(number) for number in numbers]
                live = [row for row in rows if row is not None and not row.done]
                if not live:
                    return None
                for row in live:
                    row.wanted = True
                try:
                    self.step()
                finally:
                    for row in live:
                        row.wanted = False

    def drop(self, numbers: Sequence[int]) -> None:
        """Forget requests whose reader is gone; at the next step, as this may be in the middle of
        one.
        """
        self._dropped.extend(numbers)

    def _free(self) -> None:
        """The lock lets a thread in that has it: a rule, in the middle of a step."""
        if self._busy:
            raise InputError("a rule cannot ask the model whose step it decides; ask another one")

    def _reap(self) -> None:
        while self._dropped:
            self.abort(self._dropped.popleft())

    def _settle(self, row: Row, seen: Seen) -> None:
        """Tell of a row's step, and finish its canvas if it was the last."""
        try:
            self._count(row, seen)
        except BaseException:
            self._fail(row, "an answer was interrupted between two steps; ask again")
            raise

    def _fail(self, row: Row, why: str) -> None:
        row.done = True
        self._told[row.id].append(InputError(why))

    def _count(self, row: Row, seen: Seen) -> None:
        told = self._told[row.id]
        if seen.error is not None:
            row.done = True
            told.append(seen.error)
            return
        last = row.stepped(done=seen.done)
        look = self._looks[row.id]
        if look is not Look.NOTHING and row.tell():
            watched = look is Look.EVENTS
            runner = self._runner
            told.append(runner.event(row) if watched else runner.look(row, seen, last=last))
        if last:
            commit = row.commit(*self._runner.finished(row))
            if not row.done:
                row.follow(self._runner.commit(row, commit.whole))
            told.append(commit)

    def _back(self, rows: Iterable[Row]) -> None:
        """Rows go back to where their canvases began."""
        for row in rows:
            if self._runner.seats[row.id].replaced:
                self._fail(
                    row,
                    "a step was interrupted after its canvas had been replaced, which "
                    "cannot be repeated; begin anew",
                )
            else:
                self._runner.restart(row)


@contextmanager
def _mode() -> Iterator[None]:
    """No gradients, whatever the caller's mode: rows are written in any thread's steps, and what is
    made in inference mode could be written nowhere else.
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


class Captured:
    """The same from captured steps, which have memory of their own: see `quick`."""

    def __init__(
        self, quick: Quick, requests: Sequence[Request], look: Look, context: Context | None
    ) -> None:
        recipes = [request.recipe for request in requests]
        held = quick.model.context(rows=len(requests)) if context is None else context
        for row, request in enumerate(requests):
            read(quick.model, held.pick([row]), request.ids, request.images)
        self._ended: set[int] = set()
        watched = look is Look.EVENTS
        self._items = quick.answer(held, recipes, watched=watched, ended=self._ended)

    def __iter__(self) -> Iterator[tuple[int, Item]]:
        return self

    def __next__(self) -> tuple[int, Item]:
        return next(self._items)

    def end(self, place: int) -> None:
        """No more of one of them."""
        self._ended.add(place)

    def close(self) -> None:
        """No more of any."""
        self._items.close()


class Reader:
    """What comes of some requests, in the order in which it comes. Dropping it ends them."""

    def __init__(self, engine: Engine, numbers: Sequence[int]) -> None:
        self._engine, self._numbers = engine, list(numbers)
        self._gone = weakref.finalize(self, engine.drop, self._numbers)

    def __iter__(self) -> Iterator[tuple[int, Item]]:
        return self

    def __next__(self) -> tuple[int, Item]:
        try:
            item = self._engine.take(self._numbers)
        except BaseException:
            self.close()
            raise
        if item is None:
            self.close()
            raise StopIteration
        return item

    def end(self, place: int) -> None:
        """No more of one of them."""
        self._engine.abort(self._numbers[place])

    def close(self) -> None:
        """No more of any."""
        if self._gone.detach():
            for number in self._numbers:
                self._engine.abort(number)
