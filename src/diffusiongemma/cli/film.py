"""Figures of a trace as SVG: one that moves, for a README, and a strip of moments, for a page.

Each is one file with no script and nothing to fetch. Knows drawings; what is drawn comes from
`draw`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diffusiongemma.cli.draw import (
    FONT,
    LEVELS,
    SANS,
    Cell,
    Frame,
    Place,
    arrange,
    attributes,
    fitted,
    frames,
    level,
    style,
    ticks,
    top,
    xml,
)
from diffusiongemma.core.errors import InputError
from diffusiongemma.engine.trace import Trace

WIDTH = 720.0
MAX_BYTES = 300_000  # of a moving picture; beyond it, frames are left out until it fits
LETTER, SIZE = 9.6, 16  # width of a letter and size of the font
PAD, GAP, ROW, HIGH = 4.8, 3.0, 33.0, 28.0  # of cells
HEAD, FOOT = 44.0, 40.0

_FIRST, _EACH, _LAST = 0.9, 0.3, 3.2  # seconds: the noise, a step, the answer


def moving(trace: Trace, canvas: int = 0) -> str:
    """A picture of a canvas that settles, over and over; readers who want no motion see its end.

    Args:
        trace: the run.
        canvas: its index.

    Raises:
        InputError: no such canvas, or one that is too large for a picture.
    """
    all_frames = frames(trace, canvas)
    for most in (len(all_frames), 40, 28, 20, 14, 10, 7, 5):
        picture = _Moving(trace, _chosen(all_frames, most)).draw()
        if len(picture.encode()) < MAX_BYTES:
            return picture
    raise InputError(
        f"canvas {canvas + 1} has {len(all_frames[0].cells)} positions, too many for a moving "
        "picture; record one with a smaller --canvas-length"
    )


def strip(trace: Trace, canvas: int = 0, moments: int = 5) -> str:
    """A handful of moments of a canvas, one below the other, and all its entropies as a map.

    Args:
        trace: the run.
        canvas: its index.
        moments: how many, noise and answer included.

    Raises:
        InputError: no such canvas, or fewer than two moments.
    """
    if moments < 2:
        raise InputError(f"a strip has at least 2 moments, got {moments}")
    return _Strip(trace, frames(trace, canvas), moments).draw()


def _chosen(given: Sequence[Frame], most: int) -> list[Frame]:
    """So many frames, evenly apart, first and last among them."""
    if most >= len(given):
        return list(given)
    return [given[round(n * (len(given) - 1) / (most - 1))] for n in range(most)]


def _open(width: float, height: float, title: str, about: str, css: str) -> str:
    box = {"viewBox": f"0 0 {width:g} {height:g}", "width": width, "height": height}
    named = 'role="img" aria-labelledby="t d"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg"{attributes(box)} {named}>'
        f'<title id="t">{xml(title)}</title><desc id="d">{xml(about)}</desc>'
        f"<style>{style()}{css}</style>"
    )


def _rect(place: Place, height: float, **more: object) -> str:
    at = {"x": place.x, "y": place.y, "width": place.width, "height": height, "rx": 4}
    return f"<rect{attributes(at | more)}/>"


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f"<text{attributes({'x': x, 'y': y, 'class': kind})}>{xml(text)}</text>"


@dataclass(frozen=True, slots=True)
class _Run:
    """A text that a position shows from one frame until before another."""

    cell: Cell
    start: int
    end: int


def _runs(cells: Sequence[Cell]) -> Iterator[_Run]:
    start = 0
    for number in range(1, len(cells) + 1):
        same = number < len(cells) and (cells[number].text, cells[number].kept) == (
            cells[start].text,
            cells[start].kept,
        )
        if not same:
            yield _Run(cells[start], start, number)
            start = number


class _Moving:
    """The picture that moves."""

    def __init__(self, trace: Trace, chosen: Sequence[Frame]) -> None:
        self._trace, self._frames = trace, chosen
        inner = WIDTH - 2 * PAD
        self._places = arrange(
            chosen[-1].cells, width=inner, letter=LETTER, pad=PAD, gap=GAP, height=ROW
        )
        times = [0.0, *(_FIRST + _EACH * n for n in range(len(chosen) - 1))]
        self._seconds = times[-1] + _LAST
        self._at = [100 * time / self._seconds for time in times]
        self._spans: set[tuple[int, int]] = set()

    def draw(self) -> str:
        """All of it."""
        body = [*self._cells(), *self._counter()]  # first: it finds the spans that the style needs
        height = HEAD + self._places[-1].y + ROW + FOOT
        reply = self._trace.finished.reply
        about = f"{len(self._frames)} moments of a canvas that settles into: {reply.text}"
        head = _open(WIDTH, height, f"“{self._trace.about.prompt}”", about, self._style())
        prompt = fitted(" ".join(self._trace.about.prompt.split()), WIDTH - 30, LETTER)
        frame = {"x": 0.5, "y": 0.5, "width": WIDTH - 1, "height": height - 1, "rx": 8}
        asked = _text(PAD + 4, 28, "> " + prompt, "p")
        return f'{head}<rect class="a"{attributes(frame)}/>{asked}{"".join(body)}</svg>\n'

    def _cells(self) -> Iterator[str]:
        yield f'<g transform="translate({PAD:g} {HEAD:g})">'
        for number, place in enumerate(self._places):
            yield _rect(place, HIGH, **{"class": f"b c0 b{number}"})
            x, y = place.x + place.width / 2, place.y + HIGH / 2 + 5.5
            for run in _runs([frame.cells[number] for frame in self._frames]):
                answer = run.end == len(self._frames)
                letter = LETTER if run.cell.kept or answer else 0.75 * LETTER
                text = fitted(run.cell.text.strip(), place.width - 2, letter)
                if text:
                    yield _text(x, y, text, self._kind(run))
        yield "</g>"

    def _counter(self) -> Iterator[str]:
        """Which step it is, and how far the canvas has come."""
        y = HEAD + self._places[-1].y + ROW + 18
        total = self._frames[-1].step
        for number, frame in enumerate(self._frames):
            said = f"step {frame.step} of {total}" if frame.step else "noise"
            if frame.committed:
                stats = self._trace.finished.reply.stats
                said = f"{total} steps, {stats.tokens_per_forward:.1f} tokens per forward"
            run = _Run(Cell(said, 0, True, False), number, number + 1)
            yield _text(PAD + 4, y + 5, said, "s " + self._kind(run))
        track = {"x": WIDTH / 2, "y": y - 1.5, "width": WIDTH / 2 - 12, "height": 3, "rx": 1.5}
        yield f'<rect class="l"{attributes(track)}/><rect class="g"{attributes(track)}/>'

    def _kind(self, run: _Run) -> str:
        """The classes of a text: in ink or faint, and when it shows."""
        answer = run.end == len(self._frames)
        ink = "" if run.cell.kept else "q " if answer else "n "
        if (run.start, run.end) == (0, len(self._frames)):
            return ink + "f"
        self._spans.add((run.start, run.end))
        final = " f" if answer else ""
        return f"{ink}v v{run.start}-{run.end}{final}"

    def _style(self) -> str:
        css = [
            f"text{{font:{SIZE}px {FONT};text-anchor:middle;fill:var(--ink);opacity:0}}",
            ".p{text-anchor:start;opacity:1}",
            f".s{{font:13px {SANS};text-anchor:start;fill:var(--soft)}}",
            ".n{font-size:12px;fill-opacity:.8}.q{fill:var(--soft)}.f{opacity:1}",
            ".a{fill:var(--paper);stroke:var(--line)}.l{fill:var(--line)}.g{fill:var(--accent)}",
            f".v{{animation:{self._seconds:.2f}s step-end infinite}}",
            f".b,.g{{animation:{self._seconds:.2f}s linear infinite}}",
            f".g{{transform-origin:{WIDTH / 2:g}px 0;animation-name:g}}",
            "@keyframes g{"
            f"0%,{self._at[1]:.1f}%{{transform:scaleX(0)}}"
            f"{self._at[-1]:.1f}%,100%{{transform:none}}}}",
        ]
        for start, end in sorted(self._spans):
            css.append(f".v{start}-{end}{{animation-name:v{start}-{end}}}")
            stops = ["0%{opacity:0}"] if start else []
            stops.append(f"{self._at[start]:.2f}%{{opacity:1}}")
            stops.append(f"{self._at[end]:.2f}%{{opacity:0}}" if end < len(self._at) else "")
            css.append(f"@keyframes v{start}-{end}{{{''.join(stops)}}}")
        for number in range(len(self._places)):
            css.append(f".b{number}{{animation-name:b{number}}}@keyframes b{number}{{")
            css.append("".join(self._shades(number)) + "}")
        css.append("@media(prefers-reduced-motion:reduce){.v,.b,.g{animation:none}}")
        return "".join(css)

    def _shades(self, number: int) -> Iterator[str]:
        """Keyframes of a cell's colour; those between two alike are left out."""
        shades = [frame.cells[number].level for frame in self._frames]
        for n, shade in enumerate(shades):
            inside = 0 < n < len(shades) - 1
            if inside and shades[n - 1] == shade == shades[n + 1]:
                continue
            yield f"{self._at[n]:.1f}%{{fill:var(--c{shade})}}"
            if n == 0:  # the noise stands for a while before the first step
                yield f"{0.7 * self._at[1]:.1f}%{{fill:var(--c{shade})}}"
        yield f"100%{{fill:var(--c{shades[-1]})}}"


class _Strip:
    """The figure that stands still."""

    LEFT = 84.0  # of the labels

    def __init__(self, trace: Trace, given: Sequence[Frame], moments: int) -> None:
        self._trace, self._frames, self._most = trace, given, top(trace)
        self._moments = _telling(given, moments)
        room = WIDTH - self.LEFT - 8
        sizes = {"width": room, "letter": 8.4, "gap": 2.0, "height": 26.0}
        self._places = arrange(given[-1].cells, pad=3.0, **sizes)
        self._aligned = self._places[-1].y == 0 and len(self._places) == len(given[0].cells)
        if self._aligned:  # one row: let it fill the room, so that the map can stand below it
            spare = room - self._places[-1].x - self._places[-1].width
            pad = 3.0 + spare / len(self._places) / 2 - 0.01
            self._places = arrange(given[-1].cells, pad=pad, **sizes)
        self._tall = self._places[-1].y + 26

    def draw(self) -> str:
        """All of it."""
        parts: list[str] = []
        y = 12.0
        for frame in self._moments:
            parts.append(f'<g transform="translate(0 {y:g})">{"".join(self._row(frame))}</g>')
            y += self._tall + 12
        parts.append(f'<g transform="translate(0 {y + 10:g})">{"".join(self._map())}</g>')
        y += 10 + self._map_height + 34
        parts.append(f'<g transform="translate({self.LEFT:g} {y:g})">{"".join(self._legend())}</g>')
        height = y + 44
        css = (
            f"text{{font:14px {FONT};text-anchor:middle;fill:var(--ink)}}"
            f".n{{font-size:10.5px;opacity:.8}}"
            f".s{{font:13px {SANS};text-anchor:end;fill:var(--soft)}}"
            ".m{text-anchor:middle}.e{text-anchor:start}.a{fill:var(--paper)}"
        )
        about = f"{len(self._moments)} moments of a canvas, and its entropies by position and step"
        title = f"“{self._trace.about.prompt}”"
        back = {"width": WIDTH, "height": height, "class": "a", "rx": 8}
        head = _open(WIDTH, height, title, about, css)
        return f"{head}<rect{attributes(back)}/>{''.join(parts)}</svg>\n"

    def _row(self, frame: Frame) -> Iterator[str]:
        said = "noise" if frame.step == 0 else f"step {frame.step}"
        yield _text(self.LEFT - 12, 16, "answer" if frame.committed else said, "s")
        for place, cell in zip(self._places, frame.cells, strict=False):
            at = Place(self.LEFT + place.x, place.y, place.width)
            yield _rect(at, 22, **{"class": f"c{cell.level}"})
            loose = not (cell.kept or frame.committed)
            text = fitted(cell.text.strip(), place.width - 2, 6.3 if loose else 8.4)
            if text:
                y = at.y + (14.5 if loose else 15.5)
                yield _text(at.x + at.width / 2, y, text, "n" if loose else "i")

    @property
    def _steps(self) -> list[Frame]:
        return [frame for frame in self._frames if frame.step and not frame.committed]

    @property
    def _map_height(self) -> float:
        return min(9.0 * len(self._steps), 260.0)

    def _map(self) -> Iterator[str]:
        """Entropy: a row for each step, a column for each position."""
        steps = self._steps
        width = (WIDTH - self.LEFT - 8) / len(steps[0].cells)
        edges = [n * width for n in range(len(steps[0].cells) + 1)]
        if self._aligned:
            edges = [place.x - 1 for place in self._places]
            edges.append(self._places[-1].x + self._places[-1].width + 1)
        height = self._map_height / len(steps)
        for row, frame in enumerate(steps):
            for start, end, shade in _stretches([cell.level for cell in frame.cells]):
                at = {
                    "x": self.LEFT + edges[start],
                    "y": row * height,
                    "width": edges[end] - edges[start] + 0.2,  # no hairlines between neighbours
                    "height": height + 0.2,
                    "class": f"c{shade}",
                }
                yield f"<rect{attributes(at)}/>"
        yield _text(self.LEFT - 12, 10, "step 1", "s")
        if self._map_height > 30:
            yield _text(self.LEFT - 12, self._map_height, f"step {steps[-1].step}", "s")
        y = self._map_height + 17
        yield _text(self.LEFT, y, "position 1", "s e")
        yield _text(WIDTH - 8, y, f"position {len(steps[0].cells)}", "s")

    def _legend(self) -> Iterator[str]:
        for shade in range(LEVELS):
            at = {"x": 14.0 * shade, "y": 0, "width": 14.2, "height": 10, "class": f"c{shade}"}
            yield f"<rect{attributes(at)}/>"
        for nats in ticks(self._most):
            x = 14.0 * (level(nats, self._most) + 0.5)
            yield _text(x, 25, f"{nats:g}", "s m")
        x = 14.0 * LEVELS + 12
        yield _text(x, 9.5, "nats of doubt; small: noise again at the next step", "s e")


def _telling(given: Sequence[Frame], moments: int) -> list[Frame]:
    """Noise, the answer, and between them steps by how much of the doubt is left."""
    inner = [frame for frame in given if frame.step and not frame.committed]
    chosen = inner[:1] if moments > 2 else []
    for number in range(1, moments - 2):
        share = 1 - number / (moments - 2)
        left = (f for f in inner if f.entropy <= share * inner[0].entropy and f not in chosen)
        chosen += [found] if (found := next(left, None)) else []
    return [given[0], *sorted(chosen, key=lambda frame: frame.step), given[-1]]


def _stretches(shades: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Runs of one shade: start, end, shade."""
    start = 0
    for number in range(1, len(shades) + 1):
        if number == len(shades) or shades[number] != shades[start]:
            yield start, number, shades[start]
            start = number
