"""Tool calls as the model writes them, tools as users declare them."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusiongemma.core.errors import InputError
from diffusiongemma.dialog.tools import ToolCall, check_calls, check_tools, parse_call

Q = '<|"|>'


def write(value: object) -> str:
    """The syntax, from Python values: the other direction of what is tested."""
    if isinstance(value, str):
        return Q + value + Q
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{write(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(write, value)) + "]"
    if value is None:
        return "null"
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,8}", fullmatch=True)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text().filter(lambda text: Q not in text),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(name=KEYS, arguments=st.dictionaries(KEYS, VALUES, max_size=4))
def test_round_trip(name: str, arguments: dict[str, object]) -> None:
    assert parse_call(f"call:{name}{write(arguments)}") == ToolCall(name, arguments)


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ("call:f{}", {}),
        (" call:f { } ", {}),
        ("call:f{a:1,b:-2.5e3,c:true,d:null}", {"a": 1, "b": -2500.0, "c": True, "d": None}),
        (f"call:f{{a:{Q}x, y: {{{Q} , b : [ 1 , {Q}q{Q} ] }}", {"a": "x, y: {", "b": [1, "q"]}),
        (f"call:f{{a:{Q}{Q}}}", {"a": ""}),
        # known slips of the model
        ('call:f{"a": "b\\n\\"c\\"", \'d\': \'e\'}', {"a": 'b\n"c"', "d": "e"}),
        ('call:f{a:["x",\'y\'],o:{"m": "fast }"}}', {"a": ["x", "y"], "o": {"m": "fast }"}}),
        (f"call:f{{q:Paris, France{Q},limit:5}}", {"q": "Paris, France", "limit": 5}),
        (f"call:f{{q:word,r:{Q}x{Q}}}", {"q": "word", "r": "x"}),
        (f"call:f{{code:{Q}g({Q}a{Q}, 1){Q},n:2}}", {"code": 'g("a", 1)', "n": 2}),
        ("call:f{unit:celsius,}", {"unit": "celsius"}),
        (f"call:f{{{Q}a{Q}:1}}", {"a": 1}),
        ("call:f{a:1e999}", {"a": "1e999"}),
    ],
)
def test_calls(body: str, arguments: dict[str, object]) -> None:
    assert parse_call(body) == ToolCall("f", arguments)


def test_names_may_have_dots_and_colons() -> None:
    assert parse_call("call:files:read.all{}") == ToolCall("files:read.all", {})


@pytest.mark.parametrize(
    "body",
    [
        "", "call:", "call:f", "f{}", "call:f{", "call:f{a", "call:f{a:", "call:f{a:}",
        f"call:f{{a:{Q}x", f"call:f{{a:{Q}x}}", "call:f{a:[1}", "call:f{a:1 b:{}",
        "call:f{} and more", "call:f{,}", "call:f{a:]}", "call: {}",
        "call:f{a:" + "[" * 10_000, "call:f{a:" + "9" * 9999 + "}", "call:f{a:" + "{b:" * 9999,
    ],
)  # fmt: skip
def test_no_call(body: str) -> None:
    assert parse_call(body) is None


@given(body=st.text(alphabet="a1:,{}[]\"' \n<|>-", max_size=60))
def test_never_crashes(body: str) -> None:
    parse_call(body)
    parse_call("call:f{a:" + body.replace("<", Q))


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


@pytest.mark.parametrize(
    "body",
    [
        "call:f{" + "a:b c," * 30_000 + "}" + Q,
        "call:f{a:" + Q + (Q + ",a ") * 30_000,
        "call:f{a:" + Q + ("x" + Q + "}") * 30_000,
        "call:f{a:[" + "b c," * 30_000 + "x" + Q + "]}",
        "call:f{a:" + " " * 100_000,
    ],
    ids=range(5),
)
def test_no_body_takes_long(body: str) -> None:
    start = time.monotonic()
    parse_call(body)
    assert time.monotonic() - start < 5  # a square would need a minute
