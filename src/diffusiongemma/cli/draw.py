"""What the pictures of a trace share: the colours of doubt, frames, and where each token stands.

The page, the animated picture and the film strip take their colours from here. Knows traces and
colours; the figures themselves are drawn in `film`, the page in `replay`.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from diffusiongemma.cli.screen import columns
from diffusiongemma.core.errors import InputError
from diffusiongemma.engine.trace import Token, Trace, clean

LEVELS = 14  # shades of doubt, the first being none
KNEE = 0.2  # nats up to which the scale is nearly even; beyond, it is nearly logarithmic

# Lightness, chroma and hue (OKLCH) of no doubt, of some, and of the most. Lightness runs one way,
# which every eye sees; on all of them the theme's ink has a contrast of 4.5 or more.
_RAMPS = {
    "light": ((0.968, 0.006, 95.0), (0.885, 0.100, 88.0), (0.715, 0.165, 46.0)),
    "dark": ((0.265, 0.006, 260.0), (0.390, 0.075, 70.0), (0.545, 0.150, 42.0)),
}
INKS = {
    "light": {"paper": "#fffefb", "ink": "#1d1c1a", "soft": "#5f5b53", "line": "#dcd8cf"},
    "dark": {"paper": "#151618", "ink": "#f2f0ec", "soft": "#a9a69f", "line": "#3a3b3f"},
}
_ACCENTS = {"light": "#1f5fd0", "dark": "#7fb0ff"}  # revised; blue stands off from amber to all
FONT = 'ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace'
SANS = 'system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif'

_WORD = re.compile(r" +\S")  # the beginning of a word, which stands off from what is before it

RETURN, MARK, PART = "↵", "◇", "·"  # a newline, a control token, a part of a character


@dataclass(frozen=True, slots=True)
class Cell:
    """One position at one moment.

    Attributes:
        text: what it shows, on one line.
        level: of doubt, from 0.
        kept: it is no noise.
        revised: the most likely token is another than a step ago.
    """

    text: str
    level: int
    kept: bool
    revised: bool


@dataclass(frozen=True, slots=True)
class Frame:
    """A canvas at one moment.

    Attributes:
        step: 0 for the noise it starts from.
        cells: one a position.
        entropy: mean, in nats; of the noise, as at the first step.
        accepted: how many positions were.
        committed: this is what joins the answer.
    """

    step: int
    cells: tuple[Cell, ...]
    entropy: float
    accepted: int
    committed: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a position's cell lies: units of the drawing, top left corner and width."""

    x: float
    y: float
    width: float


def colours(theme: str) -> list[str]:
    """The shades of doubt of a theme, evenly apart to the eye: equal distances in OKLab."""
    ends = [_lab(*one) for one in _RAMPS[theme]]
    fine = [_mixed(a, b, n / 200) for a, b in itertools.pairwise(ends) for n in range(200)]
    fine.append(ends[-1])
    far = [0.0]
    for a, b in itertools.pairwise(fine):
        far.append(far[-1] + math.dist(a, b))
    wanted = [far[-1] * n / (LEVELS - 1) for n in range(LEVELS)]
    return [_hex(fine[min(range(len(far)), key=lambda n: abs(far[n] - w))]) for w in wanted]


def variables(theme: str) -> str:
    """A theme as CSS variables: inks, an accent, shades `--c0` and up."""
    named = INKS[theme] | {"accent": _ACCENTS[theme]}
    named |= {f"c{n}": colour for n, colour in enumerate(colours(theme))}
    return "".join(f"--{name}:{value};" for name, value in named.items())


def style() -> str:
    """Both themes; the reader's system decides."""
    dark = f"@media(prefers-color-scheme:dark){{:root{{{variables('dark')}}}}}"
    shades = "".join(f".c{n}{{fill:var(--c{n})}}" for n in range(LEVELS))
    return f":root{{{variables('light')}}}{dark}{shades}"


def top(trace: Trace) -> float:
    """The entropy that gets the last shade: the highest of the trace, at least 1 nat."""
    highest = (max(s.entropy) for steps, _ in trace.canvases() for s in steps)
    return max(1.0, math.ceil(max(highest, default=1.0) * 2) / 2)


def level(entropy: float, most: float) -> int:
    """The shade of an entropy, where `most` has the last one."""
    share = math.log1p(max(entropy, 0.0) / KNEE) / math.log1p(most / KNEE)
    return min(LEVELS - 1, round(share * (LEVELS - 1)))


def ticks(most: float) -> list[float]:
    """Entropies for a legend to name."""
    return [0.0, *(tick for tick in (0.1, 0.5, 1.0, 2.0) if tick < 0.6 * most), most]


def shown(token: Token) -> str:
    """A token in one line of print."""
    match token.kind:
        case "mark":
            return MARK
        case "bytes":
            return PART
        case _:
            return clean(token.text).replace("\n", RETURN) or PART


def frames(trace: Trace, canvas: int) -> list[Frame]:
    """Noise, every step, and what was committed.

    Raises:
        InputError: the trace has no such canvas.
    """
    canvases = trace.canvases()
    if not 0 <= canvas < len(canvases):
        raise InputError(
            f"the trace has canvases 1 to {len(canvases)}, got {canvas + 1}; name one of them"
        )
    steps, commit = canvases[canvas]
    most, words = top(trace), trace.tokens
    first, last = steps[0], steps[-1]
    noise = tuple(
        Cell(shown(words[token]), LEVELS - 1, False, False)  # of noise, nothing is known
        for token in first.before
    )
    made = [Frame(0, noise, _mean(first.entropy), 0)]
    for step in steps:
        rows = zip(step.after, step.entropy, step.accepted, step.revised, strict=True)
        cells = tuple(Cell(shown(words[t]), level(e, most), a, r) for t, e, a, r in rows)
        made.append(Frame(step.step, cells, _mean(step.entropy), sum(step.accepted)))
    end = len(commit.tokens)
    final = tuple(
        Cell(shown(words[token]), 0, place < end, False) for place, token in enumerate(last.best)
    )
    made.append(Frame(last.step, final, _mean(last.entropy), sum(last.accepted), True))
    return made


def arrange(
    final: Sequence[Cell], *, width: float, letter: float, pad: float, gap: float, height: float
) -> list[Place]:
    """Where each position stands, all the time: as wide as the token it ends with.

    Rows below the one in which the answer ends are left out, so there may be fewer places than
    positions.

    Args:
        final: the committed canvas.
        width: of the drawing; a wider token is cut to it.
        letter: width of one.
        pad: beside the letters of a cell.
        gap: between cells.
        height: of a row.
    """
    end = max((n for n, cell in enumerate(final) if cell.kept), default=-1) + 1
    places: list[Place] = []
    x = y = 0.0
    for number, cell in enumerate(final):
        size = min(max(1, columns(cell.text.strip() or cell.text)) * letter + 2 * pad, width)
        x += letter / 2 if x and _WORD.match(cell.text) else 0.0
        if x + size > width or (number and final[number - 1].text.endswith(RETURN)):
            if number > end:
                break
            x, y = 0.0, y + height
        places.append(Place(x, y, size))
        x += size + gap
    return places


def fitted(text: str, room: float, letter: float) -> str:
    """A text cut to the room it has, with a mark that something is missing."""
    if columns(text) * letter <= room:
        return text
    most = max(1, int(room / letter))
    mark = "…" if most > 2 else ""
    widths = itertools.accumulate(map(columns, text))
    too_wide = (end for end, width in enumerate(widths) if width > most - len(mark))
    return text[: next(too_wide, len(text))] + mark


def xml(text: str) -> str:
    """Text for an SVG: nothing that XML forbids, nothing that it would read."""
    return escape(clean(text), {'"': "&quot;"})


def attributes(given: Mapping[str, object]) -> str:
    """Attributes of an element, numbers without needless digits."""
    return "".join(f' {name}="{_short(value)}"' for name, value in given.items())


def _short(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else xml(str(value))


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


_Lab = tuple[float, float, float]


def _lab(lightness: float, chroma: float, hue: float) -> _Lab:
    angle = math.radians(hue)
    return lightness, chroma * math.cos(angle), chroma * math.sin(angle)


def _mixed(one: _Lab, other: _Lab, share: float) -> _Lab:
    a, b, c = (x + (y - x) * share for x, y in zip(one, other, strict=True))
    return a, b, c


def _hex(lab: _Lab) -> str:
    """OKLab to sRGB, with Ottosson's matrices (2020)."""
    light, a, b = lab
    long = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (light - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
    )
    return "#" + "".join(f"{round(255 * _gamma(channel)):02x}" for channel in linear)


def _gamma(channel: float) -> float:
    channel = min(1.0, max(0.0, channel))
    return 12.92 * channel if channel <= 0.0031308 else 1.055 * channel ** (1 / 2.4) - 0.055
