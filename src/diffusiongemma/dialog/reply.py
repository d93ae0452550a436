"""A reply's ids to what they say: text, thought, tool calls.

Read token by token, as canvases come in, and in one way only, so that a stream and the finished
reply cannot disagree. Knows what stands between Gemma 4's marks. Does not know how a reply was
made, and is not asked where it ends but for stop strings: whoever makes a reply cuts it there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from diffusiongemma.dialog.calls import QUOTE, ToolCall, read_calls
from diffusiongemma.dialog.marks import Kind, Marks, Opening
from diffusiongemma.dialog.stream import TextStream
from diffusiongemma.dialog.tokenizer import Tokenizer


class Said(NamedTuple):
    """What became final with some tokens."""

    text: str
    thought: str


class ReplyStream:
    """Takes all tokens of a reply in their order, gives what a reader sees of them.

    All that `push` gives is, joined, `text` and `thought`, wherever canvases end. Stop strings are
    looked for in the text alone, also across the border of two canvases.

    Args:
        marks: the checkpoint's; None for one without words, which says nothing.
        stop: texts that end the reply and are no part of it; see `TextStream`.
        opening: where the reply begins.

    Attributes:
        tool_calls: calls of tools so far, in order.
        said: where, among all tokens, those stand that make the text, and what is read there.
    """

    def __init__(
        self, marks: Marks | None, stop: Sequence[str] = (), opening: Opening | None = None
    ) -> None:
        self.tool_calls: list[ToolCall] = []
        self.said: list[tuple[int, int]] = []
        self._marks = marks
        self._count = 0
        self._kind: Kind = "text"
        self._before: tuple[int, ...] = ()  # of the piece, in the prompt
        self._piece: list[tuple[int, int]] = []  # place and id of what was not read yet
        self._texts: list[str] = []
        self._blank = ""  # white space at the start, which is dropped where only calls follow
        if marks is not None:
            self._stream = TextStream(marks.tokenizer, stop)
            self._thoughts = _Thoughts(marks.tokenizer)
            self._begin(opening or Opening())

    @property
    def text(self) -> str:
        """The answer so far, without control tokens."""
        return "".join(self._texts)

    @property
    def thought(self) -> str | None:
        """What stood in channels so far; None where nothing did."""
        return None if self._marks is None else "".join(self._thoughts.texts) or None

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the reply."""
        return None if self._marks is None else self._stream.stopped

    @property
    def tokens_kept(self) -> int:
        """Leading tokens that belong to the reply: all, or those before the stop string."""
        if self.stopped is None:
            return self._count
        kept = self._stream.tokens_kept
        # Up to the first token of the stop string, thoughts and calls before it included.
        return self.said[kept][0] if kept < len(self.said) else self.said[-1][0] + 1

    def push(self, tokens: Sequence[int], *, final: bool = False) -> Said:
        """Take tokens; give what is final with them. Nothing is read after a stop string.

        Args:
            tokens: the next ones.
            final: no more will come.
        """
        start, self._count = self._count, self._count + len(tokens)
        if self._marks is None:
            return Said("", "")
        texts, thoughts = len(self._texts), len(self._thoughts.texts)
        for place, token in enumerate(tokens, start):
            kind = self._marks.begins.get(token)
            if kind is None:
                self._piece.append((place, token))
            else:
                # The last mark decides: the model may forget a closing mark, and a call ends a
                # thought.
                self._read(whole=True)
                self._begin(Opening(kind))
        self._read(whole=final)
        if final:
            self._speak(self._stream.finish())
            self._texts += [] if self.tool_calls else [self._blank]
        return Said("".join(self._texts[texts:]), "".join(self._thoughts.texts[thoughts:]))

    def _begin(self, opening: Opening) -> None:
        self._kind, self._before = opening.kind, opening.ids
        if opening.kind == "thought":
            self._thoughts.begin(opening.ids)

    def _read(self, *, whole: bool) -> None:
        """Read what there is of the piece; `whole` if it ends here."""
        if self._kind == "call" and not whole:
            return
        piece, self._piece = self._piece, []
        if self.stopped is not None:
            return
        ids = [number for _, number in piece]
        if self._kind == "thought":
            self._thoughts.push(ids, whole=whole)
        elif self._kind == "text":
            self._say(piece)
        else:
            calls = read_calls(self._call_text([*self._before, *ids]))
            self.tool_calls += calls
            if not calls:  # no call after all: its words stay, its marks go
                self._say(self._as_words(piece))

    def _say(self, piece: list[tuple[int, int]]) -> None:
        self.said += piece
        self._speak(self._stream.push(number for _, number in piece))

    def _speak(self, text: str) -> None:
        text, self._blank = self._blank + text, ""
        if self._texts or text.strip():
            self._texts.append(text)
        else:
            self._blank = text

    def _as_words(self, piece: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """A call's tokens as text: quotation marks stand where its string marks did."""
        assert self._marks is not None
        plain = self._marks.tokenizer.encode('"', special=False)
        words = ((p, plain if number == self._marks.quote else [number]) for p, number in piece)
        return [(place, number) for place, numbers in words for number in numbers]

    def _call_text(self, ids: list[int]) -> str:
        """Text of a call with its string marks, and no other control tokens."""
        assert self._marks is not None
        pieces: list[list[int]] = [[]]
        for number in ids:
            if number == self._marks.quote:
                pieces.append([])
            else:
                pieces[-1].append(number)
        return QUOTE.join(map(self._marks.tokenizer.decode, pieces))


class _Thoughts:
    """Words of channels, without the channel's name and without white space around them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.texts: list[str] = []
        self._tokenizer = tokenizer

    def begin(self, before: Sequence[int]) -> None:
        """A channel begins; the prompt may hold its first tokens already."""
        self._stream = TextStream(self._tokenizer)
        head = self._tokenizer.decode(before)
        self._head = None if "\n" in head else head  # the first line as far as it is in the prompt
        self._line = ""  # and in the reply
        self._blank = ""  # white space that is dropped if nothing follows
        self._empty = True

    def push(self, ids: Sequence[int], *, whole: bool) -> None:
        """Take more of the channel; `whole` if it ends here."""
        text = self._stream.push(ids) + (self._stream.finish() if whole else "")
        if self._head is not None:
            self._line += text
            line, newline, rest = self._line.partition("\n")
            if not newline and not whole:
                return
            named = (self._head + line).strip() == "thought"
            text, self._head = rest if named else self._line, None
        words = (self._blank + text).lstrip() if self._empty else self._blank + text
        kept = words.rstrip()
        self._blank = words[len(kept) :]
        if kept:
            self.texts.append("\n" + kept if self._empty and self.texts else kept)
            self._empty = False


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


def parse(ids: Iterable[int], marks: Marks, opening: Opening | None = None) -> Parsed:
    """Split a whole reply.

    Args:
        ids: its tokens. From the first one on that ends a reply, they are ignored.
        marks: the checkpoint's.
        opening: where it begins.
    """
    kept: list[int] = []
    for number in ids:
        if number in marks.ends:
            break
        kept.append(number)
    stream = ReplyStream(marks, opening=opening)
    stream.push(kept, final=True)
    return Parsed(stream.thought, stream.text, stream.tool_calls)
