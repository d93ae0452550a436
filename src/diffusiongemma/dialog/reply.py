"""A reply's ids to what they say: thought, text, tool calls.

Knows the marks of Gemma 4's channels and calls, by id and never by spelling: a model that writes
the letters of a mark has not written the mark. Does not know how a reply was made.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from diffusiongemma.dialog.tokenizer import Tokenizer
from diffusiongemma.dialog.tools import QUOTE, ToolCall, parse_call

# What each mark begins.
_MARKS = {
    "<|channel>": "thought",
    "<channel|>": "text",
    "<|tool_call>": "call",
    "<tool_call|>": "text",
}


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a reply says.

    Attributes:
        thought: what stood in channels, or None where nothing did.
        text: the answer, without control tokens.
        tool_calls: calls of tools, in order.
    """

    thought: str | None
    text: str
    tool_calls: list[ToolCall]


def parse(ids: Iterable[int], tokenizer: Tokenizer, ends: Collection[int] = ()) -> Parsed:
    """Split a reply.

    Args:
        ids: its tokens. From the first end token on, they are ignored.
        tokenizer: one without channel or call marks makes everything text.
        ends: ids that end a turn, beside `<turn|>` and `<|tool_response>`.
    """
    thoughts: list[str] = []
    # Tokens on both sides of an aside are decoded together, as a stream decodes them: a character
    # may have bytes on both sides.
    texts: list[list[int] | str] = [[]]
    calls: list[ToolCall] = []
    for kind, piece in _pieces(ids, tokenizer, ends):
        if kind == "text":
            before = texts[-1]
            if isinstance(before, list):
                before += piece
            else:
                texts.append(piece)
        elif kind == "thought":
            thoughts.append(_thought(tokenizer.decode(piece)))
        else:
            body = _call_text(piece, tokenizer)
            call = parse_call(body)
            if call is not None:
                calls.append(call)
            else:  # no call after all: its words stay, its marks go
                texts.append(body.replace(QUOTE, '"'))
    text = "".join(t if isinstance(t, str) else tokenizer.decode(t) for t in texts)
    if calls and not text.strip():
        text = ""
    return Parsed("\n".join(filter(None, thoughts)) or None, text, calls)


def _pieces(
    ids: Iterable[int], tokenizer: Tokenizer, ends: Collection[int]
) -> list[tuple[str, list[int]]]:
    """Runs of ids between marks, each with what it is.

    The last mark decides: the model may forget a closing mark, and a call ends a thought.
    """
    opens = {tokenizer.id(mark): kind for mark, kind in _MARKS.items()}
    stops = {*ends, tokenizer.id("<turn|>"), tokenizer.id("<|tool_response>")}
    pieces: list[tuple[str, list[int]]] = [("text", [])]
    for number in ids:
        if number in stops:
            break
        if number in opens:
            pieces.append((opens[number], []))
        else:
            pieces[-1][1].append(number)
    return pieces


def _thought(text: str) -> str:
    """Words of a channel without its name, which is its first line."""
    name, _, rest = text.partition("\n")
    return (rest if name.strip() == "thought" else text).strip()


def _call_text(ids: list[int], tokenizer: Tokenizer) -> str:
    """Text of a call with its string marks, and no other control tokens."""
    quote = tokenizer.id(QUOTE)
    pieces: list[list[int]] = [[]]
    for number in ids:
        if number == quote:
            pieces.append([])
        else:
            pieces[-1].append(number)
    return QUOTE.join(tokenizer.decode(piece) for piece in pieces)
