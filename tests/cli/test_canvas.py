"""A canvas as lines: colours of doubt, wide letters, newlines in the noise, too little room."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_help import ROOT
from diffusiongemma.cli import canvas
from diffusiongemma.cli.canvas import Look
from diffusiongemma.cli.screen import columns
from diffusiongemma.dialog.tokenizer import Tokenizer
from toys_words import FIRST_BYTE, MARKS, write_words

PLAIN = Look(())


def laid(
    shown: list[str], *, column: int = 0, width: int = 10, height: int = 99, doubt: float = 0.0
) -> list[str]:
    alike = [doubt] * len(shown), [False] * len(shown)
    return canvas.lines(shown, *alike, look=PLAIN, column=column, width=width, height=height)


@pytest.mark.parametrize(
    ("shown", "column", "expected"),
    [
        ([], 0, [""]),
        (["one", " two"], 0, ["one two"]),
        (["one two three"], 0, ["one two th", "ree"]),
        (["one two"], 6, ["one ", "two"]),
        (["x"], 10, ["", "x"]),
        (["a\nb\n"], 0, ["a", "b", ""]),
        (["漢字漢字漢字"], 0, ["漢字漢字漢", "字"]),
        (["漢字漢字漢字"], 1, ["漢字漢字", "漢字"]),
        (["e\u0301" * 11], 0, ["e\u0301" * 10, "e\u0301"]),
        (["a\tb"], 0, ["a       b"]),
        (["a\tb"], 7, ["a  ", "b"]),
        (["\x1b[2J\x07"], 0, ["\ufffd[2J\ufffd"]),
    ],
)
def test_lines_break_where_a_terminal_would(
    shown: list[str], column: int, expected: list[str]
) -> None:
    assert laid(shown, column=column) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("ab", 2),
        ("漢字", 4),
        ("e\u0301", 1),
        ("\u1112\u1161", 2),
        ("😀", 2),
    ],
)
def test_letters_take_the_columns_that_terminals_give_them(text: str, expected: int) -> None:
    assert columns(text) == expected


def test_a_letter_wider_than_the_terminal_is_replaced() -> None:
    assert laid(["漢"], width=1) == ["?"]


def test_newlines_in_the_noise_do_not_break_the_line() -> None:
    assert laid(["a\nb"], doubt=0.3) == ["a", "b"]
    assert laid(["a\nb"], doubt=2.0) == [f"a{canvas.RETURN}b"]


def test_what_is_too_high_is_cut() -> None:
    assert laid(["one\ntwo\nthree\nfour"], height=3) == ["one", "two", canvas.MORE]
    assert laid(["one\ntwo\nthree"], height=3) == ["one", "two", "three"]
    assert laid(["one\ntwo"], height=1) == [canvas.MORE]


def test_doubt_dims_and_a_revision_is_underlined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLORFGBG", raising=False)
    look = Look.here(colour=True)
    shown, doubts = ["a", "b", "c", "d", "e"], [0.0, 0.2, 1.0, 2.0, 4.0]
    changed = [False, False, True, False, True]
    size = {"column": 0, "width": 80, "height": 9}
    (line,) = canvas.lines(shown, doubts, changed, look=look, **size)
    assert line == (
        "a\x1b[38;5;250mb\x1b[m\x1b[38;5;246;4mc\x1b[m\x1b[38;5;243md\x1b[m\x1b[38;5;240;4me\x1b[m"
    )
    monkeypatch.setenv("COLORFGBG", "0;15")
    (light,) = canvas.lines(shown, doubts, changed, look=Look.here(colour=True), **size)
    assert light != line and "38;5;247;4me" in light
    plain = Look.here(colour=False)
    assert canvas.lines(shown, doubts, changed, look=plain, **size) == ["abcde"]


def test_no_colour_runs_over_the_end_of_a_line() -> None:
    look = Look(("", "1", "2", "3", "4"))
    size = {"column": 0, "width": 2, "height": 9}
    assert canvas.lines(["abc\nd"], [0.2], [False], look=look, **size) == [
        "\x1b[1mab\x1b[m",
        "\x1b[1mc\x1b[m",
        "\x1b[1md\x1b[m",
    ]


@given(
    st.lists(st.tuples(st.text(max_size=4), st.floats(0, 9), st.booleans()), max_size=40),
    st.integers(0, 12),
    st.integers(1, 12),
    st.integers(1, 6),
)
def test_no_line_is_wider_than_the_terminal(cells, column: int, width: int, height: int) -> None:
    """And no control sequence but a colour's is in it, whatever a model writes."""
    shown, doubts, changed = [[cell[n] for cell in cells] for n in range(3)]
    look = Look(("", "1", "2", "3", "4"))
    column = min(column, width)
    found = canvas.lines(
        shown, doubts, changed, look=look, column=column, width=width, height=height
    )
    assert 1 <= len(found) <= height
    for number, line in enumerate(found):
        bare = re.sub(r"\x1b\[[0-9;]*m", "", line)
        assert all(letter.isprintable() or ord(letter) > 159 for letter in bare)
        assert sum(map(columns, bare)) <= width - (column if number == 0 and column < width else 0)
        assert re.findall(r"\x1b\[([0-9;]*)m", line)[-1:] in ([], [""])  # left plain


def test_control_tokens_are_marks_and_those_at_the_end_are_not_shown(tmp_path) -> None:
    write_words(tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer is not None
    end = MARKS.index("<turn|>")
    letters = [FIRST_BYTE + byte for byte in "aß漢".encode()]
    shown = canvas.texts(tokenizer, [end, *letters, end, letters[0], end, 0, 0])
    assert shown == [canvas.MARK, "a", "ß", "", "漢", "", "", canvas.MARK, "a"]
    assert canvas.texts(tokenizer, [end, end]) == []
    assert canvas.texts(None, [5, 17]) == ["5 ", "17 "]


def test_the_source_holds_no_control_letters() -> None:
    """A raw escape in a source file would steer the terminal of whoever reads it."""
    for name in ("canvas", "screen", "show", "chat"):
        text = (ROOT / "src" / "diffusiongemma" / "cli" / f"{name}.py").read_text(encoding="utf-8")
        assert all(letter == "\n" or letter.isprintable() for letter in text)
