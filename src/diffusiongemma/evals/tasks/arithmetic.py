"""Sums and differences of whole numbers up to four digits."""

import random

from diffusiongemma.evals.task import Problem
from diffusiongemma.evals.tasks.words import Phrasings

SUMS = Phrasings(
    (
        *("What is {a} + {b}?", "{a}+{b}", "{a} + {b} =", "{a} plus {b}", "What is {a} plus {b}?"),
        *("Compute {a} + {b}.", "Sum of {a} and {b}?", "Add {a} to {b}", "How much is {a} + {b}?"),
    ),
    ("Add {a} and {b}.",),
)
DIFFERENCES = Phrasings(
    (
        *(
            "What is {a} - {b}?",
            "{a}-{b}",
            "{a} - {b} =",
            "{a} minus {b}",
            "How much is {a} - {b}?",
        ),
        *("What is {a} minus {b}?", "Compute {a} - {b}.", "Take {b} from {a}.", "{a} less {b}"),
    ),
    ("Compute {a} minus {b}.",),
)
_UNSEEN = "an unseen phrasing"
_NEAR = 9  # how far nearly equal numbers may be apart


def number(dice: random.Random, digits: int) -> int:
    """One of so many digits."""
    return dice.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)


class Addition:
    """`What is 348 + 1290?`"""

    name = "addition"

    def __init__(self, phrasings: Phrasings = SUMS, longest: int = 4) -> None:
        """Numbers of up to so many digits."""
        self.phrasings = phrasings
        self.lengths = {
            f"{one} + {other} digits": (one, other)
            for one in range(1, longest + 1)
            for other in range(1, longest + 1)
        }
        self.shapes = tuple(self.lengths)
        self.unseen = (_UNSEEN,) if phrasings.unseen else ()

    def make(self, shape: str, dice: random.Random) -> Problem:
        """Two numbers of the shape's lengths."""
        unseen = shape == _UNSEEN
        lengths = dice.choice(list(self.lengths.values())) if unseen else self.lengths[shape]
        one, other = (number(dice, digits) for digits in lengths)
        asked = self.phrasings.draw(dice, unseen=unseen).format(a=one, b=other)
        return Problem(asked, str(one + other), shape, key=SUMS.taught[0].format(a=one, b=other))

    def right(self, problem: Problem, text: str) -> bool:
        """The number and nothing else."""
        return text.strip() == problem.answer


class Subtraction:
    """`What is 348 - 1290?`; the answer may be negative."""

    name = "subtraction"

    def __init__(self, phrasings: Phrasings = DIFFERENCES, longest: int = 4) -> None:
        """Numbers of up to so many digits."""
        self.phrasings = phrasings
        self.lengths = {
            f"{one} - {other} digits{kind}": (one, other, kind)
            for one in range(1, longest + 1)
            for other in range(1, longest + 1)
            for kind in ((", positive", ", negative", ", near") if one == other else ("",))
            if one > 1 or kind != ", near"
        }
        self.shapes = tuple(self.lengths)
        self.unseen = (_UNSEEN,) if phrasings.unseen else ()

    def make(self, shape: str, dice: random.Random) -> Problem:
        """Two numbers of the shape's lengths and sign; `near`: nearly equal, of either sign."""
        unseen = shape == _UNSEEN
        one, other = self._pair(
            dice.choice(list(self.lengths.values())) if unseen else self.lengths[shape], dice
        )
        asked = self.phrasings.draw(dice, unseen=unseen).format(a=one, b=other)
        key = DIFFERENCES.taught[0].format(a=one, b=other)
        return Problem(asked, str(one - other), shape, key=key)

    def _pair(self, lengths: tuple[int, int, str], dice: random.Random) -> tuple[int, int]:
        first, second, kind = lengths
        while True:
            one, other = number(dice, first), number(dice, second)
            if kind == ", near":
                other = one + dice.randint(-_NEAR, _NEAR)
            fits = {", positive": one >= other, ", negative": one < other}.get(kind, True)
            if fits and len(str(other)) == second and other >= 0:
                return one, other

    def right(self, problem: Problem, text: str) -> bool:
        """The number and nothing else."""
        return text.strip() == problem.answer
