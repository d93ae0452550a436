"""Second questions, which mean something only after the first."""

import random

from diffusiongemma.evals.task import Problem
from diffusiongemma.evals.tasks.arithmetic import number
from diffusiongemma.evals.tasks.sequences import DOWN, KINDS, UP, numbers, shown
from diffusiongemma.evals.tasks.words import Phrasings, word

FOLLOWING = {
    "descending": Phrasings(("and now descending", "now descending", "descending", "and down?")),
    "ascending": Phrasings(("and now ascending", "now ascending", "ascending", "and up?")),
    "back": Phrasings(("and back again", "once more", "and reversed again?", "and again")),
    "plus": Phrasings(("plus {n}", "and plus {n}?", "now add {n}", "and {n} more?")),
    "minus": Phrasings(("minus {n}", "and minus {n}?", "now take {n} away", "and {n} less?")),
}


class Turns:
    """`Sort: 7 30 9`, `7 9 30`, `and now descending`."""

    name = "two turns"
    shapes: tuple[str, ...] = tuple(FOLLOWING)
    unseen: tuple[str, ...] = ()

    def make(self, shape: str, dice: random.Random) -> Problem:
        """A question, its answer, and what is asked after it."""
        make = {"descending": self._sorted, "ascending": self._sorted, "back": self._reversed}
        asked, said, answer, more = make.get(shape, self._reckoned)(shape, dice)
        prompt = FOLLOWING[shape].draw(dice).format(n=more)
        key = f"{asked}/{shape}/{more}"
        return Problem(prompt, answer, shape, key=key, before=((asked, said),))

    def right(self, problem: Problem, text: str) -> bool:
        """Exactly the answer."""
        return text.strip() == problem.answer

    def _sorted(self, shape: str, dice: random.Random) -> tuple[str, str, str, str]:
        found = numbers(dice.randint(3, 8), dice.choice(KINDS), dice)
        first = (UP if shape == "descending" else DOWN).draw(dice).format(n=shown(found))
        up, down = shown(sorted(found)), shown(sorted(found, reverse=True))
        return (first, up, down, "") if shape == "descending" else (first, down, up, "")

    def _reversed(self, shape: str, dice: random.Random) -> tuple[str, str, str, str]:
        said = word(dice, 3, 12)
        return f"Reverse: {said}", said[::-1], said, ""

    def _reckoned(self, shape: str, dice: random.Random) -> tuple[str, str, str, str]:
        a, b, c = (number(dice, dice.randint(1, 3)) for _ in range(3))
        value = a + b + c if shape == "plus" else a + b - c
        return f"What is {a} + {b}?", str(a + b), str(value), str(c)
