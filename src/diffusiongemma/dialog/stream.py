"""Committed canvases to text, bit by bit.

Knows when text may be shown: not while its last character is half there, and not while it may be
the start of a stop string. Does not know canvases, requests or channels: it is given ids in order.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from diffusiongemma.core.errors import OptionError
from diffusiongemma.core.letters import brief
from diffusiongemma.dialog.tokenizer import Tokenizer

_HALF = "\N{REPLACEMENT CHARACTER}"  # how an unfinished character decodes
_OVERLAP = 32  # tokens decoded again as left context; decoders trim at the start of a text


def stop_strings(stop: Any) -> tuple[str, ...]:
    """Stop strings as a user gives them: none, one, or several.

    Raises:
        OptionError: something else, or an empty one.
    """
    if stop is None:
        return ()
    given = (stop,) if isinstance(stop, str) else stop
    texts = isinstance(given, list | tuple | set | frozenset)
    if not texts or not all(isinstance(one, str) and one for one in given):
        raise OptionError(
            f"stop must be a text or a list of texts, none of them empty, got {brief(stop)}"
        )
    return tuple(given)


class TextStream:
    """Text of growing ids.

    Whatever the sizes of the pushes, what they return and what `finish` returns together are
    `tokenizer.decode(all ids)`, cut before the stop string that is complete first (of two that
    are complete at the same character, the longer).

    Args:
        tokenizer: the decoder.
        stop: texts that end the reply; they are not part of it.
        special: show control tokens by name.

    Attributes:
        stopped: the stop string that was met, or None.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), *, special: bool = False
    ) -> None:
        self.stopped: str | None = None
        self._tokenizer = tokenizer
        self._stop = stop_strings(stop)
        self._special = special
        self._ids: list[int] = []
        self._start = 0  # the window that is decoded begins here
        self._mark = 0  # a later place where it may begin: no character crosses it
        self._seen = 0  # characters of the window's text that were taken
        self._held = ""  # taken, and perhaps the start of a stop string
        self._shown: list[str] = []

    @property
    def tokens_kept(self) -> int:
        """How many leading tokens the text needs: all so far, or those before the stop string."""
        if self.stopped is None:
            return len(self._ids)
        text, low, high = "".join(self._shown), 0, len(self._ids)
        while low < high:
            middle = (low + high) // 2
            if self._decode(self._ids[:middle]).startswith(text):
                high = middle
            else:
                low = middle + 1
        return low

    def push(self, ids: Iterable[int]) -> str:
        """Take more ids; give the new text that is safe to show. Nothing after a stop string."""
        if self.stopped is not None:
            return ""
        self._ids.extend(int(number) for number in ids)
        window = self._ids[self._start :]
        end = self._settled(window)
        text = self._decode(window[:end])
        whole = text.rstrip(_HALF)
        fresh, self._seen = whole[self._seen :], max(self._seen, len(whole))
        if end == len(window) and len(whole) == len(text):
            self._slide()
        return self._release(fresh, final=False)

    def finish(self) -> str:
        """The rest, when no more ids will come."""
        if self.stopped is not None:
            return ""
        text = self._decode(self._ids[self._start :])
        fresh, self._seen = text[self._seen :], len(text)
        return self._release(fresh, final=True)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, special=self._special)

    def _settled(self, window: list[int]) -> int:
        """How many tokens of the window no later token can change.

        A run of byte tokens is one text or, if it is no UTF-8 in the end, one mark per byte:
        nothing of it is known before it ends. A hidden control token does not end it.
        """
        end = len(window)
        for place in range(len(window) - 1, -1, -1):
            if self._tokenizer.is_byte(window[place]):
                end = place
            elif self._special or not self._tokenizer.is_control(window[place]):
                break
        return end

    def _slide(self) -> None:
        """Forget tokens that are far behind, so that a push costs what it brings."""
        if len(self._ids) - self._mark < _OVERLAP or not self._decode(self._ids[self._mark :]):
            return
        if self._mark:
            self._start = self._mark
            self._seen = len(self._decode(self._ids[self._start :]))
        self._mark = len(self._ids)

    def _release(self, fresh: str, *, final: bool) -> str:
        text = self._held + fresh
        found = [(text.find(s) + len(s), -len(s), s) for s in self._stop if s in text]
        if found:
            end, _, self.stopped = min(found)
            text, self._held = text[: end - len(self.stopped)], ""
        else:
            keep = 0 if final else self._possible_stop(text)
            text, self._held = text[: len(text) - keep], text[len(text) - keep :]
        self._shown.append(text)
        return text

    def _possible_stop(self, text: str) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = max((len(s) for s in self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-length:]) for s in self._stop):
                return length
        return 0
