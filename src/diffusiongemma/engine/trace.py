"""A run, recorded: every step of every canvas, and how each token reads.

A trace holds the events that a stream gave, so whoever can follow a stream can follow a trace: no
model, no tokenizer and no torch is needed. How it is written down is `recorder`'s business, how it
is stored `trace_file`'s.
"""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusiongemma.core.letters import visible
from diffusiongemma.engine.events import Committed, Event, Finished, Refined

# Positions times steps that a trace holds: a file of some 25 MB, and 80 canvases of 256 positions
# that took all of 48 steps each. Of what comes after, only the last step of a canvas is kept.
LIMIT = 1_000_000

KINDS = ("text", "mark", "bytes", "id")
_CARRIED = "\N{DOTTED CIRCLE}"  # what a combining letter stands on when it stands alone


@dataclass(frozen=True, slots=True)
class Token:
    """How one token reads.

    Attributes:
        kind: `text`; `mark`, a control token, by its name; `bytes`, a part of a character, in
            hexadecimal digits; `id`, its number, where there is no tokenizer.
        text: printable, but for newlines.
    """

    kind: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What led to a run. The first line of a trace.

    Attributes:
        model: hub id or the folder's name, without its path.
        prompt: as text; token ids are listed, pictures are named.
        seed: of all randomness.
        options: all of the sampler's, and what else was asked.
        device: what computed it, and in which format.
        versions: of this package, Python and torch.
    """

    model: str
    prompt: str
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A run.

    Attributes:
        about: what led to it.
        events: what its stream gave: `Finished` is the last. Entropies are rounded.
        tokens: how every token reads that occurs.
        left_out: steps that were not kept, see `LIMIT`.
    """

    about: About
    events: tuple[Event, ...]
    tokens: Mapping[int, Token]
    left_out: int = 0

    @property
    def finished(self) -> Finished:
        """The end."""
        last = self.events[-1]
        assert isinstance(last, Finished)
        return last

    def canvases(self) -> list[tuple[list[Refined], Committed]]:
        """The steps of each canvas, and what it became."""
        found: list[tuple[list[Refined], Committed]] = []
        steps: list[Refined] = []
        for event in self.events:
            if isinstance(event, Refined):
                steps.append(event)
            elif isinstance(event, Committed):
                found.append((steps, event))
                steps = []
        return found


def clean(text: str) -> str:
    """A text that cannot steer what shows it: no controls, no reordering, nothing unassigned."""
    carried = _CARRIED if text and unicodedata.category(text[0]) in ("Mn", "Me") else ""
    return carried + visible(text, keep="\n")
