"""What the tests of `chat` share: how it is opened, what it should say, how that looks."""

from collections.abc import Callable
from pathlib import Path

import pyte

import diffusiongemma as dg
from cli_window import Window
from diffusiongemma.cli.screen import printable

Open = Callable[..., Window]
OPTIONS = {"max_new_tokens": 20, "max_denoising_steps": 4}


def replies_as_they_are(folder: Path, *turns: str) -> list[str]:
    """What the door answers."""
    talk = dg.load(folder).converse(**OPTIONS)
    return [talk.generate(turn, seed=3).text for turn in turns]


def replies(folder: Path, *turns: str) -> list[str]:
    """What the door answers, as a terminal is told of it."""
    return [printable(text) for text in replies_as_they_are(folder, *turns)]


def seen_in(columns: int, text: str) -> list[str]:
    """How a terminal shows a text."""
    screen = pyte.Screen(columns, 200)
    pyte.Stream(screen).feed(text.replace("\n", "\r\n"))
    return [line.rstrip() for line in screen.display][: screen.cursor.y + 1]
