"""Reckoning in steps: the steps in the thought, the result as the answer."""

import random
import re

from diffusiongemma.evals.task import Problem
from diffusiongemma.evals.tasks.arithmetic import number
from diffusiongemma.evals.tasks.words import Phrasings

ASKED = Phrasings(
    ("What is {e}?", "{e}", "{e} =", "Compute {e}.", "How much is {e}?"), ("Work out {e}.",)
)
_UNSEEN = "an unseen phrasing"
_SIGNS = ("+ +", "+ -", "- +", "- -")


class Thinking:
    """`What is 12 + 5 - 8?` and `What is 23 * 47?`, with the steps in the thought."""

    name = "thinking"

    def __init__(self, phrasings: Phrasings = ASKED) -> None:
        """Three-term sums of up to three digits, products of up to two."""
        self.phrasings = phrasings
        sums = [f"{signs}, {digits} digits" for signs in _SIGNS for digits in (1, 2, 3)]
        self.shapes = (*sums, "2 x 1 digits", "1 x 2 digits", "2 x 2 digits")
        self.unseen = (_UNSEEN,)

    def make(self, shape: str, dice: random.Random) -> Problem:
        """An expression, its steps and its value."""
        unseen = shape == _UNSEEN
        kind = dice.choice(self.shapes) if unseen else shape
        expression, steps, value = _product(kind, dice) if " x " in kind else _sum(kind, dice)
        asked = self.phrasings.draw(dice, unseen=unseen).format(e=expression)
        thought = "\n".join(steps)
        return Problem(asked, str(value), shape, key=expression, thought=thought)

    def right(self, problem: Problem, text: str) -> bool:
        """The number and nothing else."""
        return text.strip() == problem.answer


def _sum(kind: str, dice: random.Random) -> tuple[str, list[str], int]:
    signs, digits = kind.split(", ")
    first, second = signs.split()
    a, b, c = (number(dice, int(digits[0])) for _ in range(3))
    middle = a + b if first == "+" else a - b
    value = middle + c if second == "+" else middle - c
    steps = [f"{a}{first}{b}={middle}", f"{middle}{second}{c}={value}"]
    return f"{a} {first} {b} {second} {c}", steps, value


def _product(kind: str, dice: random.Random) -> tuple[str, list[str], int]:
    one, other = (number(dice, int(digits)) for digits in re.findall(r"\d", kind))
    steps = [f"{one}*{other}={one * other}"]
    if max(one, other) >= 10:
        # The shorter number is taken whole, the longer one by its digits.
        whole, cut = (one, other) if len(str(other)) >= len(str(one)) else (other, one)
        tens, ones = cut // 10 * 10, cut % 10
        steps = [f"{whole}*{tens}={whole * tens}", f"{whole}*{ones}={whole * ones}"]
        steps.append(f"{whole * tens}+{whole * ones}={one * other}")
    return f"{one} * {other}", steps, one * other
