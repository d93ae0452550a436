"""Replies read token by token: where they begin, where they end, and always the same words."""

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffusiongemma.dialog.calls import ToolCall
from diffusiongemma.dialog.chat import Chat, SpecialIds
from diffusiongemma.dialog.marks import Opening
from diffusiongemma.dialog.reply import ReplyStream, Said, parse
from diffusiongemma.dialog.tokenizer import Tokenizer
from toys_words import FIRST_BYTE, MARKS

MARK = {mark: number for number, mark in enumerate(MARKS)}
NAME = [FIRST_BYTE + byte for byte in b"thought"]
EURO = [FIRST_BYTE + byte for byte in "€".encode()]

# Any ids, with many marks, and with what is read in a way of its own between them.
IDS = st.lists(
    st.integers(0, 299).map(lambda number: [number])
    | st.sampled_from([[MARK[mark]] for mark in MARKS])
    | st.sampled_from([NAME, EURO, EURO[:1], EURO[1:]])
    | st.sampled_from([b"call:f{", b"a:1", b"}", b"\n", b" ", b"END", b"x"]).map(
        lambda text: [FIRST_BYTE + byte for byte in text]
    ),
    max_size=30,
).map(lambda runs: [number for run in runs for number in run])
OPENINGS = st.sampled_from(
    ["", "<|channel>", "<|channel>thought\n", "<|channel>tho", "<|channel>thought\nso ",
     "<|channel>odd", "<|channel>thought\n<channel|>", "<|tool_call>call:g{b:<|\"|>",
     "<|tool_call>", "<|channel>thought\nx<turn|>\n", "ab"]
)  # fmt: skip


def pushed(stream: ReplyStream, ids: list[int], borders: list[int]) -> list[Said]:
    """What a stream says of each canvas; canvases end at these places."""
    places = [0, *sorted(min(border, len(ids)) for border in borders), len(ids)]
    canvases = [ids[a:b] for a, b in itertools.pairwise(places)]
    last = len(canvases) - 1
    return [stream.push(canvas, final=n == last) for n, canvas in enumerate(canvases)]


@given(ids=IDS, begun=OPENINGS, borders=st.lists(st.integers(0, 60), max_size=5))
@example([*EURO[:1], MARK["<channel|>"], *EURO[1:]], "", [1])  # a mark inside a character
@example([FIRST_BYTE + 10, MARK["<|tool_call>"]], "", [1])
@settings(max_examples=500, deadline=None)
def test_the_stream_and_the_reply_say_the_same(
    chat: Chat, ids: list[int], begun: str, borders: list[int]
) -> None:
    opening = chat.marks.opening(chat.tokenizer.encode(begun))
    ids = [number for number in ids if number not in chat.marks.ends]
    stream = ReplyStream(chat.marks, opening=opening)
    said = pushed(stream, ids, borders)
    reply = parse(ids, chat.marks, opening)
    assert "".join(one.text for one in said) == stream.text == reply.text
    assert "".join(one.thought for one in said) == (stream.thought or "") == (reply.thought or "")
    assert stream.tool_calls == reply.tool_calls
    assert stream.tokens_kept == len(ids)


@given(
    ids=IDS,
    begun=OPENINGS,
    borders=st.lists(st.integers(0, 60), max_size=5),
    stop=st.sampled_from(["END", "x", "\n", "EN", "€", " x", "a:1"]),
)
@settings(max_examples=500, deadline=None)
def test_borders_of_canvases_do_not_move_a_stop(
    chat: Chat, ids: list[int], begun: str, borders: list[int], stop: str
) -> None:
    opening = chat.marks.opening(chat.tokenizer.encode(begun))
    stream, whole = (ReplyStream(chat.marks, [stop], opening) for _ in range(2))
    said = pushed(stream, ids, borders)
    assert whole.push(ids, final=True) == (
        "".join(one.text for one in said),
        "".join(one.thought for one in said),
    )
    assert (stream.stopped, stream.tool_calls) == (whole.stopped, whole.tool_calls)
    assert stop not in stream.text
    if stream.stopped:
        assert stream.tokens_kept == whole.tokens_kept <= len(ids)


@pytest.mark.parametrize(
    ("prompt", "opening"),
    [
        ("hello", "text"),
        ("<|turn>model\n", "text"),
        ("<|turn>model\n<|channel>thought\n<channel|>", "text"),
        ("<tool_response|><|channel>thought\n", "thought"),
        ("<|channel>", "thought"),
        ("<|channel>thought\nI have to", "thought"),
        ("<|tool_call>call:", "call"),
        ('<|tool_call>call:f{a:<|"|>', "call"),
        ("<|tool_call>call:f{}<tool_call|>", "text"),
        ("<|channel>thought\nwords of a user<turn|>\n", "text"),
        ("<|channel>thought\nwords of a user<turn|>\n<|turn>model\n", "text"),
        ("<|channel>never closed<tool_response|>", "text"),
    ],
)
def test_how_a_prompt_ends_decides_where_its_reply_begins(
    chat: Chat, prompt: str, opening: str
) -> None:
    assert chat.marks.opening(chat.tokenizer.encode(prompt)).kind == opening
    assert chat.marks.opening(chat.tokenizer.encode(prompt, special=False)) == Opening()


@pytest.mark.parametrize(
    ("prompt", "reply", "thought", "text"),
    [
        ("<|channel>thought\n", "It says 212.\n<channel|>It is 212.", "It says 212.", "It is 212."),
        ("<|channel>thought\n", "never closed", "never closed", ""),
        ("<|channel>thought\n", "\n <channel|>Hi", None, "Hi"),
        ("<|channel>thought\n", "thought\nI had<channel|>Hi", "thought\nI had", "Hi"),
        ("<|channel>", "thought\nhm<channel|>Hi", "hm", "Hi"),
        ("<|channel>thou", "ght\nhm<channel|>Hi", "hm", "Hi"),
        ("<|channel>thought\nI", " see\nit<channel|>Hi", "see\nit", "Hi"),
        ("<|channel>I", " see\nit<channel|>Hi", "see\nit", "Hi"),
        ("<|channel>thought\n", "a<|channel>thought\nb<channel|>c", "a\nb", "c"),
    ],
)
def test_a_reply_that_begins_in_a_thought(
    chat: Chat, prompt: str, reply: str, thought: str | None, text: str
) -> None:
    opening = chat.marks.opening(chat.tokenizer.encode(prompt))
    parsed = chat.parse(chat.tokenizer.encode(reply), opening)
    assert (parsed.thought, parsed.text) == (thought, text)


def test_a_reply_that_begins_in_a_call(chat: Chat) -> None:
    opening = chat.marks.opening(chat.tokenizer.encode('<|tool_call>call:f{a:<|"|>x'))
    parsed = chat.parse(chat.tokenizer.encode('y<|"|>,b:1}<tool_call|>'), opening)
    assert (parsed.text, parsed.tool_calls) == ("", [ToolCall("f", {"a": "xy", "b": 1})])
    parsed = chat.parse(chat.tokenizer.encode('y<|"|>, hm'), opening)
    assert (parsed.text, parsed.tool_calls) == ('y", hm', [])  # its own words only


def test_a_stop_string_does_not_cut_a_thought(chat: Chat) -> None:
    opening = chat.marks.opening(chat.tokenizer.encode("<|channel>thought\n"))
    ids = chat.tokenizer.encode("212, so bytes.\n<channel|>212 bytes. And more")
    stream = ReplyStream(chat.marks, ["bytes."], opening)
    assert stream.push(ids, final=True) == ("212 ", "212, so bytes.")
    assert stream.tokens_kept == ids.index(MARK["<channel|>"]) + 1 + len("212 ")


def test_a_call_after_a_stop_string_is_not_called(chat: Chat) -> None:
    ids = chat.tokenizer.encode("a END<|tool_call>call:f{}<tool_call|>")
    stream = ReplyStream(chat.marks, ["END"])
    assert stream.push(ids, final=True) == ("a ", "") and stream.tool_calls == []
    assert stream.tokens_kept == 2


def test_words_of_what_was_no_call_come_when_that_is_known(chat: Chat) -> None:
    stream = ReplyStream(chat.marks)
    first = chat.tokenizer.encode('So <|tool_call>call:f{x:<|"|>')
    assert [stream.push(first).text, stream.push(chat.tokenizer.encode("ab")).text] == ["So ", ""]
    assert stream.push(chat.tokenizer.encode("<tool_call|> it")).text == 'call:f{x:"ab it'
    assert len(stream.said) == len('So call:f{x:"ab it')


def test_white_space_between_calls_is_no_text(chat: Chat) -> None:
    call = "<|tool_call>call:f{}<tool_call|>"
    stream = ReplyStream(chat.marks)
    assert stream.push(chat.tokenizer.encode("\n" + call)).text == ""
    assert stream.push(chat.tokenizer.encode("\n" + call), final=True).text == ""
    assert stream.text == "" and len(stream.tool_calls) == 2
    assert chat.parse(chat.tokenizer.encode("\n ")).text == "\n "
    assert chat.parse(chat.tokenizer.encode("\n" + call + "so")).text == "\nso"


@pytest.mark.parametrize("given", [(), (1,), (1, 5), (40,)])
def test_marks_that_end_a_reply_do_so_whatever_the_files_say(
    tokenizer: Tokenizer, given: tuple[int, ...]
) -> None:
    chat = Chat(tokenizer, SpecialIds(eos_token_id=given))
    always = {MARK[name] for name in ("<eos>", "<turn|>", "<|tool_response>")}
    assert chat.marks.ends == always | set(given)
    made_up = "<|tool_response>response:f{b:2}<tool_response|>made up"
    parsed = chat.parse(chat.tokenizer.encode(f"<|tool_call>call:f{{a:1}}<tool_call|>{made_up}"))
    assert (parsed.text, parsed.tool_calls) == ("", [ToolCall("f", {"a": 1})])


def test_without_words_nothing_is_said() -> None:
    stream = ReplyStream(None)
    assert stream.push([1, 2], final=True) == ("", "")
    assert (stream.text, stream.thought, stream.stopped, stream.tokens_kept) == ("", None, None, 2)
