"""What a terminal shows: an answer that grows, what is drafted and a status after it, asides.

The cursor stays at the end of the answer. What is shown after it and below it is drawn from there,
and taken away from there: so it does not matter where a terminal puts it when it is resized.

Knows two streams and a few control sequences; knows no model. Where a stream is no terminal, no
control sequence is ever sent to it.
"""

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from wcwidth import wcwidth

from diffusiongemma.core.letters import printable

_DIM, _PLAIN = "\x1b[2m", "\x1b[22m"
_SAVE, _RESTORE = "\x1b7", "\x1b8"
_ROOM_BELOW = "\x1bD\x1b[A"  # one line down, which scrolls if it must, and up again
_NEXT_LINE = "\x1b[B\r"
_END_OF_LINE, _ALL_BELOW = "\x1b[K", "\x1b[J"
_DOWN = "\x1bD"  # which scrolls if it must
_CLIP, _WRAP = "\x1b[?7l", "\x1b[?7h"


class Screen:
    """Standard output and standard error, as a reader sees them together.

    Attributes:
        shows_answer: standard output is a terminal, so an answer is worth showing as it grows.
        shows_canvas: it can also be drawn on.
        shows_status: standard error is a terminal that can rewrite a line.
        colour: styles may be used.
    """

    def __init__(self) -> None:
        clever = os.environ.get("TERM") != "dumb"
        self.shows_answer = _is_terminal(sys.stdout)
        self.shows_status = _is_terminal(sys.stderr) and clever
        self.shows_canvas = self.shows_answer and clever
        self.colour = clever and not os.environ.get("NO_COLOR")
        self._line = ""  # what stands on the cursor's line, before the terminal wraps it
        self._column = 0  # of the cursor; the width itself after a line that is just full
        self._width = _width()  # that this column belongs to
        self._wrapped = False  # the cursor was sent to the next line, which no newline did
        self._status = self._canvas = False

    def status(self, text: str) -> None:
        """Show a line below the cursor, in place of the one before."""
        if not self.shows_status:
            return
        width, height = shutil.get_terminal_size()
        if self._column >= width:  # a terminal forgets, when moved, that its next letter must wrap
            return
        if self._column and height < 2:  # it would push the answer out of sight, and stay itself
            return
        there = _ROOM_BELOW + _SAVE + _NEXT_LINE if self._column else _SAVE
        shown = self._dimmed(printable(text)[: width - 1])
        print(there + shown + _END_OF_LINE + _RESTORE, end="", file=sys.stderr, flush=True)
        self._status = True

    def room(self) -> tuple[int, int, int]:
        """Where a canvas would begin, and how wide and high it may be."""
        width, height = shutil.get_terminal_size()
        if width != self._width:
            self._column = _moved(0, self._line, width)
            self._width, self._wrapped = width, False
        if self._column >= width:
            # A letter that is wiped out again: it has the terminal wrap, as the next one would.
            _write(" \r")
            self._column, self._wrapped = 0, True
        return self._column, width, max(1, height - self.shows_status)

    def draw(self, lines: Sequence[str], status: str) -> None:
        """Show a canvas after the answer, in place of the one before, and a status below it.

        Args:
            lines: as `canvas.lines` makes them, for the `room` there is.
            status: a line.
        """
        if self.shows_status:
            short = printable(status)[: self._width - 1]
            lines = [*lines, self._dimmed(short)]
        lines = lines[: shutil.get_terminal_size().lines]
        last = len(lines) - 1
        # Each line is wiped before it is written: after, the cursor may stand on its last letter.
        wipes = [_ALL_BELOW if number == last else _END_OF_LINE for number in range(last + 1)]
        drawn = "\r\n".join(wipe + line for wipe, line in zip(wipes, lines, strict=True))
        down = _DOWN * last + f"\x1b[{last}A" if last else ""
        self._canvas = True
        _write(down + _SAVE + _CLIP + drawn + _WRAP + _RESTORE)

    def clear(self) -> None:
        """Take the canvas and the status away."""
        if self._canvas:
            _write(_ALL_BELOW)
        elif self._status:
            print(_ALL_BELOW, end="", file=sys.stderr, flush=True)
        self._status = self._canvas = False

    def say(self, text: str, *, dim: bool = False) -> None:
        """Add to the answer on a terminal."""
        if not text:
            return
        self.clear()
        text = printable(text)
        if self._wrapped:
            text, self._wrapped = text.removeprefix("\n"), False
        self._column = _moved(self._column, text, _width())
        self._line = (self._line + text).rpartition("\n")[2]
        _write(self._dimmed(text) if dim else text)

    def end_line(self) -> None:
        """Begin a new line, unless the cursor is at the start of one."""
        self.clear()
        if self._column:
            _write("\n")
        self._column, self._line, self._wrapped = 0, "", False

    def note(self, text: str) -> None:
        """A line on standard error, dimmed where that can be."""
        self.clear()
        text = printable(text)
        print(self._dimmed(text) if self.shows_status else text, file=sys.stderr)

    def _dimmed(self, text: str) -> str:
        return f"{_DIM}{text}{_PLAIN}" if self.colour else text


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Keys that are typed meanwhile are kept for whoever reads next, and not shown."""
    if os.name != "posix" or sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    import termios

    keys = sys.stdin.fileno()
    try:
        ours = os.tcgetpgrp(keys) == os.getpgrp()  # from the background, changing it would stop us
    except OSError:  # it is not the terminal that controls us
        ours = True
    before = termios.tcgetattr(keys)
    quiet = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    if ours:
        termios.tcsetattr(keys, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        if ours:
            termios.tcsetattr(keys, termios.TCSANOW, before)


def _write(text: str) -> None:
    """Write all of it, or nothing: Ctrl-C in the middle would leave the cursor anywhere."""
    if os.name != "posix":
        print(text, end="", flush=True)
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        print(text, end="", flush=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def columns(text: str) -> int:
    """Columns that a text takes on one line: none, one or two for a letter."""
    return sum(max(0, wcwidth(letter)) for letter in text)


def _width() -> int:
    return shutil.get_terminal_size().columns


def _moved(column: int, text: str, width: int) -> int:
    """Where the cursor is after a text."""
    for letter in text:
        if letter == "\n":
            column = 0
        elif letter == "\t":
            column = min((column // 8 + 1) * 8, width - 1)
        elif size := columns(letter):
            column = size if column + size > width else column + size
    return column


def _is_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()
