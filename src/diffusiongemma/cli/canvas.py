"""A canvas as lines of a terminal: its text, dimmed where it is unsure, marked where it changed.

Pure: texts, entropies and a size go in, lines with colours come out, none of them wider than the
terminal. Where the lines are put is `screen`'s business.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from diffusiongemma.cli.screen import columns
from diffusiongemma.core.letters import printable
from diffusiongemma.dialog.pieces import pieces
from diffusiongemma.dialog.tokenizer import Tokenizer

DOUBTS = (0.1, 0.5, 1.5, 3.0)  # nats; beyond each, a token is a shade nearer to the background
RETURN = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"  # a line break that may yet be none
MARK = "\N{MIDDLE DOT}"  # a control token
MORE = "\N{HORIZONTAL ELLIPSIS}"

# Of the 256 colours' ramp of greys, all of them told from their background.
_ON_DARK = ("", "38;5;250", "38;5;246", "38;5;243", "38;5;240")
_ON_LIGHT = ("", "38;5;238", "38;5;241", "38;5;244", "38;5;247")
_REVISED = "4"  # underlined


@dataclass(frozen=True, slots=True)
class Look:
    """How a canvas may look on this terminal.

    Attributes:
        styles: for each level of doubt, how its tokens are written; empty: all are alike.
    """

    styles: tuple[str, ...]

    @classmethod
    def here(cls, *, colour: bool) -> "Look":
        """What the environment says: COLORFGBG names the background in some terminals."""
        light = os.environ.get("COLORFGBG", "").rpartition(";")[2] in ("7", "15")
        return cls((_ON_LIGHT if light else _ON_DARK) if colour else ())

    def style(self, entropy: float, revised: bool) -> str:
        """The parameters of a token's style; empty for plain."""
        if not self.styles:
            return ""
        parts = [self.styles[level(entropy)], _REVISED if revised else ""]
        return ";".join(part for part in parts if part)


def level(entropy: float) -> int:
    """How unsure, from 0."""
    return sum(entropy > doubt for doubt in DOUBTS)


def texts(tokenizer: Tokenizer | None, ids: Sequence[int]) -> list[str]:
    """What each token of a canvas shows; without the control tokens that end it."""
    if tokenizer is None:
        return [f"{token} " for token in ids]
    end = len(ids)
    while end and tokenizer.is_control(ids[end - 1]):
        end -= 1
    shown = pieces(tokenizer, ids[:end])
    return [
        MARK if tokenizer.is_control(token) else text
        for token, text in zip(ids, shown, strict=False)
    ]


def lines(
    shown: Sequence[str],
    entropy: Sequence[float],
    revised: Sequence[bool],
    *,
    look: Look,
    column: int,
    width: int,
    height: int,
) -> list[str]:
    """Lay a canvas out.

    Args:
        shown: what each position shows; positions beyond show nothing.
        entropy: of each position, in nats.
        revised: which positions changed with this step.
        look: the colours.
        column: where the first line begins.
        width: of the terminal.
        height: lines there may be; what is more, from the end, becomes one mark.
    """
    page = _Page(column, width, height)
    for text, doubt, changed in zip(shown, entropy, revised, strict=False):
        style = look.style(doubt, changed)
        for letter in printable(text):
            if letter == "\n" and level(doubt) > 1:
                letter = RETURN  # the canvas would jump with every newline in the noise
            page.put(letter, style)
        if page.full:
            break
    return page.lines()


class _Page:
    """Lines being written."""

    def __init__(self, column: int, width: int, height: int) -> None:
        self._column, self._width, self._height = column, width, height
        self._lines: list[str] = [""]
        self._style = ""

    @property
    def full(self) -> bool:
        """Whether there are more lines than may be."""
        return len(self._lines) > self._height

    def put(self, letter: str, style: str) -> None:
        """Write one letter, on the next line if there is no room for it."""
        if letter == "\n":
            self._next()
            return
        if letter == "\t":
            for _ in range(8 - self._column % 8):
                if self._column < self._width:
                    self.put(" ", style)
            return
        size = columns(letter)
        if size > self._width:
            letter, size = "?", 1
        if self._column + size > self._width:
            self._next()
        self._turn(style)
        self._lines[-1] += letter
        self._column += size

    def lines(self) -> list[str]:
        """All of them, cut to the height."""
        self._turn("")
        if self.full:
            return [*self._lines[: self._height - 1], MORE][: self._height]
        return self._lines

    def _next(self) -> None:
        self._turn("")
        self._lines.append("")
        self._column = 0

    def _turn(self, style: str) -> None:
        if style != self._style:
            self._lines[-1] += "\x1b[m" if self._style else ""
            self._lines[-1] += f"\x1b[{style}m" if style else ""
            self._style = style
