"""Records as JSON: taken out of a sentence, and repaired after damage."""

import json
import random

from diffusiongemma.evals.task import Problem

_HEADS = tuple("Ad Bo Ce Da El Fi Gu Ho Ir Ja Ka Li Mo No Ol Pe Qu Ro Sa To Ul Vi".split())  # noqa: SIM905
_TAILS = tuple("a an ben da el fa go hn ia ki la mo na on ra ris sa ta us va".split())  # noqa: SIM905
_CITIES = (
    "Bern",
    "Cusco",
    "Delhi",
    "Fes",
    "Hanoi",
    "Kyiv",
    "Lima",
    "Lyon",
    "Oslo",
    "Paris",
    "Porto",
    "Quito",
    "Riga",
    "Rome",
    "Turin",
    "Zug",
)


def _record(dice: random.Random) -> dict[str, str | int]:
    name = dice.choice(_HEADS) + dice.choice(_TAILS)
    return {"name": name, "age": dice.randint(1, 99), "city": dice.choice(_CITIES)}


def _written(record: dict[str, str | int]) -> str:
    return json.dumps(record, separators=(",", ":"))


def _same(problem: Problem, text: str) -> bool:
    """Equal as JSON, key order and spaces aside."""
    try:
        return json.loads(text) == json.loads(problem.answer)
    except (ValueError, RecursionError):
        return False


class Extraction:
    """`JSON: Ada, 36, lives in Bern.`"""

    name = "extraction"

    def make(self, dice: random.Random) -> Problem:
        """A person in one of four phrasings."""
        record = _record(dice)
        phrasing = dice.choice(
            (
                "{name}, {age}, lives in {city}.",
                "In {city} lives {name}, aged {age}.",
                "{name} is {age} years old and from {city}.",
                "At {age}, {name} moved to {city}.",
            )
        )
        return Problem(f"JSON: {phrasing.format(**record)}", _written(record))

    def right(self, problem: Problem, text: str) -> bool:
        """The same record."""
        return _same(problem, text)


class Repair:
    """`Repair: {"name":"Ada","age":36,"city":"Bern"`"""

    name = "repair"

    def make(self, dice: random.Random) -> Problem:
        """A record with one fault that leaves no doubt what it was."""
        answer = _written(_record(dice))
        return Problem(f"Repair: {self._damage(answer, dice)}", answer)

    def _damage(self, text: str, dice: random.Random) -> str:
        fault = dice.randrange(5)
        if fault == 0:
            return text[: -dice.randint(1, 2)]  # cut off
        if fault == 1:
            return text.replace('"', "'")
        if fault == 2:
            return text[:-1] + ",}"
        quotes = [n for n, letter in enumerate(text) if letter in ('"' if fault == 3 else ",:")]
        gone = dice.choice(quotes)
        return text[:gone] + text[gone + 1 :]

    def right(self, problem: Problem, text: str) -> bool:
        """The same record."""
        return _same(problem, text)
