"""Tool calls as the model writes them: as the template does, and with its slips."""

import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongemma.dialog import calls
from diffusiongemma.dialog.calls import QUOTE, ToolCall, read_calls
from diffusiongemma.dialog.template import Template

Q = QUOTE

# How the model's own template writes a call that was made: keys as they are, whatever they hold.
WRITTEN = Template("""
{%- macro value(x) -%}
    {%- if x is string -%}
        {{- '<|"|>' + x + '<|"|>' -}}
    {%- elif x is boolean -%}
        {{- 'true' if x else 'false' -}}
    {%- elif x is none -%}
        {{- nothing -}}
    {%- elif x is mapping -%}
        {{- '{' -}}
        {%- for key in x -%}
            {{- key + ':' + value(x[key]) -}}{{- ',' if not loop.last -}}
        {%- endfor -%}
        {{- '}' -}}
    {%- elif x is iterable -%}
        {{- '[' -}}
        {%- for one in x -%}
            {{- value(one) -}}{{- ',' if not loop.last -}}
        {%- endfor -%}
        {{- ']' -}}
    {%- else -%}
        {{- x -}}
    {%- endif -%}
{%- endmacro -%}
{{- 'call:' + name + value(arguments) -}}
""")


def is_key(text: str) -> bool:
    """Whether a key can be told from what stands around it."""
    return text == text.strip() and not set(text) & set(":=,{}[]()<>\"'\n")


NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,8}", fullmatch=True)
KEYS = NAMES | st.text(max_size=8).filter(is_key)
SYNTAX = ['<|"', "|>", '"', "'", ",", "}", "{", "]", "[", ":", "b:1", "call:f{", " ", "\n", "="]
TEXTS = st.text() | st.lists(st.sampled_from(SYNTAX)).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS.filter(lambda text: Q not in text),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
NULLS = st.sampled_from(["null", "None"])  # later templates, and earlier ones


@given(name=NAMES, arguments=st.dictionaries(KEYS, VALUES, max_size=4), nothing=NULLS)
@settings(deadline=None)
def test_what_the_template_writes_is_read_back(
    name: str, arguments: dict[str, object], nothing: str
) -> None:
    body = WRITTEN.render({"name": name, "arguments": arguments, "nothing": nothing})
    (call,) = read_calls(body)
    assert call.name == name
    assert json.dumps(call.arguments) == json.dumps(arguments)  # 1, 1.0 and True are not the same


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ("call:f{}", {}),
        (" call:f { } ", {}),
        ("call:f{a:1,b:-2.5e3,c:true,d:null}", {"a": 1, "b": -2500.0, "c": True, "d": None}),
        (f"call:f{{a:{Q}x, y: {{{Q} , b : [ 1 , {Q}q{Q} ] }}", {"a": "x, y: {", "b": [1, "q"]}),
        (f"call:f{{a:{Q}{Q}}}", {"a": ""}),
        ("call:f{first name:1,:2}", {"first name": 1, "": 2}),
        # brackets and colons
        (f"call:f(command:{Q}ls -a{Q})", {"command": "ls -a"}),
        (f"call:f(command={Q}ls -a{Q}, timeout=5)", {"command": "ls -a", "timeout": 5}),
        ("call:f(a=g(x), b=2)", {"a": "g(x)", "b": 2}),
        ('call:f( {"a": 1} )', {"a": 1}),
        ("call:f{a=1,b:2}}", {"a": 1, "b": 2}),
        # heads
        (f":f{{q:{Q}x{Q}}}", {"q": "x"}),
        (f"f{{q:{Q}x{Q}}}", {"q": "x"}),
        ("call f{}", {}),
        ("call:call:f:{}", {}),
        # commas
        (f"call:f{{command:{Q}look{Q}angle:90}}", {"command": "look", "angle": 90}),
        ('call:f{a:"x"b:{c:1}d:[2]e:3}', {"a": "x", "b": {"c": 1}, "d": [2], "e": 3}),
        (f"call:f{{a:[{Q}x{Q}{Q}y{Q}],b:[{{c:1}}{{d:2}}]}}", {"a": ["x", "y"],
            "b": [{"c": 1}, {"d": 2}]}),
        ("call:f{unit:celsius,}", {"unit": "celsius"}),
        ("call:f{a:1,,b:[1,]}", {"a": 1, "b": [1]}),
        # strings
        ('call:f{"a": "b\\n\\"c\\"", \'d\': \'e\'}', {"a": 'b\n"c"', "d": "e"}),
        ('call:f{a:["x",\'y\'],o:{"m": "fast }"}}', {"a": ["x", "y"], "o": {"m": "fast }"}}),
        ('call:f{a:"\\ud800!"}', {"a": "\ufffd!"}),
        (f"call:f{{q:Paris, France{Q},limit:5}}", {"q": "Paris, France", "limit": 5}),
        (f"call:f{{q:word,r:{Q}x{Q}}}", {"q": "word", "r": "x"}),
        (f"call:f{{{Q}a{Q}:1}}", {"a": 1}),
        # quotation marks within them
        (f"call:f{{code:{Q}g({Q}a{Q}, 1){Q},n:2}}", {"code": 'g("a", 1)', "n": 2}),
        (f"call:f{{code:{Q}run({Q}ls{Q}, shell=True){Q}}}", {"code": 'run("ls", shell=True)'}),
        (f"call:f{{code:{Q}d = {{{Q}a{Q}:1, {Q}b{Q}:2}}{Q},n:1}}", {"code": 'd = {"a":1, "b":2}',
            "n": 1}),
        (f"call:f{{code:{Q}x = {{{Q}a{Q}}} foo({Q}b{Q}){Q}}}", {"code": 'x = {"a"} foo("b")'}),
        (f"call:f{{a:{Q}Say {Q}no{Q}, then left: x{Q}}}", {"a": 'Say "no", then left: x'}),
        # what is no number of JSON, and Python's words
        ("call:f{a:01234,b:-0,c:+1,d:1.,e:.5}", {"a": "01234", "b": 0, "c": "+1", "d": "1.",
            "e": ".5"}),
        ("call:f{a:1e999,b:NaN,c:٣,d:1_000}", {"a": "1e999", "b": "NaN", "c": "٣", "d": "1_000"}),
        ("call:f{a:" + "9" * 9999 + "}", {"a": "9" * 9999}),
        ("call:f{a:True,b:[False,None]}", {"a": True, "b": [False, None]}),
    ],
)  # fmt: skip
def test_calls(body: str, arguments: dict[str, object]) -> None:
    (call,) = read_calls(body)
    assert call.name == "f"
    assert json.dumps(call.arguments) == json.dumps(arguments)


def test_several_calls() -> None:
    first, second = ToolCall("a", {"x": 1}), ToolCall("b", {"y": "2"})
    for body in (
        f"call:a{{x:1}}call:b{{y:{Q}2{Q}}}",
        f"a{{x:1}}:b{{y:{Q}2{Q}}}",
        f"call:a(x:1)\ncall:b(y:{Q}2{Q})",
        f"call:a{{x:1}}, call:b{{y:{Q}2{Q}}};",
    ):
        assert read_calls(body) == [first, second]
    # The string must end with the call that it stands in.
    assert read_calls(f"call:b{{y:{Q}2{Q}}}call:b{{y:{Q}2{Q}}}") == [second, second]


def test_names_may_have_dots_and_colons() -> None:
    assert read_calls("call:files:read.all{}") == [ToolCall("files:read.all", {})]
    assert read_calls("call:call{}") == [ToolCall("call", {})]
    assert read_calls("callback{}") == [ToolCall("callback", {})]


@pytest.mark.parametrize(
    "body",
    [
        "", "call:", "call:f", "call{}", "call {}", "call:{}", "call: {}", "f", "call:f{",
        "call:f{a", "call:f{a:", "call:f{a:}", f"call:f{{a:{Q}x", f"call:f{{a:{Q}x}}",
        "call:f{a:[1}", "call:f{a:1 b:{}", "call:f{} and more", "call:f{,}", "call:f{a:]}",
        "call:f(a:1", "call:f(1)", "call:f({a:1}", "call:f{a:[1]:2}", "I call f{}",
        "call:f{}call:g",
        "call:f{a:" + "[" * 10_000, "call:f{a:" + "{b:" * 9999,
    ],
)  # fmt: skip
def test_no_call(body: str) -> None:
    assert read_calls(body) == []


PIECES = st.sampled_from([Q, *"a1:=,{}[]()\"' \n<|>-\\", "call:", "f", "true", "b c", "é"])


@given(start=st.sampled_from(["", "call:f{", "call:f(a=", "call:f{a:" + Q]), rest=st.lists(PIECES))
@settings(max_examples=300, deadline=None)
def test_never_crashes(start: str, rest: list[str]) -> None:
    for call in read_calls(start + "".join(rest)):
        json.dumps(call.arguments, allow_nan=False).encode()


SHAPES = [
    ("call:f{", "a:b c,", "}" + Q, ""),
    ("call:f{", "a:b c,", "x" + Q, " " * 200),
    ("call:f{a:" + Q, Q + ",a ", "", ""),
    ("call:f{a:" + Q, "x" + Q + "}", "", ""),
    ("call:f{a:" + Q, Q + "}call", "", ""),
    ("call:f{a:" + Q, Q + "b c ", "", ""),
    ("call:f{a:[", "b c,", "x" + Q + "]}", ""),
    ("call:f{a:", " ", "", ""),
    ("call:f{a", " ", "", ""),
    ("call:f(a:", "(", ")", ""),
    ("call:f(a:", "(b", "", ""),
    ("", "call:", "", ""),
    ("", "a:", "", ""),
    ("", "f{a:1}", "", ""),
    ("call:f{", "a:'x,", "", ""),
    ('call:f{a:"', '\\"', "", ""),
    ("call:f{", Q + "a", "", ""),
]


@pytest.mark.parametrize(("start", "again", "then", "more"), SHAPES)
def test_time_is_linear(start: str, again: str, then: str, more: str) -> None:
    """Ten times the text takes about ten times as long; a square would take a hundred times."""

    def seconds(times: int) -> float:
        body, found = start + again * times + then + more * times, []
        for _ in range(3):
            before = time.process_time()
            read_calls(body)
            found.append(time.process_time() - before)
        return min(found)

    assert seconds(5000) < 40 * max(seconds(500), 2e-4)


def test_no_group_repeats_possessively() -> None:
    """Python 3.11.2, which Debian 12 has, then finds nothing in `call:call{}`."""
    ends = [*calls._ENDS.values(), *calls._BARE.values()]
    found = [one for one in (*vars(calls).values(), *ends) if isinstance(one, re.Pattern)]
    assert len(found) > 10
    assert not [one.pattern for one in found if re.search(r"(?<!\\)\)[*+?]\+", one.pattern)]
