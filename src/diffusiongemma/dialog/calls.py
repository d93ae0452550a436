"""Tool calls as the model writes them.

Knows the syntax of Gemma 4, `call:name{key:value}`, where a string stands between two `<|"|>`
marks, and the slips that the model is known to make. Does not know which tools there are, and does
not run them.

What can be read in one way only is read, whatever it lacks:

| written | read as |
|---|---|
| `call:f(a:1)`, `call:f({a:1})` | `call:f{a:1}` |
| `:f{a:1}`, `f{a:1}`, `call f{a:1}` | the same |
| `{a=1}`, `{a:1,}`, `{"a": 1}` | `{a:1}` |
| `{a:<|"|>x<|"|>b:1}`, no comma after a string, a list or an object | two arguments |
| `{a:"x"}`, `{a:'x'}`, `{a:x}`, `{a:x<|"|>}` | the text `x` |
| `<|"|>` within a string | a quotation mark |
| `True`, `False`, `None` | `true`, `false`, `null` |
| `01`, `1e999`, more digits than Python reads | a text: it is no number of JSON |
| `f{a:1}g{}`, `f{a:1}}` | two calls; one call |

Time is linear in the text: no place is looked at anew for every place before it.
"""

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

QUOTE = '<|"|>'

_MAX_DEPTH = 64
_Q = re.escape(QUOTE)
# Possessive wherever possible, so that what fails fails in one look. Not where a group repeats:
# Python 3.11.2 gets that wrong. There a look ahead, which is never gone back into, finds what is
# then taken as a whole.
_PREFIX = r"(?:call(?:\s*+:\s*+|\s++)|:\s*+)"
_PREFIXES = rf"(?=(?P<prefixes>{_PREFIX}*))(?P=prefixes)"
_NAME = r"""(?P<name>[^\s{}()\[\]<>"',=]++)\s*+(?=[{(])"""
_BARE_KEY = r"""[^\s:=,{}\[\]()<>"'](?:[^\n:=,{}\[\]<>]*[^\s:=,{}\[\]<>])?"""
_SHORT_KEY = r"""[^\s:=,{}\[\]()<>"']++"""
_VALUE = rf"""(?:{_Q}|["'{{\[]|-?[0-9]|(?:true|false|null|True|False|None)\b)"""

_HEAD = re.compile(rf"\s*+{_PREFIXES}{_NAME}")
_BETWEEN = re.compile(r"[\s,;})\]]*+")
_COMMAS = re.compile(r"[\s,]*+")
_KEY = re.compile(
    rf"""(?:{_Q}((?:(?!{_Q}).)+){_Q}|"([^"]++)"|'([^']++)'|({_BARE_KEY})|)\s*+([:=])\s*+"""
)
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*+)(\.[0-9]++)?([eE][+-]?[0-9]++)?")
_PLAIN = re.compile(r'"(?:[^"\\]|\\.)*"' + r"|'(?:[^'\\]|\\.)*'", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}

# A text without marks, by what closes the container it stands in: parentheses mean nothing within
# braces.
_BARE = {
    "}": re.compile(r"[^,{}\[\]<>]++"),
    "]": re.compile(r"[^,{}\[\]<>]++"),
    ")": re.compile(r"(?:[^,{}\[\]<>()]|\([^,{}\[\]<>()]*+\))+"),
}


def _ends(close: str, colon: str) -> re.Pattern[str]:
    """What may follow the mark that ends a string; after any other it is a quotation mark.

    Args:
        close: what closes the container that the string stands in.
        colon: what may stand between keys and values. A string whose own key has `:` may hold
            code, in which `=` means nothing.
    """
    end = rf",?\s*+{re.escape(close)}\s*+(?:[,;}}\])]|\Z|(?={_PREFIX}){_PREFIXES}{_NAME})"
    if close == "]":
        return re.compile(rf"\s*+(?:,\s*+{_VALUE}|{_Q}|[{{\[]|{end})")
    key = rf"""(?:{_Q})?["']?{_SHORT_KEY}["']?(?:{_Q})?\s*+{colon}"""
    # Where a key may be any words, or the comma is missing, a value has to follow.
    words = rf"(?:{_BARE_KEY})?\s*+{colon}\s*+{_VALUE}"
    joined = rf"{_SHORT_KEY}\s*+{colon}\s*+{_VALUE}"
    return re.compile(rf"{joined}|\s*+(?:,\s*+(?:{key}|{words})|{end})")


_ENDS = {
    (close, colon): _ends(close, "[:=]" if colon == "=" else ":")
    for close in _BARE
    for colon in ":="
}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that the model asks for.

    Attributes:
        name: the tool.
        arguments: what it is called with; JSON values.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


class _MalformedError(Exception):
    """The text is not a call; never leaves this file."""


def read_calls(body: str) -> list[ToolCall]:
    """The calls that stand between `<|tool_call>` and `<tool_call|>`; none if any is malformed."""
    reader, calls, at = _Reader(body), list[ToolCall](), 0
    try:
        while at < len(body):
            head = _HEAD.match(body, at)
            name = head["name"].rstrip(":") if head else ""
            if head is None or not name or head[0].strip() == "call":
                return []
            arguments, at = reader.arguments(head.end())
            calls.append(ToolCall(name, arguments))
            at = _past(_BETWEEN, body, at)
    except _MalformedError:
        return []
    return calls


def _past(what: re.Pattern[str], text: str, at: int) -> int:
    match = what.match(text, at)
    return match.end() if match else at


class _Inside(NamedTuple):
    """Where a value stands: what closes its container, and what stands before it."""

    close: str
    colon: str = ":"


class _Reader:
    """A recursive reader; every method takes a position and gives a value and the next position."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._quote = (-1, -1, False)  # asked from where; where the next mark is; does it open
        self._ends: dict[tuple[int, _Inside], bool] = {}

    def arguments(self, at: int) -> tuple[dict[str, Any], int]:
        """Of a call, from its opening bracket on."""
        if self.text[at] == "{":
            return self.object(at, "}", 0)
        inside = self.space(at + 1)
        if not self.text.startswith("{", inside):
            return self.object(at, ")", 0)
        found, at = self.object(inside, "}", 1)
        at = self.space(at)
        if not self.text.startswith(")", at):
            raise _MalformedError
        return found, at + 1

    def space(self, at: int) -> int:
        while self.text[at : at + 1].isspace():
            at += 1
        return at

    def value(self, at: int, inside: _Inside, depth: int) -> tuple[Any, int]:
        if depth > _MAX_DEPTH:
            raise _MalformedError
        if self.text.startswith(QUOTE, at):
            return self.string(at + len(QUOTE), inside)
        mark = self.text[at : at + 1]
        if mark == "{":
            return self.object(at, "}", depth)
        if mark == "[":
            return self.list(at, depth)
        if mark in ('"', "'") and (plain := _PLAIN.match(self.text, at)):
            return _unquote(plain[0]), plain.end()
        return self.bare(at, inside)

    def string(self, at: int, inside: _Inside) -> tuple[str, int]:
        close = self.text.find(QUOTE, at)
        while close >= 0:
            if self.ends(close, inside):
                return self.text[at:close].replace(QUOTE, '"'), close + len(QUOTE)
            close = self.text.find(QUOTE, close + 1)
        raise _MalformedError

    def bare(self, at: int, inside: _Inside) -> tuple[Any, int]:
        stop = _past(_BARE[inside.close], self.text, at)
        word = self.text[at:stop].strip()
        whole = self.text[stop : stop + 1] in (",", inside.close)
        if whole and word in _WORDS:
            return _WORDS[word], stop
        if whole and _NUMBER.fullmatch(word):
            return _number(word), stop
        # A string without its opening mark: its closing mark comes before any opening one.
        close, opens = self.next_quote(at)
        if close >= 0 and not opens and self.ends(close, inside):
            return self.text[at:close], close + len(QUOTE)
        if whole and word:
            return word, stop
        raise _MalformedError

    def object(self, at: int, close: str, depth: int) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}
        at, parted = self.space(at + 1), True
        while not self.text.startswith(close, at):
            key = _KEY.match(self.text, at)
            if key is None or not (parted or key.start(5) > at):
                raise _MalformedError
            name = next((group for group in key.groups()[:4] if group is not None), "")
            found[name], at = self.value(key.end(), _Inside(close, key[5]), depth + 1)
            at, parted = self.border(at)
        return found, at + 1

    def list(self, at: int, depth: int) -> tuple[list[Any], int]:
        found: list[Any] = []
        at = self.space(at + 1)
        while not self.text.startswith("]", at):
            item, at = self.value(at, _Inside("]"), depth + 1)
            found.append(item)
            at, _ = self.border(at)
        return found, at + 1

    def border(self, at: int) -> tuple[int, bool]:
        """Step over a comma, if there is one; without it, what follows must make sense alone."""
        after = _past(_COMMAS, self.text, at)
        return after, "," in self.text[at:after]

    def next_quote(self, at: int) -> tuple[int, bool]:
        """Where the next string mark is, or -1, and whether it stands where a string begins."""
        asked, close, opens = self._quote
        if not 0 <= asked <= at or 0 <= close < at:  # else the last answer still holds
            close, opens = self.text.find(QUOTE, at), False
            before = close - 1
            while before >= at and self.text[before].isspace():
                before -= 1
            if close >= 0 and before >= at:
                opens = self.text[before] in ":=[,{("
            self._quote = (at, close, opens)
        return close, opens

    def ends(self, close: int, inside: _Inside) -> bool:
        """Whether the string mark at `close` may end a string. Looked at once for each mark."""
        known = self._ends.get((close, inside))
        if known is None:
            found = _ENDS[inside].match(self.text, close + len(QUOTE))
            known = self._ends[close, inside] = found is not None
        return known


def _number(word: str) -> int | float | str:
    try:
        if re.fullmatch(r"-?[0-9]+", word):
            return int(word)
    except ValueError:  # more digits than Python reads
        return word
    value = float(word)
    return value if math.isfinite(value) else word  # JSON has no infinity


def _unquote(text: str) -> str:
    if text[0] == '"':
        try:
            return _SURROGATE.sub("\ufffd", json.loads(text, strict=False))
        except ValueError:
            return text[1:-1]
    return text[1:-1].replace("\\'", "'")
