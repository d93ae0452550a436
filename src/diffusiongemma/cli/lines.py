"""Lines of whoever talks: typed at a terminal, where Ctrl-C clears them, or out of a pipe.

Knows the prompt, line editing and Ctrl-C. What a line means is `chat`'s business.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

from diffusiongemma.cli.screen import Screen
from diffusiongemma.core.errors import InputError

PROMPT = "> "
LEAVES = "Ctrl-C once more leaves, and so does Ctrl-D"


class Keys:
    """Ctrl-C, heard where something can be made of it, and once.

    Anywhere else it would end a chat that only wanted to stop an answer, or tear what is being
    remembered: there it does nothing.
    """

    def __init__(self) -> None:
        self._heard = False

    @contextlib.contextmanager
    def ours(self) -> Iterator[None]:
        """While this is open, Ctrl-C raises KeyboardInterrupt only within `with keys:`."""
        main = threading.current_thread() is threading.main_thread()
        if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield  # whoever called has other plans for it
            return
        signal.signal(signal.SIGINT, self._pressed)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __enter__(self) -> None:
        self._heard = True

    def __exit__(self, *error: object) -> None:
        self._heard = False

    def _pressed(self, number: int, frame: FrameType | None) -> None:
        if self._heard:
            self._heard = False
            raise KeyboardInterrupt


class Lines:
    """What is said, line by line.

    Args:
        screen: where a reader looks.
        keys: when Ctrl-C is heard.

    Attributes:
        typed: somebody types them.
    """

    def __init__(self, screen: Screen, keys: Keys) -> None:
        self._screen, self._keys = screen, keys
        self.typed = sys.stdin.isatty()
        self._editor: Any = None
        self._pressed = False  # Ctrl-C was the last that was heard
        if self.typed and sys.stdout.isatty():
            with contextlib.suppress(ImportError):
                import readline

                readline.parse_and_bind("tab: self-insert")  # it would complete names of files
                self._editor = readline

    def recall(self, lines: Iterable[str]) -> None:
        """Lines that were said before, for the arrow that points up."""
        for line in lines if self._editor else ():
            self._editor.add_history(line)

    def take(self) -> str | None:
        """The next line; None at the end.

        Raises:
            InputError: it is no text.
            KeyboardInterrupt: whoever types wants to leave.
        """
        while True:
            try:
                with self._keys:
                    line = self._read()
            except EOFError:
                if self.typed:
                    self._screen.note("")
                return None
            except UnicodeDecodeError as error:
                raise InputError(
                    f"standard input is no text in UTF-8 ({error.reason} at byte {error.start}); "
                    "convert it first"
                ) from error
            except KeyboardInterrupt:
                if not self.typed:
                    raise
                leaves = self._pressed and not self._begun()
                self._pressed = True
                self._screen.note("^C" if leaves else f"^C\n{LEAVES}")
                if leaves:
                    raise
                continue
            self._pressed = False
            return line

    def _read(self) -> str:
        if self.typed and sys.stdout.isatty():
            return input(PROMPT)
        if self.typed:  # the answers go elsewhere, and so the prompt must not go with them
            print(PROMPT, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def _begun(self) -> bool:
        """Whether something was typed before Ctrl-C."""
        return bool(self._editor and self._editor.get_line_buffer())
