"""A terminal window with a program in it: keys go in, and what a reader sees comes out."""

import fcntl
import os
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pyte

from cli_help import COMMAND, ENVIRONMENT

# The terminal becomes the one that controls the program, so that Ctrl-C is a key like any other.
_TAKE = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
# Of the terminal that the tests run in: a size named there goes before the window's own.
_OTHERS = ("NO_COLOR", "COLUMNS", "LINES")
_HELD = [*COMMAND[:-2], str(Path(__file__).with_name("cli_held.py"))]


class Window:
    """A program at a terminal of its own.

    Args:
        words: of the command.
        columns: of the terminal.
        lines: of the terminal.
        stdout: a descriptor to write to in place of the terminal.
        variables: of the environment, beside the usual ones.
        held: answers stand still, and go on as `step_until` and `let_go` say.

    Attributes:
        screen: what is seen, and what was scrolled away.
        raw: everything that the program wrote.
    """

    def __init__(
        self,
        *words: object,
        columns: int = 60,
        lines: int = 16,
        stdout: int | None = None,
        variables: Mapping[str, str] | None = None,
        held: bool = False,
    ) -> None:
        self.screen = pyte.HistoryScreen(columns, lines, history=1000)
        self.raw = b""
        self._before = 0
        self._stream = pyte.ByteStream(self.screen)
        self._master, slave = os.openpty()
        self.resize(columns, lines)
        self._steps, let, self._let = 0, None, None
        if held:
            let, self._let = os.pipe()
        command = COMMAND if let is None else [*_HELD, str(let)]
        kept = {name: value for name, value in ENVIRONMENT.items() if name not in _OTHERS}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE, *command, *map(str, words)],
            stdin=slave,
            stdout=slave if stdout is None else stdout,
            stderr=slave,
            env=kept | {"TERM": "xterm-256color"} | dict(variables or {}),
            start_new_session=True,
            pass_fds=() if let is None else (let,),
        )
        os.close(slave)
        if let is not None:
            os.close(let)

    def type(self, keys: str) -> None:
        """Press keys."""
        self._before = len(self.raw)
        os.write(self._master, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Pull at the window's corner."""
        self.screen.resize(lines, columns)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def until(self, seen: Callable[[], bool] | str, seconds: float = 60.0) -> None:
        """Watch until something is to be seen, or the program ends."""
        there = (lambda: seen in self.text) if isinstance(seen, str) else seen
        end = time.monotonic() + seconds
        while not there():
            assert time.monotonic() < end, f"not seen: {seen}\n{self.text}"
            if not self._read():
                assert there(), f"ended without: {seen}\n{self.text}"
                return

    def step_until(self, seen: str) -> None:
        """Have an answer go on until something is to be seen, and stand still there."""
        assert self._let is not None, "the program is not held"
        while True:
            self.until(lambda: self.screen.title in (f"held at {self._steps}", "answered"))
            if seen in self.text:
                return
            assert self.screen.title != "answered", f"not seen: {seen}\n{self.text}"
            os.write(self._let, b".")
            self._steps += 1

    def let_go(self) -> None:
        """Hold the program no longer."""
        if self._let is not None:
            os.close(self._let)
        self._let = None

    def asks(self) -> bool:
        """Whether the program has answered the last keys, and waits at its prompt."""
        here = self.screen.cursor
        prompt = self.shown[here.y] == ">" and here.x == 2
        prompt = prompt and len(self.raw) > self._before and self.raw.endswith(b"> ")
        return prompt and self.waits()

    def waits(self) -> bool:
        """Whether the program waits for something: Ctrl-C right before that is lost on Python."""
        try:
            status = Path(f"/proc/{self.process.pid}/stat").read_text()
        except OSError:  # no Linux, or no such process any more
            return True
        return status.rpartition(")")[2].split()[0] != "R"

    def close(self) -> int:
        """Watch to the end; gives the exit code."""
        self.let_go()
        end = time.monotonic() + 60
        while self._read():
            assert time.monotonic() < end, f"it does not end:\n{self.text}"
        os.close(self._master)
        return self.process.wait(timeout=60)

    @property
    def shown(self) -> list[str]:
        """The lines of the screen."""
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        """All that can be seen, and what was scrolled away."""
        rows = [
            "".join(row[column].data for column in range(self.screen.columns)).rstrip()
            for row in self.screen.history.top
        ]
        return "\n".join([*rows, *self.shown]).rstrip()

    @property
    def echoes(self) -> bool:
        """Whether keys are shown by the terminal."""
        return bool(termios.tcgetattr(self._master)[3] & termios.ECHO)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], 0.05)
        if not ready:
            return True
        try:
            more = os.read(self._master, 65536)
        except OSError:  # how Linux says that the other end is closed
            return False
        self.raw += more
        self._stream.feed(more)
        return bool(more)
