"""What those who watch at a terminal may choose: a pace of the canvas, and whether figures follow.

A pace only makes up for what a step took less, so a model that is slower is not slowed. Where no
canvas is drawn, there is nothing to look at and no pace.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

from diffusiongemma.cli.options import Parser, take
from diffusiongemma.core.errors import OptionError
from diffusiongemma.core.letters import brief

PACE = 0.2  # seconds: one look. The small model settles a canvas in 2 to 6 steps of 2 ms
LONGEST = 60.0
NAP = 0.1  # seconds; Ctrl-C that comes right before a sleep is not heard before its end


class Pace:
    """Holds up steps that come too soon.

    Attributes:
        seconds: from one step to the next, at least.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self._until = seconds, 0.0

    def wait(self) -> None:
        """Return when the step before was shown for its time; from now on it is this one's."""
        while (rest := self._until - time.monotonic()) > 0:
            time.sleep(min(rest, NAP))
        self._until = time.monotonic() + self.seconds


def add_watching(made: Parser) -> None:
    """Add --pace and --no-stats; `watching` reads them."""
    group = made.add_argument_group("at a terminal")
    usual = f"{PACE} with the small model, whose canvas is over in a blink; 0 with others"
    take(group, "pace", type=seconds, usual=usual)
    take(group, "no-stats")


def watching(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What `Show` is to be told of these options, and of the checkpoint that answers."""
    from diffusiongemma.engine.open import SHIPPED

    usual = PACE if folder == SHIPPED else 0.0
    pace = Pace(usual if args.pace is None else args.pace)
    return {"pace": pace, "figures": not args.no_stats}


def check_unwatched(args: argparse.Namespace, why: str) -> None:
    """Refuse options that have no meaning where nothing is watched.

    Raises:
        OptionError: one was given.
    """
    for flag, given in (("--pace", args.pace is not None), ("--no-stats", args.no_stats)):
        if given:
            raise OptionError(f"{flag} has no meaning with {why}; omit one of them")


def seconds(text: str) -> float:
    """A pace, for argparse."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found <= LONGEST:
        raise argparse.ArgumentTypeError(f"must be 0 to {LONGEST:g} seconds, got {brief(text)}")
    return found
