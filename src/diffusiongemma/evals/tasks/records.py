"""Records as JSON: taken out of a sentence, and repaired after damage."""

import json
import random
from collections.abc import Callable

from diffusiongemma.evals.task import Problem
from diffusiongemma.evals.tasks.words import Phrasings, name

FRAMES = (
    "{name}, {age}, lives in {city}.",
    "In {city} lives {name}, aged {age}.",
    "{name} is {age} years old and from {city}.",
    "At {age}, {name} moved to {city}.",
    "{name} from {city} is {age}.",
    "{name} ({age}), {city}",
    "My name is {name}, I am {age} and live in {city}.",
    "{city}: {name}, {age}",
    "{age} years old, {name} works in {city}.",
    "{name} turned {age} in {city}.",
    "Meet {name} of {city}, who is {age} years old.",
    "name {name}, age {age}, city {city}",
    "There is a {age}-year-old in {city} called {name}.",
    "{name} left {city} at the age of {age}.",
)
UNSEEN = (
    "{name} is from {city} and {age} years old.",
    "Here in {city}, {name} is {age}.",
)
OUT = Phrasings(("JSON: {s}", "As JSON: {s}", "Extract: {s}", "Make JSON: {s}"), ("To JSON: {s}",))
MEND = Phrasings(
    ("Repair: {s}", "Fix: {s}", "Repair this JSON: {s}", "Mend: {s}"), ("Fix this JSON: {s}",)
)
FAULTS = (
    *("cut by one", "cut by two", "single quotes", "comma at the end"),
    *("a quote missing", "a comma or colon missing"),
)
_UNSEEN = "an unseen phrasing"
_OPEN = "names of no list"
Record = dict[str, str | int]

# Names and places that the shipped model was taught.
_HEADS = tuple("Ad Bo Ce Da El Fi Gu Ho Ir Ja Ka Li Mo No Ol Pe Qu Ro Sa To Ul Vi".split())  # noqa: SIM905
_TAILS = tuple("a an ben da el fa go hn ia ki la mo na on ra ris sa ta us va".split())  # noqa: SIM905
_CITIES = tuple(
    "Bern Cusco Delhi Fes Hanoi Kyiv Lima Lyon Oslo Paris Porto Quito Riga Rome Turin Zug".split()  # noqa: SIM905
)


def listed(dice: random.Random) -> Record:
    """A person; names and places are of a list."""
    name = dice.choice(_HEADS) + dice.choice(_TAILS)
    return {"name": name, "age": dice.randint(1, 99), "city": dice.choice(_CITIES)}


def record(dice: random.Random) -> Record:
    """A person; names and places are of no list."""
    city = name(dice, 3, 12)
    if dice.random() < 0.1:
        city = f"{name(dice, 2, 5)} {name(dice, 3, 7)}"
    return {"name": name(dice), "age": dice.randint(1, 99), "city": city}


def written(found: Record) -> str:
    """As JSON without spaces."""
    return json.dumps(found, separators=(",", ":"))


def same(problem: Problem, text: str) -> bool:
    """Equal as JSON, key order and spaces aside."""
    try:
        return json.loads(text) == json.loads(problem.answer)
    except (ValueError, RecursionError):
        return False


class Extraction:
    """`JSON: Ada, 36, lives in Bern.`"""

    name = "extraction"

    def __init__(
        self,
        phrasings: Phrasings = OUT,
        frames: tuple[str, ...] = FRAMES,
        people: Callable[[random.Random], Record] = record,
    ) -> None:
        """Sentences of these frames about such people."""
        self.phrasings, self.shapes, self.people = phrasings, frames, people
        self.unseen = (*UNSEEN, _UNSEEN) if phrasings.unseen else (_OPEN,)

    def make(self, shape: str, dice: random.Random) -> Problem:
        """A person in a sentence."""
        unseen = shape == _UNSEEN
        frame = dice.choice(self.shapes) if unseen or shape == _OPEN else shape
        found = record(dice) if shape == _OPEN else self.people(dice)
        sentence = frame.format(**found)
        asked = self.phrasings.draw(dice, unseen=unseen).format(s=sentence)
        return Problem(asked, written(found), shape, key=OUT.taught[0].format(s=sentence))

    def right(self, problem: Problem, text: str) -> bool:
        """The same record."""
        return same(problem, text)


class Repair:
    """`Repair: {"name":"Ada","age":36,"city":"Bern"`"""

    name = "repair"

    def __init__(
        self, phrasings: Phrasings = MEND, people: Callable[[random.Random], Record] = record
    ) -> None:
        """Records of such people with one fault that leaves no doubt what they were."""
        self.phrasings, self.people = phrasings, people
        self.shapes = FAULTS
        self.unseen = (_UNSEEN,) if phrasings.unseen else (_OPEN,)

    def make(self, shape: str, dice: random.Random) -> Problem:
        """A damaged record."""
        unseen = shape == _UNSEEN
        answer = written(record(dice) if shape == _OPEN else self.people(dice))
        fault = dice.choice(FAULTS) if shape in (_UNSEEN, _OPEN) else shape
        broken = self._damage(answer, fault, dice)
        asked = self.phrasings.draw(dice, unseen=unseen).format(s=broken)
        return Problem(asked, answer, shape, key=MEND.taught[0].format(s=broken))

    def _damage(self, text: str, fault: str, dice: random.Random) -> str:
        if fault.startswith("cut"):
            return text[: -1 if fault == "cut by one" else -2]
        if fault == "single quotes":
            return text.replace('"', "'")
        if fault == "comma at the end":
            return text[:-1] + ",}"
        wanted = '"' if fault == "a quote missing" else ",:"
        gone = dice.choice([n for n, letter in enumerate(text) if letter in wanted])
        return text[:gone] + text[gone + 1 :]

    def right(self, problem: Problem, text: str) -> bool:
        """The same record."""
        return same(problem, text)
