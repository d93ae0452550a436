"""Sums and differences of whole numbers up to four digits.

Lengths are drawn before digits, so that short numbers are as frequent as long ones.
"""

import random

from diffusiongemma.evals.task import Problem


def _number(dice: random.Random, lengths: tuple[int, int]) -> int:
    digits = dice.randint(*lengths)
    return dice.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)


class Addition:
    """`What is 348 + 1290?`"""

    name = "addition"

    def __init__(self, lengths: tuple[int, int] = (1, 4)) -> None:
        """Numbers of so many digits, at least and at most."""
        self.lengths = lengths

    def make(self, dice: random.Random) -> Problem:
        """Two numbers, each of a length of its own."""
        one, other = _number(dice, self.lengths), _number(dice, self.lengths)
        return Problem(f"What is {one} + {other}?", str(one + other))

    def right(self, problem: Problem, text: str) -> bool:
        """The number and nothing else."""
        return text.strip() == problem.answer


class Subtraction:
    """`What is 348 - 1290?`; the answer may be negative."""

    name = "subtraction"

    def __init__(self, lengths: tuple[int, int] = (1, 4)) -> None:
        """Numbers of so many digits, at least and at most."""
        self.lengths = lengths

    def make(self, dice: random.Random) -> Problem:
        """Two numbers, each of a length of its own."""
        one, other = _number(dice, self.lengths), _number(dice, self.lengths)
        return Problem(f"What is {one} - {other}?", str(one - other))

    def right(self, problem: Problem, text: str) -> bool:
        """The number and nothing else."""
        return text.strip() == problem.answer
