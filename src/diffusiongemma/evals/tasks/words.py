"""Words that nobody listed: strings that can be spoken, of any length; and ways to phrase."""

import random
import string
from collections.abc import Sequence

_ONSETS = tuple(
    "b c d f g h j k l m n p q r s t v w x y z br ch cl cr dr fl fr gl gr kl kr ph pl pr sch sh sl "  # noqa: SIM905
    "sp st str th tr tw wh".split()
)
_VOWELS = tuple("a e i o u a e i o u y ai au ea ee ei ie io oa oo ou ua".split())  # noqa: SIM905
_CODAS = tuple("b d g k l m n p r s t x z ck ll lt nd ng nn nt rd rk rn rt ss st th".split())  # noqa: SIM905
_RANDOM = 0.1  # share of words that nobody could speak, so that no string is out of range


def word(dice: random.Random, shortest: int = 2, longest: int = 10) -> str:
    """Small letters, so many at least and at most; lengths are drawn alike."""
    length = dice.randint(shortest, longest)
    if dice.random() < _RANDOM:
        return "".join(dice.choices(string.ascii_lowercase, k=length))
    made = "" if dice.random() < 0.75 else dice.choice(_VOWELS)
    while len(made) < length:
        made += dice.choice(_ONSETS) + dice.choice(_VOWELS)
        if dice.random() < 0.4:
            made += dice.choice(_CODAS)
    return made[:length]


def name(dice: random.Random, shortest: int = 2, longest: int = 10) -> str:
    """The same with a capital."""
    return word(dice, shortest, longest).capitalize()


class Phrasings:
    """Ways to ask the same.

    Args:
        taught: templates in `str.format`'s spelling; the first is the usual one.
        unseen: templates that are never taught.
    """

    def __init__(self, taught: Sequence[str], unseen: Sequence[str] = ()) -> None:
        self.taught, self.unseen = tuple(taught), tuple(unseen)

    def usual(self) -> "Phrasings":
        """Only the usual one."""
        return Phrasings(self.taught[:1])

    def draw(self, dice: random.Random, *, unseen: bool = False) -> str:
        """A template; the usual one as often as all others together."""
        if unseen:
            return dice.choice(self.unseen)
        if len(self.taught) == 1 or dice.random() < 0.5:
            return self.taught[0]
        return dice.choice(self.taught[1:])
