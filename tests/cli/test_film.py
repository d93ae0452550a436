"""Colours and figures of a trace: even shades, ink that can be read, pictures that stand alone."""

import itertools
import re
from xml.etree import ElementTree

import pytest

from diffusiongemma.cli import draw, film
from diffusiongemma.core.errors import InputError
from diffusiongemma.engine.trace import Token, Trace
from toy_trace import settle

EVIL = 'a < b && "c" </svg><script>alert(1)</script> ]]> \x1b \ufffe'
SVG = "{http://www.w3.org/2000/svg}"
THEMES = ("light", "dark")


@pytest.fixture(scope="module")
def trace() -> Trace:
    words = ["The", " sky", " is", "\n", " blue", ".", EVIL]
    return settle([words, [" It", " is", " late"]], steps=8, width=12, prompt=EVIL)


def linear(colour: str) -> list[float]:
    channels = [part / 255 for part in bytes.fromhex(colour[1:])]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]


def contrast(one: str, other: str) -> float:
    """Of WCAG 2."""
    light = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in map(linear, (one, other))]
    return (max(light) + 0.05) / (min(light) + 0.05)


def oklab(colour: str) -> tuple[float, float, float]:
    """sRGB to OKLab, the way back of the one that is tested."""
    r, g, b = linear(colour)
    cone = (
        (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b) ** (1 / 3),
        (0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b) ** (1 / 3),
        (0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b) ** (1 / 3),
    )
    x, y, z = cone
    return (
        0.2104542553 * x + 0.7936177850 * y - 0.0040720468 * z,
        1.9779984951 * x - 2.4285922050 * y + 0.4505937099 * z,
        0.0259040371 * x + 0.7827717662 * y - 0.8086757660 * z,
    )


@pytest.mark.parametrize("theme", THEMES)
def test_shades_are_even_and_run_one_way(theme: str) -> None:
    shades = [oklab(colour) for colour in draw.colours(theme)]
    assert len(shades) == draw.LEVELS
    gaps = [sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) ** 0.5
            for x, y in itertools.pairwise(shades)]  # fmt: skip
    assert max(gaps) < 1.25 * min(gaps)
    light = [lightness for lightness, _, _ in shades]
    assert light == sorted(light, reverse=theme == "light")
    assert abs(light[0] - light[-1]) > 0.2  # seen without any colour, too


@pytest.mark.parametrize("theme", THEMES)
def test_ink_can_be_read_on_every_shade(theme: str) -> None:
    ink = draw.INKS[theme]
    assert min(contrast(ink["ink"], shade) for shade in draw.colours(theme)) >= 4.5
    assert contrast(ink["soft"], ink["paper"]) >= 4.5


def test_levels_rise_with_entropy() -> None:
    levels = [draw.level(n / 100, 5.0) for n in range(600)]
    assert levels == sorted(levels)
    assert levels[0] == 0 and levels[500:] == [draw.LEVELS - 1] * 100
    assert set(levels) == set(range(draw.LEVELS))


@pytest.mark.parametrize(
    ("token", "text"),
    [
        (Token("text", " moon"), " moon"),
        (Token("text", "a\n"), "a↵"),
        (Token("text", ""), "·"),
        (Token("mark", "<turn|>"), "◇"),
        (Token("bytes", "E2"), "·"),
        (Token("id", "731"), "731"),
    ],
)
def test_how_a_token_is_shown(token: Token, text: str) -> None:
    assert draw.shown(token) == text


def test_frames_are_noise_steps_and_what_is_committed(trace: Trace) -> None:
    (steps, commit), _ = trace.canvases()
    noise, *inner, final = draw.frames(trace, 0)
    assert not any(cell.kept for cell in noise.cells)
    assert [frame.step for frame in inner] == list(range(1, 9))
    for frame, step in zip(inner, steps, strict=True):
        assert tuple(cell.kept for cell in frame.cells) == step.accepted
        assert frame.accepted == sum(step.accepted)
    assert final.committed and not noise.committed
    said = [draw.shown(trace.tokens[token]) for token in commit.tokens]
    assert [cell.text for cell in final.cells if cell.kept] == said


def test_cells_keep_their_places_and_stay_inside(trace: Trace) -> None:
    cells = draw.frames(trace, 0)[-1].cells
    places = draw.arrange(cells, width=90, letter=8, pad=3, gap=2, height=20)
    assert len(places) == len(cells)
    assert all(place.x >= 0 and place.x + place.width <= 90 for place in places)
    for one, other in itertools.pairwise(places):
        assert other.x >= one.x + one.width or (other.x == 0 and other.y == one.y + 20)
    after = next(n for n, cell in enumerate(cells) if cell.text.endswith("↵")) + 1
    assert places[after].x == 0  # a newline begins a row


def test_rows_behind_the_answer_are_left_out() -> None:
    cells = draw.frames(settle([["a", "b"]], width=40), 0)[-1].cells
    places = draw.arrange(cells, width=100, letter=8, pad=1, gap=0, height=20)
    assert (len(cells), len(places)) == (40, 10)


@pytest.mark.parametrize("figure", [film.moving, film.strip])
@pytest.mark.parametrize("canvas", [0, 1])
def test_a_figure_stands_alone(trace: Trace, canvas: int, figure: object) -> None:
    assert callable(figure)
    text = figure(trace, canvas)
    root = ElementTree.fromstring(text)
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert tags <= {"svg", "title", "desc", "style", "g", "rect", "text"}
    assert not re.search(r"href|url\(|@import|on\w+=", text)
    assert set(re.findall(r"\w+://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}
    title = root.find(f"{SVG}title")
    assert title is not None and title.text is not None and "</svg><script>" in title.text
    width = float(root.attrib["width"])
    for element in root.iter(f"{SVG}rect"):
        assert float(element.get("x", "0")) + float(element.get("width", "0")) <= width
    assert "prefers-color-scheme:dark" in text


def test_it_moves_unless_the_reader_wants_no_motion(trace: Trace) -> None:
    root = ElementTree.fromstring(film.moving(trace, 0))
    css = "".join(root.itertext())
    assert "@media(prefers-reduced-motion:reduce){.v,.b,.g{animation:none}}" in css
    # What has no animation shows the class f alone: the answer, and nothing of the steps.
    still = [t for t in root.iter(f"{SVG}text") if "f" in t.get("class", "").split()]
    final = draw.frames(trace, 0)[-1]
    words = [cell.text.strip() for cell in final.cells]
    shown = [text.text or "" for text in still[: len(words)]]
    assert [a.startswith(b.rstrip("…")) for a, b in zip(words, shown, strict=True)] == [True] * 7
    names = set(re.findall(r"animation-name:([\w-]+)", css))
    assert names and names <= set(re.findall(r"@keyframes ([\w-]+)", css))
    used = {kind for text in root.iter() for kind in text.get("class", "").split()}
    assert {name for name in names if name != "g"} <= used


def test_a_large_canvas_loses_frames_and_not_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    large = settle([[f" word{n}" for n in range(180)]], steps=48)
    monkeypatch.setattr(film, "MAX_BYTES", 10**9)
    whole = film.moving(large)
    monkeypatch.undo()
    text = film.moving(large)
    assert len(text.encode()) < film.MAX_BYTES < len(whole.encode())
    assert "48 steps" in text and "noise" in text


def test_a_canvas_beyond_all_pictures_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film, "MAX_BYTES", 5_000)
    with pytest.raises(InputError, match=r"has 30 positions, too many for a moving picture"):
        film.moving(settle([["word"]], width=30))


def test_wrong_canvases_and_moments_are_refused(trace: Trace) -> None:
    with pytest.raises(InputError, match=r"the trace has canvases 1 to 2, got 3"):
        film.moving(trace, 2)
    with pytest.raises(InputError, match=r"at least 2 moments, got 1"):
        film.strip(trace, 0, moments=1)


@pytest.mark.parametrize("moments", [2, 3, 5])
def test_a_strip_shows_noise_first_and_the_answer_last(trace: Trace, moments: int) -> None:
    root = ElementTree.fromstring(film.strip(trace, 0, moments))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    labels = [text for text in texts if text and re.fullmatch(r"noise|step \d+|answer", text)]
    rows = labels[: labels.index("answer") + 1]
    assert rows[0] == "noise" and len(rows) == moments
    steps = [int(row.removeprefix("step ")) for row in rows[1:-1]]
    assert steps == sorted(set(steps))


def test_the_map_covers_every_position_and_step() -> None:
    made = settle([["a", "b", "c"]], steps=5, width=8)
    root = ElementTree.fromstring(film.strip(made))
    bands = root.findall(f"{SVG}g")[-2].findall(f"{SVG}rect")
    width = {float(band.attrib["y"]): 0.0 for band in bands}
    for band in bands:
        width[float(band.attrib["y"])] += float(band.attrib["width"]) - 0.2
    assert len(width) == 5
    assert max(width.values()) - min(width.values()) < 2


@pytest.mark.parametrize(
    ("text", "room", "expected"),
    [
        ("four", 4, "four"),
        ("fours", 4, "fou…"),
        ("漢字", 4, "漢字"),
        ("漢字漢", 4, "漢…"),
        ("漢字", 2, "漢"),
        ("漢字", 0, ""),
        ("f", 0, "f"),
        ("f" * 1_000_000, 4, "fff…"),  # in one way over it
        ("e\u0301e\u0301", 2, "e\u0301e\u0301"),
    ],
)
def test_a_text_is_cut_to_the_columns_there_are(text: str, room: int, expected: str) -> None:
    assert draw.fitted(text, room * 8.0, 8.0) == expected
