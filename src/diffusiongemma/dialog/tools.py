"""Tools: what a user declares, what the model calls.

Knows the call syntax of Gemma 4, `call:name{key:value}`, where a string stands between two
`<|"|>` marks, and OpenAI's way of writing declarations and calls. Does not run tools, and does not
render declarations: that is the chat template's work.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusiongemma.core.errors import InputError

QUOTE = '<|"|>'

_MAX_DEPTH = 64
_NAME = re.compile(r"\s*call:\s*([^\s{}<>]+?)\s*(?=\{)")
_SPACE = re.compile(r"\s*")
_KEY = re.compile(r"""\s*(?:<\|"\|>(.+?)<\|"\|>|"([^"]+)"|'([^']+)'|([^\s:{}\[\],<>"']+))\s*:\s*""")
_BARE = re.compile(r"[^,{}\[\]<>]+")
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
_PLAIN = re.compile(r'"(?:[^"\\]|\\.)*"' + r"|'(?:[^'\\]|\\.)*'", re.DOTALL)
_WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}

# What may follow the mark that ends a string. The model also writes `<|"|>` for a quotation mark
# inside a string, so a mark followed by anything else belongs to the text.
_AFTER = r"\s*(?:[,}\]]|\Z)"
_ENDS_IN_OBJECT = re.compile(
    r"""\s*(?:,\s*(?:<\|"\|>)?["']?[^\s:{}\[\],<>"']+["']?(?:<\|"\|>)?\s*:|\}""" + _AFTER + ")"
)
_ENDS_IN_LIST = re.compile(
    r"""\s*(?:,\s*(?:<\|"\|>|["'{\[]|-?\d|true|false|null)|\]""" + _AFTER + ")"
)


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


def parse_call(body: str) -> ToolCall | None:
    """Read what stands between `<|tool_call>` and `<tool_call|>`; None where it is no call.

    Slips that the model is known to make are forgiven: strings in ordinary quotation marks, a
    string whose opening mark is missing, bare words, a trailing comma.
    """
    head = _NAME.match(body)
    if head is None:
        return None
    reader = _Reader(body)
    try:
        arguments, end = reader.object(head.end(), 0)
    except (_MalformedError, ValueError):  # ValueError: a number of thousands of digits
        return None
    return None if body[end:].strip() else ToolCall(head[1], arguments)


class _Reader:
    """A recursive reader; every method takes a position and gives a value and the next position."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._quote = (-1, -1, False)  # asked from where; where the next mark is; does it open

    def next_quote(self, at: int) -> tuple[int, bool]:
        """Where the next string mark is, or -1, and whether it stands where a string begins."""
        asked, close, opens = self._quote
        if not 0 <= asked <= at or 0 <= close < at:  # else the last answer still holds
            close, opens = self.text.find(QUOTE, at), False
            before = close - 1
            while before >= at and self.text[before].isspace():
                before -= 1
            if close >= 0 and before >= at:
                opens = self.text[before] in ":[,{"
            self._quote = (at, close, opens)
        return close, opens

    def skip(self, at: int) -> int:
        match = _SPACE.match(self.text, at)
        return match.end() if match else at

    def value(self, at: int, ends: re.Pattern[str], depth: int) -> tuple[Any, int]:
        if depth > _MAX_DEPTH:
            raise _MalformedError
        if self.text.startswith(QUOTE, at):
            return self.string(at + len(QUOTE), ends)
        mark = self.text[at : at + 1]
        if mark == "{":
            return self.object(at, depth)
        if mark == "[":
            return self.list(at, depth)
        if mark in ('"', "'") and (plain := _PLAIN.match(self.text, at)):
            return _unquote(plain[0]), plain.end()
        return self.bare(at, ends)

    def string(self, at: int, ends: re.Pattern[str]) -> tuple[str, int]:
        close = self.text.find(QUOTE, at)
        while close >= 0:
            if ends.match(self.text, close + len(QUOTE)):
                return self.text[at:close].replace(QUOTE, '"'), close + len(QUOTE)
            close = self.text.find(QUOTE, close + 1)
        raise _MalformedError

    def bare(self, at: int, ends: re.Pattern[str]) -> tuple[Any, int]:
        match = _BARE.match(self.text, at)
        word = match[0].strip() if match else ""
        stop = match.end() if match else at
        whole = match is not None and self.text[stop : stop + 1] in (",", "}", "]")
        if whole and word in _WORDS:
            return _WORDS[word], stop
        if whole and _NUMBER.fullmatch(word):
            return _number(word), stop
        # A string without its opening mark: its closing mark comes before any opening one.
        close, opens = self.next_quote(at)
        if close >= 0 and not opens and ends.match(self.text, close + len(QUOTE)):
            return self.text[at:close], close + len(QUOTE)
        if whole and word:
            return word, stop
        raise _MalformedError

    def object(self, at: int, depth: int) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}
        at = self.skip(at + 1)
        while not self.text.startswith("}", at):
            key = _KEY.match(self.text, at)
            if key is None:
                raise _MalformedError
            name = next(group for group in key.groups() if group is not None)
            found[name], at = self.value(key.end(), _ENDS_IN_OBJECT, depth + 1)
            at = self.border(at, "}")
        return found, at + 1

    def list(self, at: int, depth: int) -> tuple[list[Any], int]:
        found: list[Any] = []
        at = self.skip(at + 1)
        while not self.text.startswith("]", at):
            item, at = self.value(at, _ENDS_IN_LIST, depth + 1)
            found.append(item)
            at = self.border(at, "]")
        return found, at + 1

    def border(self, at: int, close: str) -> int:
        """Step over a comma, or stay before the closing mark."""
        at = self.skip(at)
        if self.text.startswith(",", at):
            return self.skip(at + 1)
        if self.text.startswith(close, at):
            return at
        raise _MalformedError


def _number(word: str) -> int | float | str:
    if re.fullmatch(r"-?\d+", word):
        return int(word)
    value = float(word)
    return value if math.isfinite(value) else word  # JSON has no infinity


def _unquote(text: str) -> str:
    if text[0] == '"':
        try:
            return json.loads(text, strict=False)
        except ValueError:
            return text[1:-1]
    return text[1:-1].replace("\\'", "'")


def check_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Declarations in OpenAI's shape, found to be well formed; None where there are none.

    Raises:
        InputError: one of them is not
            `{'type': 'function', 'function': {'name', 'description', 'parameters'}}`.
    """
    if tools is None:
        return None
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Iterable):
        raise InputError(f"tools must be a list of declarations, got {type(tools).__name__}")
    return [_check_tool(tool, number) for number, tool in enumerate(tools, start=1)] or None


def _check_tool(tool: Any, number: int) -> dict[str, Any]:
    shape = "write {'type': 'function', 'function': {'name': ..., 'parameters': {...}}}."
    if not isinstance(tool, Mapping) or tool.get("type") != "function":
        got = f"type {tool.get('type')!r}" if isinstance(tool, Mapping) else type(tool).__name__
        raise InputError(f"tool {number} is not a function declaration, got {got}; {shape}")
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise InputError(f"tool {number} has no object 'function'; {shape}")
    name = function.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[^\s{}<>:]+", name):
        raise InputError(
            f"tool {number} needs a name without spaces and marks, got {name!r}; {shape}"
        )
    for key, kind in (("description", str), ("parameters", Mapping)):
        if function.get(key) is not None and not isinstance(function[key], kind):
            raise InputError(
                f"'{key}' of tool '{name}' has the wrong type {type(function[key]).__name__}; "
                f"{shape}"
            )
    kept = {key: value for key, value in function.items() if value is not None}
    return {**tool, "function": kept}


def check_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """The `tool_calls` of a past message, with arguments as objects.

    Takes `ToolCall` objects, or OpenAI's dictionaries whose arguments may be a JSON text.
    """
    if not isinstance(calls, list | tuple):
        raise InputError(f"{where}: 'tool_calls' must be a list, got {type(calls).__name__}")
    return [_check_call(call, where) for call in calls]


def _check_call(call: Any, where: str) -> dict[str, Any]:
    if isinstance(call, ToolCall):
        call = {"function": {"name": call.name, "arguments": call.arguments}}
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InputError(
            f"{where}: a tool call must be "
            "{'function': {'name': ..., 'arguments': {...}}}, "
            f"got {call!r:.80}"
        )
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{where}: arguments of tool call '{function['name']}' are not JSON ({error}); "
                "pass an object or its JSON text"
            ) from error
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise InputError(
            f"{where}: arguments of tool call '{function['name']}' must be an object, "
            f"got {type(arguments).__name__}"
        )
    return {**call, "type": "function", "function": {**function, "arguments": dict(arguments)}}
