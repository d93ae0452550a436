"""The marks of Gemma 4 in one vocabulary: what each begins, and which ids end a reply.

Everything that reads a reply asks here, by id and never by spelling: a model that writes the
letters of a mark has not written the mark. Does not know what stands between two marks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from diffusiongemma.dialog.calls import QUOTE
from diffusiongemma.dialog.tokenizer import Tokenizer

Kind = Literal["text", "thought", "call"]

# What begins at each mark, in a reply and in a prompt that leaves something open.
_BEGINS: dict[str, Kind] = {
    "<|channel>": "thought",
    "<channel|>": "text",
    "<|tool_call>": "call",
    "<tool_call|>": "text",
}
_ENDS = ("<eos>", "<turn|>", "<|tool_response>")
# Beyond these a prompt leaves nothing open.
_BORDERS = ("<bos>", "<|turn>", "<|tool>", "<tool|>", "<tool_response|>", *_ENDS)


@dataclass(frozen=True, slots=True)
class Opening:
    """Where a reply begins.

    Attributes:
        kind: in what.
        ids: the prompt's tokens since the mark that began it.
    """

    kind: Kind = "text"
    ids: tuple[int, ...] = ()


class Marks:
    """The marks of one checkpoint.

    Args:
        tokenizer: one without channel or call marks makes everything text.
        ends: ids that end a reply as the checkpoint's files say. They add to the marks that
            always do: those of the end of a text, of a turn, and of a tool's answer, which is not
            the model's to write.

    Attributes:
        begins: what begins at each mark.
        ends: every id that ends a reply.
        quote: the mark on both sides of a string in a call, if there is one.
    """

    def __init__(self, tokenizer: Tokenizer, ends: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        named = {mark: tokenizer.id(mark) for mark in (*_BEGINS, *_BORDERS)}
        ids = {mark: number for mark, number in named.items() if number is not None}
        self.begins: dict[int, Kind] = {ids[mark]: _BEGINS[mark] for mark in ids.keys() & _BEGINS}
        self.ends = frozenset({*ends, *(ids[mark] for mark in ids.keys() & set(_ENDS))})
        self.quote = tokenizer.id(QUOTE)
        self._borders = self.ends | {ids[mark] for mark in ids.keys() & set(_BORDERS)}

    def opening(self, prompt: Sequence[int]) -> Opening:
        """Where the reply to a prompt begins: in the text, unless the prompt leaves more open.

        Chat templates may end a prompt within a thought, so that the model goes on thinking.
        """
        for place in range(len(prompt) - 1, -1, -1):
            number = prompt[place]
            kind = self.begins.get(number)
            if kind == "text" or number in self._borders:
                break
            if kind is not None:
                return Opening(kind, tuple(prompt[place + 1 :]))
        return Opening()
