"""Sorting numbers, and spelling words backwards."""

import random
import string

from diffusiongemma.evals.task import Problem


class Sorting:
    """`Sort: 7 30 9 1`"""

    name = "sorting"

    def make(self, dice: random.Random) -> Problem:
        """Three to eight numbers below a hundred, repeats allowed."""
        numbers = [dice.randint(0, 99) for _ in range(dice.randint(3, 8))]
        shown = " ".join(map(str, numbers))
        return Problem(f"Sort: {shown}", " ".join(map(str, sorted(numbers))))

    def right(self, problem: Problem, text: str) -> bool:
        """The same numbers in order, spaces between them."""
        return text.strip() == problem.answer


class Reversing:
    """`Reverse: lantern`"""

    name = "reversing"

    def make(self, dice: random.Random) -> Problem:
        """Three to sixteen random letters."""
        letters = dice.choices(string.ascii_lowercase, k=dice.randint(3, 16))
        word = "".join(letters)
        return Problem(f"Reverse: {word}", word[::-1])

    def right(self, problem: Problem, text: str) -> bool:
        """The letters from the last to the first."""
        return text.strip() == problem.answer
