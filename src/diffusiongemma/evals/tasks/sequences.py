"""Sorting numbers, and spelling words backwards."""

import random
import string

from diffusiongemma.evals.task import Problem


class Sorting:
    """`Sort: 7 30 9 1`"""

    name = "sorting"

    def __init__(self, short: float = 0.1, count: tuple[int, int] = (3, 8)) -> None:
        """So many numbers below a hundred, a share of one digit; 0.1 is every number alike."""
        self.short, self.count = short, count

    def make(self, dice: random.Random) -> Problem:
        """Repeats allowed."""
        numbers = [self._number(dice) for _ in range(dice.randint(*self.count))]
        shown = " ".join(map(str, numbers))
        return Problem(f"Sort: {shown}", " ".join(map(str, sorted(numbers))))

    def _number(self, dice: random.Random) -> int:
        return dice.randint(0, 9) if dice.random() < self.short else dice.randint(10, 99)

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
