"""What a verb says: a line for people, or data for programs.

The one door to standard output and standard error beside `screen`, which draws. Nothing that passes
here can steer a terminal.
"""

import json
import sys
from typing import Any

from diffusiongemma.core.errors import InputError
from diffusiongemma.core.letters import STEERING, printable


def check_open() -> None:
    """Refuse work whose result has nowhere to go.

    Raises:
        InputError: standard output is closed.
    """
    if sys.stdout is None:
        raise InputError("standard output is closed, and the result has nowhere to go; open it")


def say(text: str, *, aside: bool = False) -> None:
    """Print lines for people.

    Args:
        text: one line or several.
        aside: on standard error.
    """
    print(printable(text), file=sys.stderr if aside else sys.stdout, flush=True)


def give(text: str) -> None:
    """Print data on standard output: exactly, unless it goes to a terminal."""
    shown = sys.stdout is not None and sys.stdout.isatty()
    print(printable(text) if shown else text)


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON that standard output can carry and a terminal can show.

    Letters that the output's encoding lacks, and those that steer, are written as escapes.
    """
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "")
    text = json.dumps(value, ensure_ascii=encoding != "utf8", indent=indent)
    # Only a string can hold one: between strings JSON has ASCII alone, and json escapes the rest.
    return STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
