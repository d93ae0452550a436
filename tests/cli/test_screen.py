"""The terminal: what a reader sees, on a small terminal made here and on a real pty."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pyte
import pytest

import diffusiongemma as dg
from cli_help import COMMAND, ENDLESS, ENVIRONMENT, QUICK
from cli_window import Window
from diffusiongemma.cli import canvas
from diffusiongemma.cli.screen import Screen
from diffusiongemma.core.letters import printable


class Terminal:
    """A small terminal that knows the sequences of `screen.py`, and no others."""

    encoding = "utf-8"

    def __init__(self, columns: int = 20, lines: int = 5) -> None:
        self.columns, self.lines = columns, lines
        self.rows = [[" "] * columns for _ in range(lines)]
        self.scrolled: list[str] = []
        self.y = self.x = 0
        self.wrap = False  # the next letter goes to the next line
        self.saved = (0, 0, False)

    def isatty(self) -> bool:
        return True

    def flush(self) -> None:
        pass

    def write(self, text: str) -> int:
        for part in re.findall(r"\x1b[78D]|\x1b\[[0-9]*[A-Za-z]|[^\x1b]", text):
            self._take(part)
        return len(text)

    def _take(self, part: str) -> None:
        match part:
            case "\n":
                self._down()
                self.x, self.wrap = 0, False
            case "\r":
                self.x, self.wrap = 0, False
            case "\x1bD":
                self._down()
                self.wrap = False
            case "\x1b[A":
                self.y, self.wrap = max(0, self.y - 1), False
            case "\x1b[B":
                self.y, self.wrap = min(self.lines - 1, self.y + 1), False
            case "\x1b7":
                self.saved = (self.y, self.x, self.wrap)
            case "\x1b8":
                self.y, self.x, self.wrap = self.saved
            case "\x1b[K":
                self.rows[self.y][self.x :] = [" "] * (self.columns - self.x)
            case "\x1b[J":
                self._take("\x1b[K")
                for row in self.rows[self.y + 1 :]:
                    row[:] = [" "] * self.columns
            case "\x1b[2m" | "\x1b[22m":
                pass
            case "\t":
                self.x = min((self.x // 8 + 1) * 8, self.columns - 1)
            case _:
                self._letter(part)

    def _letter(self, letter: str) -> None:
        if letter == "\u0301":  # an accent, which stands with the letter before it
            return
        assert letter.isprintable(), repr(letter)
        width = 2 if "\u2e80" <= letter < "\ufe00" else 1
        if self.wrap or self.x + width > self.columns:
            self._down()
            self.x = 0
        self.rows[self.y][self.x : self.x + width] = [letter, ""][:width]
        self.wrap = self.x + width == self.columns
        self.x = min(self.x + width, self.columns - 1)

    def _down(self) -> None:
        if self.y == self.lines - 1:
            self.scrolled.append("".join(self.rows.pop(0)))
            self.rows.append([" "] * self.columns)
        else:
            self.y += 1

    @property
    def text(self) -> str:
        """Everything that was ever shown and stayed."""
        rows = [*self.scrolled, *("".join(row) for row in self.rows)]
        return "\n".join(row.rstrip() for row in rows).rstrip()


class Emulated:
    """A terminal that knows what real ones know."""

    encoding = "utf-8"

    def __init__(self, columns: int = 20, lines: int = 5) -> None:
        self.columns = columns
        self.screen = pyte.HistoryScreen(columns, lines, history=1000)
        self._stream = pyte.Stream(self.screen)

    def isatty(self) -> bool:
        return True

    def flush(self) -> None:
        pass

    def write(self, text: str) -> int:
        self._stream.feed(text.replace("\n", "\r\n"))  # as the terminal's driver does
        return len(text)

    @property
    def rows(self) -> list[str]:
        """Everything that was ever shown and stayed, down to the cursor's line."""
        columns, here = range(self.columns), self.screen.cursor.y
        top = ["".join(row[x].data for x in columns) for row in self.screen.history.top]
        return [row.rstrip() for row in (*top, *self.screen.display[: here + 1])]

    @property
    def text(self) -> str:
        """The same as one text, and what is below the cursor too."""
        below = [row.rstrip() for row in self.screen.display[self.screen.cursor.y + 1 :]]
        return "\n".join([*self.rows, *below]).rstrip()


@contextlib.contextmanager
def attached(terminal: "Terminal | Emulated", **variables: str) -> Iterator[Screen]:
    """A screen on this terminal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        patch.setattr(sys, "stderr", terminal)
        patch.delenv("NO_COLOR", raising=False)
        variables = {"TERM": "xterm", "COLUMNS": str(terminal.columns)} | variables
        for name, value in variables.items():
            patch.setenv(name, value)
        yield Screen()


PIECES = [
    ["one", " two", " three\n", "four\n", "\n", "five"],
    ["x" * 20, "y" * 20, "z"],
    ["x" * 19, "y", "\n", "end\n"],
    [f"line {n}\n" for n in range(9)],
    ["a long one that wraps over the border ", "and goes on ", "and on ", "to scroll " * 6],
    ["tab\t", "\tx", "\t" * 5, "end"],
    ["漢字", "漢字" * 5, "x" * 19, "漢", "e\u0301" * 20, "."],
]


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("lines", [1, 2, 5])
def test_the_status_never_harms_the_answer(pieces: list[str], lines: int) -> None:
    plain, terminal = Terminal(lines=lines), Terminal(lines=lines)
    plain.write("".join(pieces))
    with attached(terminal, LINES=str(lines)) as screen:
        screen.status("reading")
        for number, piece in enumerate(pieces):
            screen.say(piece)
            for step in range(3):
                screen.status(f"canvas {number}, step {step}, which is far too long for a line")
        screen.clear()
    assert terminal.text == plain.text
    assert len(terminal.scrolled) + terminal.y == len(plain.scrolled) + plain.y
    assert terminal.x == plain.x


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("lines", [1, 2, 5, 30])
def test_a_canvas_never_harms_the_answer(pieces: list[str], lines: int) -> None:
    plain, terminal = Emulated(lines=lines), Emulated(lines=lines)
    plain.write("".join(pieces))
    sizes = {"COLUMNS": "20", "LINES": str(lines)}
    with attached(terminal, **sizes) as screen:
        for number, piece in enumerate(pieces):
            for words in ("漢字 of a draft\t" * 3, "short", "", "\n\nmany\n\n\nlines"):
                column, width, height = screen.room()
                drawn = canvas.lines(
                    [words],
                    [0.4],
                    [True],
                    look=canvas.Look.here(colour=True),
                    column=column,
                    width=width,
                    height=height,
                )
                screen.draw(drawn, f"canvas {number}, which is far too long for a line")
            assert ("lines" in terminal.text) is (lines > 6)
            screen.say(piece)
        screen.clear()
    assert "draft" not in terminal.text and "canvas" not in terminal.text
    assert terminal.text == plain.text
    if not plain.text.endswith("x" * 20):  # where a line is just full, either place will do
        here, there = terminal.screen.cursor, plain.screen.cursor
        assert (here.x, len(terminal.rows)) == (there.x, len(plain.rows))


def test_a_canvas_stands_after_the_answer() -> None:
    terminal = Emulated()
    with attached(terminal, LINES="5") as screen:
        screen.say("said: ")
        assert screen.room() == (6, 20, 4)
        screen.draw(["drafted", "more"], "step 1")
        assert terminal.text == "said: drafted\nmore\nstep 1"
        screen.draw(["shorter"], "step 2")
        assert terminal.text == "said: shorter\nstep 2"
        screen.draw(["x" * 14, "漢" * 10, "y" * 20], "step 3")  # each fills its line
        assert terminal.text.split("\n") == ["said: " + "x" * 14, "漢" * 10, "y" * 20, "step 3"]
        screen.draw(["a terminal may find letters wider than we do", "more"], "step 4")
        assert terminal.text.split("\n")[1:] == ["more", "step 4"]
        screen.say("it")
        assert terminal.text == "said: it"
        terminal.screen.resize(5, 6)
        terminal.columns = 6
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COLUMNS", "6")
            assert screen.room() == (2, 6, 4)


def test_a_line_is_wiped_before_it_is_written() -> None:
    """After it is full, the cursor stands on its last letter, and a wipe would take that."""
    said: list[str] = []
    terminal = Terminal()
    terminal.write = said.append  # pyright: ignore[reportAttributeAccessIssue]
    with attached(terminal) as screen:
        screen.room()
        screen.draw(["x" * 20, "y" * 20], "step 1")
    assert "\x1b[K" + "x" * 20 + "\r\n\x1b[K" + "y" * 20 + "\r\n\x1b[J" in "".join(said)


def test_the_status_stands_below_the_answer() -> None:
    terminal = Terminal()
    with attached(terminal) as screen:
        screen.status("step 1")
        assert terminal.text == "step 1"
        screen.say("hello")
        assert terminal.text == "hello"
        screen.status("step 2")
        screen.status("step 3")
        assert terminal.text == "hello\nstep 3"
        screen.end_line()
        screen.note("done")
        assert terminal.text == "hello\ndone"


@pytest.mark.parametrize(
    ("variables", "dims", "status"),
    [
        ({}, True, True),
        ({"NO_COLOR": ""}, True, True),
        ({"NO_COLOR": "1"}, False, True),
        ({"TERM": "dumb"}, False, False),
    ],
)
def test_colours_may_be_unwanted(variables: dict[str, str], dims: bool, status: bool) -> None:
    said: list[str] = []
    terminal = Terminal()
    terminal.write = said.append  # pyright: ignore[reportAttributeAccessIssue]
    with attached(terminal, **variables) as screen:
        screen.say("thinking", dim=True)
        screen.note("note")
        screen.status("status")
    assert ("\x1b[2m" in "".join(said)) is dims
    assert ("status" in "".join(said)) is status
    assert ("\x1b" in "".join(said)) is status


def test_a_model_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b]0;owned\x07b\r\x9b2J\tc\n") == "a�]0;owned�b��2J\tc\n"


def at_a_terminal(*words: object, stdout: int | None = None, **variables: str) -> str:
    """What a program writes to a real terminal."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    command = [*COMMAND, *map(str, words)]
    environment = ENVIRONMENT | {"TERM": "xterm"} | variables
    process = subprocess.Popen(
        command, stdin=slave, stdout=stdout or slave, stderr=slave, env=environment
    )
    os.close(slave)
    seen = b""
    with os.fdopen(master, "rb", buffering=0) as screen:
        try:
            while more := screen.read(4096):
                seen += more
        except OSError:  # how Linux says that the other end is closed
            pass
    assert process.wait(timeout=60) == 0, seen
    return seen.decode().replace("\r\n", "\n")


def test_an_answer_at_a_terminal(words: Path) -> None:
    reply = dg.load(words).generate("hello", seed=3, max_new_tokens=20, max_denoising_steps=4)
    seen = at_a_terminal("-m", words, "hello", *QUICK)
    assert "canvas 1, step 1, mean entropy " in seen
    terminal = Emulated(120, 24)
    terminal.write(seen[seen.index("\x1b7") :])  # after the bar of loading, which is not ours
    answer, summary = terminal.text.rsplit("\n", 1)
    assert answer == printable(reply.text)
    assert summary.startswith("20 tokens in ") and summary.endswith("tokens/forward, seed 3")
    assert "\x1b[2m" not in at_a_terminal("-m", words, "hello", *QUICK, NO_COLOR="1")


def test_only_the_answer_goes_into_a_pipe(words: Path, tmp_path: Path) -> None:
    reply = dg.load(words).generate("hello", seed=3, max_new_tokens=20, max_denoising_steps=4)
    with open(tmp_path / "out", "wb") as file:
        seen = at_a_terminal("-m", words, "hello", *QUICK, stdout=file.fileno())
    assert (tmp_path / "out").read_bytes() == (reply.text + "\n").encode()
    assert "canvas 1, step 4" in seen


def test_an_answer_is_drafted_in_place_until_ctrl_c(words: Path) -> None:
    window = Window("-m", words, "hello", *ENDLESS)
    window.until("canvas 1, step")
    assert not window.echoes and b"\x1b[38;5;" in window.raw
    window.type("these keys are not shown")
    window.type("\x03")
    assert window.close() == 130
    assert window.text == ""  # nothing was committed, and nothing else stays
    assert b"Traceback" not in window.raw
