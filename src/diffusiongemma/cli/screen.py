"""What a terminal shows: an answer that grows, a line of status below it, dimmed asides.

Knows two streams and a few control sequences; knows no model. Where a stream is no terminal, no
control sequence is ever sent to it.
"""

import json
import os
import re
import shutil
import sys
import unicodedata
from typing import Any

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_DIM, _PLAIN = "\x1b[2m", "\x1b[22m"
_SAVE, _RESTORE = "\x1b7", "\x1b8"
_ROOM_BELOW = "\x1bD\x1b[A"  # one line down, which scrolls if it must, and up again
_NEXT_LINE = "\x1b[B\r"
_END_OF_LINE, _ALL_BELOW = "\x1b[K", "\x1b[J"


def printable(text: str) -> str:
    """A text that cannot steer a terminal: controls other than tab and newline become a mark."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


class Screen:
    """Standard output and standard error, as a reader sees them together.

    Attributes:
        shows_answer: standard output is a terminal, so an answer is worth showing as it grows.
        shows_status: standard error is a terminal that can rewrite a line.
    """

    def __init__(self) -> None:
        clever = os.environ.get("TERM") != "dumb"
        self.shows_answer = _is_terminal(sys.stdout)
        self.shows_status = _is_terminal(sys.stderr) and clever
        self._colour = clever and not os.environ.get("NO_COLOR")
        self._column = 0  # of the cursor; the width itself after a line that is just full
        self._status = False

    def status(self, text: str) -> None:
        """Show a line below the cursor, in place of the one before."""
        if not self.shows_status:
            return
        width = _width()
        if self._column >= width:  # a terminal forgets, when moved, that its next letter must wrap
            return
        there = _ROOM_BELOW + _SAVE + _NEXT_LINE if self._column else _SAVE
        shown = self._dimmed(printable(text)[: width - 1])
        print(there + shown + _END_OF_LINE + _RESTORE, end="", file=sys.stderr, flush=True)
        self._status = True

    def clear(self) -> None:
        """Take the status away."""
        if self._status:
            print(_ALL_BELOW, end="", file=sys.stderr, flush=True)
        self._status = False

    def say(self, text: str, *, dim: bool = False) -> None:
        """Add to the answer on a terminal."""
        if not text:
            return
        self.clear()
        text = printable(text)
        self._column = _moved(self._column, text, _width())
        print(self._dimmed(text) if dim else text, end="", flush=True)

    def end_line(self) -> None:
        """Begin a new line, unless the cursor is at the start of one."""
        self.clear()
        if self._column:
            print(flush=True)
        self._column = 0

    def note(self, text: str) -> None:
        """A line on standard error, dimmed where that can be."""
        self.clear()
        text = printable(text)
        print(self._dimmed(text) if self.shows_status else text, file=sys.stderr)

    def _dimmed(self, text: str) -> str:
        return f"{_DIM}{text}{_PLAIN}" if self._colour else text


def _width() -> int:
    return shutil.get_terminal_size().columns


def _moved(column: int, text: str, width: int) -> int:
    """Where the cursor is after a text."""
    for letter in text:
        if letter == "\n":
            column = 0
        elif letter == "\t":
            column = min((column // 8 + 1) * 8, width - 1)
        elif unicodedata.category(letter) not in ("Mn", "Me", "Cf"):
            size = 2 if unicodedata.east_asian_width(letter) in "WF" else 1
            column = size if column + size > width else column + size
    return column


def _is_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON that standard output can carry: escapes for letters that its encoding lacks."""
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "")
    return json.dumps(value, ensure_ascii=encoding != "utf8", indent=indent)
