"""A task: where its problems come from, of which shapes they are, and what counts as right.

Problems are made, not stored, from a seeded source of randomness. A task states its shapes (how
many digits, which signs, which sentence); shapes are drawn alike, then problems, so that no shape
is rare. A fixed eighth of all problems, told by a hash of what is asked and not of how it is
phrased, is held out: training never sees it in any phrasing, evaluation sees nothing else.
"""

import random
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

HELD_OUT = 8  # one problem in so many
_PATIENCE = 3000  # problems seen before that are drawn in a row until a shape counts as used up


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A tool that has to be used on the way to an answer.

    Attributes:
        declaration: in OpenAI's shape.
        arguments: what it has to be called with.
        result: what it then says.
    """

    declaration: Mapping[str, Any]
    arguments: Mapping[str, Any]
    result: str

    @property
    def name(self) -> str:
        """The tool's."""
        return self.declaration["function"]["name"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with a known answer.

    Attributes:
        prompt: what the user says.
        answer: what a perfect model writes, after its thought and the tool's result.
        shape: one of its task's.
        key: what is asked, however it is phrased; the prompt if empty.
        thought: what it thinks before; None: it is asked without thinking.
        before: turns before this one, each what was asked and what was said.
        tool: declared and to be used; None for no tool.
        spare: a tool that is declared and has no use here.
    """

    prompt: str
    answer: str
    shape: str = ""
    key: str = ""
    thought: str | None = None
    before: tuple[tuple[str, str], ...] = ()
    tool: Use | None = None
    spare: Mapping[str, Any] | None = None

    def messages(self) -> list[dict[str, Any]]:
        """The conversation up to the question."""
        said: list[dict[str, Any]] = []
        for asked, answered in self.before:
            said.append({"role": "user", "content": asked})
            said.append({"role": "assistant", "content": answered})
        return [*said, {"role": "user", "content": self.prompt}]

    def tools(self) -> list[Mapping[str, Any]] | None:
        """What is declared."""
        declared = self.spare if self.tool is None else self.tool.declaration
        return None if declared is None else [declared]


@runtime_checkable
class Task(Protocol):
    """A source of problems."""

    @property
    def name(self) -> str:
        """Of the task."""
        ...

    @property
    def shapes(self) -> tuple[str, ...]:
        """Those that are taught."""
        ...

    @property
    def unseen(self) -> tuple[str, ...]:
        """Those that are asked and never taught, such as other phrasings."""
        ...

    def make(self, shape: str, dice: random.Random) -> Problem:
        """A problem of a shape; the same dice give the same problem."""
        ...

    def right(self, problem: Problem, text: str) -> bool:
        """Whether an answer is right, exactly."""
        ...


def held_out(problem: Problem) -> bool:
    """Whether a problem is kept from training."""
    return zlib.crc32((problem.key or problem.prompt).encode()) % HELD_OUT == 0


def problems(
    task: Task, seed: int | str, *, held: bool, shape: str | None = None
) -> Iterator[Problem]:
    """Problems without end, all held out or none.

    Args:
        task: where they come from.
        seed: the same seed gives the same problems.
        held: for evaluation (True) or for training (False).
        shape: theirs; if not given, each is of a shape drawn from those that are taught.
    """
    dice = random.Random(f"{task.name}/{shape}/{seed}" if shape else f"{task.name}/{seed}")
    while True:
        kind = dice.choice(task.shapes) if shape is None else shape
        # Within the shape, or rare shapes would lose what is held out to frequent ones.
        problem = task.make(kind, dice)
        while held_out(problem) is not held:
            problem = task.make(kind, dice)
        yield problem


def distinct(task: Task, shape: str, count: int, seed: int | str) -> list[Problem]:
    """Held-out problems of a shape, no two alike; fewer than asked for where there are no more."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], Problem] = {}
    stale = 0
    for problem in problems(task, seed, held=True, shape=shape):
        place = (problem.prompt, problem.before)
        stale = stale + 1 if place in found else 0
        found.setdefault(place, problem)
        if len(found) >= count or stale >= _PATIENCE:
            return list(found.values())
    raise AssertionError("problems have no end")
