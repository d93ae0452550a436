"""How long a tokenizer's regular expressions may search, told before any of them runs.

The engine behind the `tokenizers` library tries one way through a pattern after the other, and
nothing interrupts it: `(?:a|aa){1,28}b` takes minutes for a page. Knows how patterns are written,
as much of it as tokenizers use, and refuses the rest. Does not know texts.
"""

import re
from dataclasses import dataclass

PAGE = 1 << 12
"""Letters of the text that searches are told for."""

LONGEST = 1 << 16
"""Letters of a pattern; one of DeepSeek's, which lists alphabets, has some thousands."""

_DEEPEST = 20  # of brackets within brackets
_COUNTED = re.compile(r"\{([0-9]*)(,?)([0-9]*)\}")
_DIGITS = 6  # of a count
_OPENINGS = ("?:", "?>", "?=", "?!", "?<=", "?<!", "?i:", "?-i:", "?m:", "?-mix:", "?i-mx:")
_LOOKS = ("?=", "?!", "?<=", "?<!", "?>")  # once they are through, there is no other way
_LETTERS = frozenset("nrtfvaedDwWsShHbBAzZGXRN")


@dataclass(frozen=True, slots=True)
class _Part:
    """Of a pattern.

    Attributes:
        ways: in which it may match from one place, at most.
        first: ways that are tried within it until it matches or cannot.
        every: the same until it has matched in all ways, as what comes after it failed each time.
        fails: whether it may match in no way.
    """

    ways: float
    first: float
    every: float
    fails: bool


_ONE = _Part(1, 1, 1, True)


class PatternError(Exception):
    """A pattern that is too slow, or of which that cannot be told; the phrase says which."""


def work(pattern: str) -> float:
    """Ways that may be tried from one letter of a page, at most.

    Raises:
        PatternError: it is written in a way that no tokenizer needs.
    """
    if len(pattern) > LONGEST:
        raise PatternError(f"has {len(pattern):,} letters")
    return _Reader(pattern).whole().first


class _Reader:
    """Reads a pattern from left to right."""

    def __init__(self, pattern: str) -> None:
        self._text, self._at = pattern, 0

    def whole(self) -> _Part:
        part = self._choice(0)
        if self._at < len(self._text):
            raise PatternError("has a bracket that is never opened")
        return part

    def _next(self, *words: str) -> str:
        """The first of these words that stands here, which is passed; else an empty one."""
        for word in words:
            if self._text.startswith(word, self._at):
                self._at += len(word)
                return word
        return ""

    def _letter(self) -> str:
        if self._at >= len(self._text):
            raise PatternError("ends too early")
        self._at += 1
        return self._text[self._at - 1]

    def _choice(self, depth: int) -> _Part:
        """One or another."""
        parts = [self._row(depth)]
        while self._next("|"):
            parts.append(self._row(depth))
        ways, first, every = (
            sum(getattr(part, name) for part in parts) for name in ("ways", "first", "every")
        )
        return _Part(ways, first, every, all(part.fails for part in parts))

    def _row(self, depth: int) -> _Part:
        """One after the other: each way through the first ones leads to what comes next."""
        ways, first, every, fails = 1.0, 1.0, 1.0, False
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            part = self._repeated(depth)
            every += ways * part.every
            # Only if this one fails are those before it tried in other ways.
            first = every if part.fails else first + part.first
            ways, fails = ways * part.ways, fails or part.fails
        return _Part(ways, first, every, fails)

    def _repeated(self, depth: int) -> _Part:
        part = self._one(depth)
        least, most = 1, 1
        if mark := self._next("?", "*", "+"):
            least, most = {"?": (0, 1), "*": (0, PAGE), "+": (1, PAGE)}[mark]
            owned = self._next("?", "+") == "+"  # keeps what it has
        elif found := _COUNTED.match(self._text, self._at):
            self._at, owned = found.end(), False
            lower, comma, upper = found.groups()
            if not lower and not upper:
                raise PatternError("counts without a number")
            if max(len(lower), len(upper)) > _DIGITS:
                raise PatternError("counts too far")
            least = int(lower or 0)
            most = max(least, int(upper) if upper else PAGE if comma else least)
            self._next("?")
        else:
            return part
        if self._next("?", "*", "+") or _COUNTED.match(self._text, self._at):
            raise PatternError("repeats what is repeated")
        if part.ways > 1 and most > 1:
            raise PatternError("repeats what matches in several ways")
        least, most = min(least, PAGE), min(most, PAGE)
        # Letters are passed in no time; what else is repeated is tried anew each time.
        times = 1 if part is _ONE else max(1, most)
        first, every = part.first * times, part.every * times
        if owned:
            return _Part(1, first, first, part.fails and least > 0)
        return _Part(most - least + part.ways, first, every, part.fails and least > 0)

    def _one(self, depth: int) -> _Part:
        """A letter, a class of letters, or what stands in brackets."""
        if self._next("("):
            return self._group(depth + 1)
        letter = self._letter()
        if letter in "*+?":
            raise PatternError("repeats nothing")
        if letter == "[":
            self._class(1)
        elif letter == "\\":
            self._escape()
        return _ONE

    def _group(self, depth: int) -> _Part:
        if depth > _DEEPEST:
            raise PatternError(f"has brackets over {_DEEPEST} deep")
        kind = self._next(*_OPENINGS)
        if not kind and self._next("?"):
            raise PatternError("has a kind of bracket that no tokenizer needs")
        if not kind and self._next("*"):
            raise PatternError("calls something")
        inside = self._choice(depth)
        if not self._next(")"):
            raise PatternError("has a bracket that is never closed")
        if kind in _LOOKS:
            return _Part(1, inside.first, inside.first, True)
        return inside

    def _class(self, depth: int) -> None:
        """Its ways are one, whatever stands in it; only its end has to be found."""
        if depth > _DEEPEST:
            raise PatternError(f"has brackets over {_DEEPEST} deep")
        self._next("^")
        if self._next("]"):  # a letter for some readers, the end for others
            raise PatternError("has a class of letters that begins with its end")
        while (letter := self._letter()) != "]":
            if letter == "\\":
                self._escape()
            elif letter == "[":
                self._class(depth + 1)

    def _escape(self) -> None:
        letter = self._letter()
        if letter in "pPx" and self._next("{"):
            while self._letter() != "}":
                pass
        elif letter.isalnum() and letter not in _LETTERS and letter not in "xu0":
            raise PatternError("looks back at what it matched, or calls itself")
