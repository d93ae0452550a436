"""Tools as users declare them, and calls as past messages hold them."""

import pytest

from diffusiongemma.core.errors import InputError
from diffusiongemma.dialog.calls import ToolCall
from diffusiongemma.dialog.tools import check_calls, check_tools

FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object"}}


def test_declarations_pass() -> None:
    tool = {"type": "function", "function": FUNCTION}
    assert check_tools([tool]) == [tool]
    assert check_tools(None) is None and check_tools([]) is None
    bare = {"type": "function", "function": {"name": "f", "parameters": None}}
    assert check_tools([bare]) == [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize(
    ("tools", "match"),
    [
        ({}, "tools must be a list of declarations, got dict"),
        ("f", "tools must be a list of declarations, got str"),
        ([print], "tool 1 is not a function declaration, got builtin_function_or_method; write"),
        ([{"type": "retrieval"}], "tool 1 is not a function declaration, got type 'retrieval'"),
        ([{"type": "function"}], "tool 1 has no object 'function'; write"),
        ([{"type": "function", "function": {}}], "tool 1 needs a name .*got None; write"),
        ([{"type": "function", "function": {"name": "a b"}}], "got 'a b'"),
        ([{"type": "function", "function": FUNCTION | {"parameters": []}}], "wrong type list"),
        ([{"type": "function", "function": FUNCTION | {"description": 3}}], "wrong type int"),
    ],
)
def test_bad_declarations(tools: object, match: str) -> None:
    with pytest.raises(InputError, match=match):
        check_tools(tools)  # type: ignore[arg-type]


def test_past_calls() -> None:
    calls = [
        ToolCall("f", {"a": 1}),
        {"id": "7", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"function": {"name": "f", "arguments": ""}},
    ]
    found = check_calls(calls, "message 2")
    assert [call["function"]["arguments"] for call in found] == [{"a": 1}, {"a": 1}, {}]
    assert found[1]["id"] == "7" and found[0]["type"] == "function"


@pytest.mark.parametrize(
    ("calls", "match"),
    [
        ({}, "message 2: 'tool_calls' must be a list, got dict"),
        ([{"name": "f"}], "message 2: a tool call must be .*got {'name': 'f'}"),
        ([{"function": {"name": "f", "arguments": "{"}}], "of tool call 'f' are not JSON"),
        ([{"function": {"name": "f", "arguments": "[]"}}], "must be an object, got list"),
    ],
)
def test_bad_past_calls(calls: object, match: str) -> None:
    with pytest.raises(InputError, match=match):
        check_calls(calls, "message 2")
