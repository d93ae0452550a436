"""The answer's text while its tokens arrive, canvas by canvas.

Thought and tool calls are left out; stop strings are looked for in the answer alone, also across
the border of two canvases.
"""

from collections.abc import Sequence

from diffusiongemma.dialog.aside import Aside
from diffusiongemma.dialog.stream import TextStream
from diffusiongemma.dialog.tokenizer import Tokenizer


class Spoken:
    """Takes all tokens of an answer, gives the text that a reader sees.

    Attributes:
        places: where, among all tokens, those stand that a reader sees.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str] = ()) -> None:
        self._stream = None if tokenizer is None else TextStream(tokenizer, stop)
        self._aside = None if tokenizer is None else Aside(tokenizer)
        self.places: list[int] = []
        self._count = 0
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        """Everything that was given out so far."""
        return "".join(self._texts)

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the answer."""
        return self._stream.stopped if self._stream else None

    @property
    def tokens_kept(self) -> int:
        """Leading tokens that belong to the answer: all, or those before the stop string."""
        if self._stream is None or self._stream.stopped is None:
            return self._count
        kept = self._stream.tokens_kept
        # Up to the first token of the stop string, thoughts and calls before it included.
        return self.places[kept] if kept < len(self.places) else self._count

    def push(self, tokens: Sequence[int]) -> str:
        """Take tokens; give the new text that is final."""
        if self._stream is None or self._aside is None:
            self._count += len(tokens)
            return ""
        said = []
        for token in tokens:
            if self._aside.speaks(token):
                self.places.append(self._count)
                said.append(token)
            self._count += 1
        return self._note(self._stream.push(said))

    def finish(self) -> str:
        """The rest, when no more tokens will come."""
        return self._note(self._stream.finish() if self._stream else "")

    def _note(self, text: str) -> str:
        self._texts.append(text)
        return text
