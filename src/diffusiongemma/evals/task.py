"""A task: where its problems come from, and what counts as right.

Problems are made, not stored, from a seeded source of randomness. A fixed eighth of all
problems, told by a hash of the prompt, is held out: training never sees it, evaluation sees
nothing else.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

HELD_OUT = 8  # one prompt in so many


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with a known answer.

    Attributes:
        prompt: what the user says.
        answer: what a perfect model writes.
        thought: what it may think before; None if nothing.
    """

    prompt: str
    answer: str
    thought: str | None = None


@runtime_checkable
class Task(Protocol):
    """A source of problems."""

    name: str

    def make(self, dice: random.Random) -> Problem:
        """A problem; the same dice give the same problem."""
        ...

    def right(self, problem: Problem, text: str) -> bool:
        """Whether an answer is right, exactly."""
        ...


def held_out(problem: Problem) -> bool:
    """Whether a problem is kept from training."""
    return zlib.crc32(problem.prompt.encode()) % HELD_OUT == 0


def problems(task: Task, seed: int | str, *, held: bool) -> Iterator[Problem]:
    """Problems without end, all held out or none.

    Args:
        task: where they come from.
        seed: the same seed gives the same problems.
        held: for evaluation (True) or for training (False).
    """
    dice = random.Random(f"{task.name}/{seed}")
    while True:
        problem = task.make(dice)
        if held_out(problem) is held:
            yield problem
