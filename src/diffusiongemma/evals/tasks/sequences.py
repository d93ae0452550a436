"""Sorting numbers, and spelling words backwards."""

import random
import string

from diffusiongemma.evals.task import Problem
from diffusiongemma.evals.tasks.words import Phrasings, word

UP = Phrasings(
    (
        *("Sort: {n}", "Sort {n}", "Sort ascending: {n}", "Order: {n}", "Sort up: {n}"),
        *("Put in order: {n}", "Sort these: {n}", "{n} in order"),
    ),
    ("Please sort: {n}",),
)
DOWN = Phrasings(
    (
        *("Sort descending: {n}", "Sort down: {n}", "Order descending: {n}"),
        *("Sort {n} descending", "Put in descending order: {n}", "Sort these descending: {n}"),
    ),
    ("Please sort descending: {n}",),
)
BACK = Phrasings(
    (
        *(
            "Reverse: {w}",
            "Reverse {w}",
            "{w} backwards",
            "Spell {w} backwards",
            "Reverse this: {w}",
        ),
        *("What is {w} backwards?", "Turn around: {w}"),
    ),
    ("Write {w} backwards.",),
)
KINDS = ("one digit", "two digits", "mixed", "repeats")
_UNSEEN = "an unseen phrasing"


def numbers(count: int, kind: str, dice: random.Random) -> list[int]:
    """So many numbers below a hundred, in no order.

    Args:
        count: of them.
        kind: one of `KINDS`; `repeats` has some twice or more often, `mixed` both lengths.
        dice: decides.
    """
    if kind == "one digit":
        return [dice.randint(0, 9) for _ in range(count)]
    if kind == "two digits":
        return [dice.randint(10, 99) for _ in range(count)]
    if kind == "mixed":
        short = dice.randint(1, count - 1)
        found = [dice.randint(0, 9) if n < short else dice.randint(10, 99) for n in range(count)]
        dice.shuffle(found)
        return found
    pool = [dice.randint(0, 99) for _ in range(dice.randint(1, count - 1))]
    return [dice.choice(pool) for _ in range(count)]


def shown(found: list[int]) -> str:
    """With spaces between them."""
    return " ".join(map(str, found))


class Sorting:
    """`Sort: 7 30 9 1`"""

    name = "sorting"

    def __init__(self, up: Phrasings = UP, down: Phrasings | None = DOWN) -> None:
        """Phrasings of both directions; None for ascending only."""
        self.phrasings = {"up": up} | ({} if down is None else {"down": down})
        self.kinds = {
            f"{count}, {kind}, {way}": (count, kind, way)
            for way in self.phrasings
            for count in range(3, 9)
            for kind in KINDS
        }
        self.shapes = tuple(self.kinds)
        self.unseen = (_UNSEEN,) if up.unseen else ()

    def make(self, shape: str, dice: random.Random) -> Problem:
        """Three to eight numbers below a hundred."""
        unseen = shape == _UNSEEN
        count, kind, way = dice.choice(list(self.kinds.values())) if unseen else self.kinds[shape]
        found = numbers(count, kind, dice)
        asked = self.phrasings[way].draw(dice, unseen=unseen).format(n=shown(found))
        answer = shown(sorted(found, reverse=way == "down"))
        return Problem(asked, answer, shape, key=UP.taught[0].format(n=shown(found)))

    def right(self, problem: Problem, text: str) -> bool:
        """The same numbers in order, spaces between them."""
        return text.strip() == problem.answer


class Reversing:
    """`Reverse: lantern`"""

    name = "reversing"
    _LENGTHS = ((3, 5), (6, 8), (9, 12), (13, 16))
    _KINDS = ("letters", "spoken", "Capital", "CAPITALS", "few letters")

    def __init__(self, phrasings: Phrasings = BACK, kinds: tuple[str, ...] = _KINDS) -> None:
        """Words of 3 to 16 letters, of these kinds."""
        self.phrasings = phrasings
        self.kinds = {
            f"{least} to {most}, {kind}": (least, most, kind)
            for least, most in self._LENGTHS
            for kind in kinds
        }
        self.shapes = tuple(self.kinds)
        self.unseen = (_UNSEEN,) if phrasings.unseen else ()

    def make(self, shape: str, dice: random.Random) -> Problem:
        """A word of the shape's length and letters."""
        unseen = shape == _UNSEEN
        least, most, kind = dice.choice(list(self.kinds.values())) if unseen else self.kinds[shape]
        if kind == "letters":
            said = "".join(dice.choices(string.ascii_lowercase, k=dice.randint(least, most)))
        elif kind == "few letters":  # twins side by side, where a place is easily lost
            few = dice.sample(string.ascii_lowercase, dice.randint(1, 3))
            said = "".join(dice.choices(few, k=dice.randint(least, most)))
        else:
            said = word(dice, least, most)
            said = {"Capital": said.capitalize(), "CAPITALS": said.upper()}.get(kind, said)
        asked = self.phrasings.draw(dice, unseen=unseen).format(w=said)
        return Problem(asked, said[::-1], shape, key=BACK.taught[0].format(w=said))

    def right(self, problem: Problem, text: str) -> bool:
        """The letters from the last to the first."""
        return text.strip() == problem.answer
