"""Text to token ids and back, for the one tokenizer file that a checkpoint ships.

Knows the `tokenizers` library and which tokens are control tokens. Does not know messages,
templates or pictures, and never adds a BOS: the chat template writes its own.
"""

import contextlib
import json
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import tokenizers

from diffusiongemma.core.errors import CheckpointError, InputError
from diffusiongemma.core.reading import TABLES, read_bytes
from diffusiongemma.dialog import growth

# Gemma 4 writes its marks as <|name>, <name|> or <|name|>. A checkpoint may forget to flag one of
# them as special, so the shape counts as well as the flag.
_MARK = re.compile(r"<\|.+>|<.+\|>", re.DOTALL)
_LONGEST = 1 << 23  # bytes that a text may become; the released context holds about a million
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@contextlib.contextmanager
def _failing(what: str) -> Iterator[None]:
    """What the library raises: bare exceptions, and panics, which are not even exceptions."""
    try:
        yield
    except OverflowError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise CheckpointError(f"{what} ({error}); fetch the file again") from error
        raise


class Tokenizer:
    """Encode and decode; safe to share between threads.

    User text that spells a control token, such as `<turn|>`, becomes that token in `encode(text)`:
    this is what the reference does with a rendered template. `encode(text, special=False)` is the
    other way, and `Chat.render(..., guard=True)` uses it for what users wrote.

    Args:
        backend: the library's tokenizer.
        growth: bytes that its steps may make of one.
    """

    def __init__(self, backend: tokenizers.Tokenizer, growth: float = 1.0) -> None:
        self._growth = growth
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._literal: tokenizers.Tokenizer | None = None
        self._lock = threading.Lock()
        added = backend.get_added_tokens_decoder()
        self._control = {
            token.content: number
            for number, token in added.items()
            if token.special or _MARK.fullmatch(token.content)
        }
        self._control_ids = frozenset(self._control.values())

    @classmethod
    def from_folder(cls, path: Path) -> "Tokenizer | None":
        """Read `tokenizer.json`; None where the folder has none.

        Raises:
            CheckpointError: the file is there and cannot be used.
        """
        file = Path(path) / "tokenizer.json"
        content = read_bytes(file, TABLES)
        if content is None:
            return None
        grown = growth.check(content, file)
        with _failing(f"{file} is not a tokenizer that the tokenizers library can read"):
            return cls(tokenizers.Tokenizer.from_buffer(content), grown)

    @property
    def size(self) -> int:
        """One more than the highest id, where the vocabulary has no holes."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def control(self) -> dict[str, int]:
        """Every control token and its id."""
        return dict(self._control)

    def id(self, token: str) -> int | None:
        """The id of one token by its exact name, or None."""
        return self._backend.token_to_id(token)

    def token(self, number: int) -> str | None:
        """The name of one id, or None."""
        if number < 0:
            return None
        return self._backend.id_to_token(number)

    def is_control(self, number: int) -> bool:
        """Whether this id is a control token, which never shows in plain text."""
        return number in self._control_ids

    def is_byte(self, number: int) -> bool:
        """Whether this id is one raw byte of a longer character (byte fallback, `<0xE2>`)."""
        token = self.token(number)
        return token is not None and _BYTE.fullmatch(token) is not None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a text, without BOS.

        Args:
            text: what to encode.
            special: recognise control tokens spelled in the text. False: they are ordinary
                characters, so a text cannot end a turn or start a tool call.

        Raises:
            InputError: the text is too long, or holds half of a surrogate pair, which is no
                character.
            CheckpointError: the tokenizer's own steps or patterns fail on it.
        """
        try:
            size = len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise InputError(
                f"a text holds a lone surrogate at character {error.start}, which is no Unicode "
                "character; decode its source as UTF-8 before passing it"
            ) from error
        if size * self._growth > _LONGEST:
            raise InputError(
                f"a text of {size:,} bytes is too long for this checkpoint's tokenizer, which may "
                f"make {size * self._growth:.2g} bytes of it; shorten it, or cut it into parts"
            )
        backend = self._backend if special else self._without_control()
        with _failing("the tokenizer.json of this checkpoint fails on a text"):
            return list(backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Text of ids. Ids beyond the vocabulary have no text.

        Args:
            ids: token ids.
            special: show control tokens by name; False leaves them out.

        Raises:
            InputError: an id is negative or no 32-bit number.
            CheckpointError: the tokenizer's own steps fail on them.
        """
        kept = [int(number) for number in ids]
        if not special:
            kept = [number for number in kept if number not in self._control_ids]
        try:
            with _failing("the tokenizer.json of this checkpoint fails on a reply"):
                return self._backend.decode(kept, skip_special_tokens=not special)
        except OverflowError as error:
            wrong = next(number for number in kept if not 0 <= number < 2**32)
            raise InputError(
                f"token id {wrong} is not in the vocabulary; pass ids from 0 to {self.size - 1}"
            ) from error

    def _without_control(self) -> tokenizers.Tokenizer:
        """A twin that reads control tokens as text; made once, when first asked for.

        The library's switch is state of the tokenizer, not an argument, so a shared one would race.
        """
        with self._lock:
            if self._literal is None:
                plan = json.loads(self._backend.to_str())
                for token in plan["added_tokens"]:
                    # The switch only sees tokens flagged special.
                    token["special"] = token["content"] in self._control
                twin = tokenizers.Tokenizer.from_str(json.dumps(plan))
                twin.encode_special_tokens = True
                self._literal = twin
            return self._literal
