"""Replies in the real vocabulary: read as transformers reads them, streamed whatever the canvases.

transformers reads a reply by a description of its marks. The one used here is that of the package
which also carries the templates; it mirrors the one that Gemma 4's repositories ship.
"""

import ast
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffusiongemma.dialog.chat import Chat
from diffusiongemma.dialog.reply import Parsed, ReplyStream
from real_files import GENERATIONS, TEMPLATES, fetch
from real_talks import TALKS, call, says, user

ChatOf = Callable[[str], Chat]

Q = '<|"|>'
CALL = "<|tool_call>call:{}<tool_call|>"
REPLIES = [
    "Hello.",
    "Hello.<turn|>",
    "Two\nlines, **bold**\n\n- one\n- two<turn|><eos><eos>",
    "日本語 👩‍👩‍👧‍👦 e\u0301 \U00020000<turn|>",
    "<|channel>thought\n7 * 6 = 42.\n<channel|>It is 42.<turn|>",
    "<|channel>thought\n<channel|>It is 42.<turn|>",
    "<|channel>thought\nOne line.\n\nAnother: {a:1}, call:f{{}}\n<channel|>\n\nDone.<turn|>",
    "<|channel>thought\nI need the weather.\n<channel|>"
    + CALL.format(f"get_weather{{city:{Q}Oslo{Q}}}"),
    CALL.format("now{}"),
    CALL.format("now{}") + "<|tool_response>",
    CALL.format(f"get_weather{{city:{Q}São Paulo 😀{Q}}}") + "<turn|>",
    CALL.format(f"get_weather{{city:{Q}Oslo{Q}}}") + CALL.format(f"get_weather{{city:{Q}Ulm{Q}}}"),
    "I look.\n" + CALL.format("now{}") + "<|tool_response>",
    CALL.format("f{a:1,b:-2.5,c:1e-05,d:true,e:false,g:null,h:[],i:{}}"),
    CALL.format(f"f{{a:[1,[2,{Q}x{Q}],{{b:{Q}{Q}}}],c:{{d:{{e:[true,null]}}}}}}"),
    CALL.format(f'f{{a:{Q}{{b:1}}, "c": [x] \\n, it\'s: 100%{Q},z:{Q}line\nline{Q}}}'),
]
# These write null as Python does, which transformers then cannot read.
WRITES_NONE = {"gemma4_v2", "gemma4_v3", "gemma4", "gemma4_v4"}
# What a prompt holds open or has already closed, before the reply.
PROMPTS = {
    "plain": "<|turn>user\nHi<turn|>\n<|turn>model\n",
    "no thought": "<|turn>user\nHi<turn|>\n<|turn>model\n<|channel>thought\n<channel|>",
}
# Replies to a prompt that ends in an open thought, and what they say.
STILL_THINKING: list[tuple[str, Any]] = [
    (
        "The tool says 212, so bytes.\n<channel|>It has 212 bytes.<turn|>",
        ("The tool says 212, so bytes.", "It has 212 bytes.", []),
    ),
    ("\n<channel|>It has 212 bytes.", (None, "It has 212 bytes.", [])),
    (
        f"Again.\n<channel|>{CALL.format(f'get_weather{{city:{Q}Ulm{Q}}}')}<|tool_response>",
        ("Again.", "", [("get_weather", {"city": "Ulm"})]),
    ),
]


@pytest.fixture(scope="session")
def response_template() -> dict[str, Any]:
    """How transformers is told to read a reply of Gemma 4; data, read without running its file."""
    source = fetch(TEMPLATES)["chat_template_utils.py"].read_text("utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "gemma4_template":
            return ast.literal_eval(node.value)
    raise AssertionError("no gemma4_template")


@pytest.fixture(scope="session")
def reads(theirs: Any, response_template: dict[str, Any]) -> Callable[..., Parsed]:
    """What transformers finds in a reply, as this package says it."""

    def read(reply: list[int], prompt: list[int], name: str = "") -> Any:
        found = theirs.parse_response(reply, response_template, prefix=prompt)
        calls = [call["function"] for call in found.get("tool_calls", [])]
        return (
            found.get("reasoning_content"),
            found.get("content", ""),
            [(call["name"], call["arguments"]) for call in calls],
        )

    return read


def found_by(chat: Chat, reply: list[int], prompt: list[int]) -> Any:
    """The same of ours. transformers strips the text; here it is as it was streamed."""
    parsed = chat.parse(reply, chat.marks.opening(prompt))
    calls = [(call.name, call.arguments) for call in parsed.tool_calls]
    return parsed.thought, parsed.text.strip(), calls


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("reply", REPLIES)
def test_as_transformers_reads_them(reply: str, prompt: str, chat: ChatOf, reads: Any) -> None:
    ours = chat("diffusion_gemma")
    encode = ours.tokenizer.encode
    ids, before = encode(reply), encode(PROMPTS[prompt])
    assert found_by(ours, ids, before) == reads(ids, before)


@pytest.mark.parametrize("generation", ["gemma4_v5", "diffusion_gemma"])
@pytest.mark.parametrize(("reply", "said"), STILL_THINKING)
def test_after_a_tools_answer_the_model_goes_on_thinking(
    reply: str, said: Any, generation: str, chat: ChatOf, reads: Any
) -> None:
    talk, ours = TALKS["two calls, their results by number"], chat(generation)
    prompt = ours.render(talk.messages, tools=talk.tools, think=True).ids
    assert ours.tokenizer.decode(prompt, special=True).endswith("<|channel>thought\n")
    ids = ours.tokenizer.encode(reply)
    assert found_by(ours, ids, prompt) == reads(ids, prompt) == said


_NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x01\x02<|"))
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("generation", GENERATIONS)
@settings(max_examples=20, deadline=None)
@given(name=_NAMES, arguments=st.dictionaries(_NAMES, _VALUES, max_size=4))
@example(name="f", arguments={"a": [None, {"b": None}], "c": None, "d": [True, -0.5e-7]})
def test_calls_come_back_as_the_template_writes_them(
    name: str, arguments: dict[str, Any], generation: str, chat: ChatOf, reads: Any
) -> None:
    """What an agent's history holds is what the model learned to write."""
    ours = chat(generation)
    question = user("Go on.")
    asked = ours.render([question], think=True).ids
    ids = ours.render([question, says(tool_calls=[call(name, **arguments)])], think=True).ids
    assert ids[: len(asked)] == asked
    expected = None, "", [(name, arguments)]
    assert found_by(ours, ids[len(asked) :], asked) == expected
    if generation not in WRITES_NONE:
        assert reads(ids[len(asked) :], asked) == expected


def pushed(chat: Chat, ids: list[int], borders: list[int]) -> tuple[str, str | None]:
    """Text and thought of a reply whose tokens come in canvases that end at these borders."""
    stream, said, start = ReplyStream(chat.marks), [], 0
    for end in sorted({*(border % (len(ids) + 1) for border in borders), len(ids)}):
        said.append(stream.push(ids[start:end]))
        start = end
    said.append(stream.push([], final=True))
    return "".join(part.text for part in said), "".join(part.thought for part in said) or None


_RARE = st.sampled_from("👩\u200d日本㐀\u0301 \n")
_LINES = st.text(st.characters(exclude_categories=["Cs"]) | _RARE)
_BORDERS = st.lists(st.integers(0, 10_000), max_size=12)


@settings(max_examples=200, deadline=None)
@given(text=_LINES, borders=_BORDERS)
@example(text="👩‍👩‍👧‍👦 \U000103ff\U000103fe 日本語 e\u0301", borders=[1, 2, 3, 5, 8])
def test_any_borders_any_text(text: str, borders: list[int], chat: ChatOf) -> None:
    """Characters beyond the vocabulary come as bytes, and a border may lie between these."""
    ours = chat("diffusion_gemma")
    ids = ours.tokenizer.encode(text, special=False)
    assert pushed(ours, ids, borders) == (ours.tokenizer.decode(ids), None) == (text, None)


@settings(max_examples=100, deadline=None)
@given(replies=st.lists(st.sampled_from(REPLIES), min_size=1, max_size=3), borders=_BORDERS)
def test_any_borders_any_reply(replies: list[str], borders: list[int], chat: ChatOf) -> None:
    """Thoughts and calls are left out of the text, however canvases cut them."""
    ours = chat("diffusion_gemma")
    ids = [n for n in ours.tokenizer.encode("".join(replies)) if n not in ours.marks.ends]
    whole = ours.parse(ids)
    assert pushed(ours, ids, borders) == (whole.text, whole.thought)


_FIRST_BYTE = 238  # the id of `<0x00>`
_BYTES = [*("€", "😀", "é", "A", "\n"), b"\xff", b"\xe2\x82", b"\x80"]
_MARKS = [100, 101, 48, 49, 52, 45518, 107]  # channels, calls, their strings; "thought", newline
_RUNS = st.sampled_from(
    [[_FIRST_BYTE + b for b in (x if isinstance(x, bytes) else x.encode())] for x in _BYTES]
)
_TOKENS = st.lists(
    st.integers(0, 262_143).map(lambda number: [number])
    | st.sampled_from(_MARKS).map(lambda number: [number])
    | _RUNS
    | st.tuples(_RUNS, _RUNS).map(lambda two: two[0] + two[1]),
    max_size=30,
)


@settings(max_examples=200, deadline=None)
@given(runs=_TOKENS, borders=_BORDERS)
@example(runs=[[_FIRST_BYTE + 0x41], [_FIRST_BYTE + 0xFF]], borders=[1])
def test_any_borders_any_tokens(runs: list[list[int]], borders: list[int], chat: ChatOf) -> None:
    """Bytes that are no character, pieces in any order, marks among them."""
    ours = chat("diffusion_gemma")
    ids = [number for run in runs for number in run if number not in ours.marks.ends]
    whole = ours.parse(ids)
    assert pushed(ours, ids, borders) == (whole.text, whole.thought)
    if not ours.marks.begins.keys() & set(ids):
        assert whole.text == ours.tokenizer.decode(ids)
