"""Texts that cannot steer what shows them, and messages that are one line of bounded length."""

import copy
import inspect
import pickle
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongemma.core import errors, letters
from diffusiongemma.diffusion.config import SamplerConfig

EVIL = "\x1b]0;x\x07 \x9b31m \u202egnp.exe \u2066a\u2069 \u200f \u061c \ud800 a\x85b\u2028c\r\nd"
KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.DiffusionGemmaError)
]


def test_the_list_is_what_unicode_says() -> None:
    """Every control, everything with the property Bidi_Control, and no letter of a script."""
    for number in range(0x110000):
        letter = chr(number)
        found = letters.STEERING.fullmatch(letter) is not None
        kind = unicodedata.category(letter)
        marks = "\N{LEFT-TO-RIGHT MARK}\N{RIGHT-TO-LEFT MARK}\N{ARABIC LETTER MARK}"
        direction = unicodedata.bidirectional(letter)
        turns = letter in marks or direction in (
            *("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"),
        )
        steers = kind in ("Cc", "Cs", "Zl", "Zp") and letter not in "\t\n"
        assert found == (steers or turns), hex(number)


def test_what_can_be_shown_stays() -> None:
    shown = "größe 漢字 \U0001f468\u200d\U0001f469 \u0645\u06cc\u200c\u062e\t\u05e9\u05dc\n"
    assert letters.printable(shown) == shown
    assert letters.printable(EVIL).count("\ufffd") == len(letters.STEERING.findall(EVIL))
    assert letters.visible("a\nb\u200d\x1b\u202e", keep="\n") == "a\nb···"


@settings(deadline=None)
@given(st.text(st.characters(), max_size=60))
def test_nothing_steers(text: str) -> None:
    assert not letters.STEERING.search(letters.printable(text))
    line = letters.sentence(text)
    assert len(line.splitlines()) <= 1 and not letters.STEERING.search(line)
    assert not letters.STEERING.search(letters.visible(text))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_message_is_one_line_that_can_be_shown(kind: type[errors.DiffusionGemmaError]) -> None:
    error = kind(f"'{EVIL}' is no name;\n  give  another")
    for said in (str(error), *error.args):
        assert len(said.splitlines()) == 1 and not letters.STEERING.search(said)
        assert said.endswith("is no name; give  another")
        said.encode()
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is kind and str(twin) == str(error)


def test_a_long_message_keeps_what_is_wrong_and_what_to_do() -> None:
    said = str(errors.InputError(f"'{'x' * 30_000_000}' is too long; shorten it"))
    assert len(said) == letters.LONGEST
    assert said.startswith("'xxx") and said.endswith("xxx' is too long; shorten it")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyError("rope"), "KeyError: 'rope'"),
        (ValueError("first. \nsecond"), "ValueError: first"),
        (ValueError("\n \n first:"), "ValueError: first"),
        (ValueError(""), "ValueError"),
        (ValueError(), "ValueError"),
    ],
)
def test_what_others_raised_is_told_by_its_first_line(error: Exception, expected: str) -> None:
    assert letters.reason(error) == expected


def test_what_others_raised_is_short() -> None:
    said = letters.reason(ValueError("a" + "x" * 10_000 + "b"))
    assert said.startswith("ValueError: ax") and said.endswith("xb")
    assert len(said) == len("ValueError: ") + letters.QUOTED


def test_a_value_in_a_sentence_is_brief() -> None:
    assert letters.brief({"a": 1}) == "{'a': 1}"
    said = letters.brief("\x1b" * 10_000 + "end")
    assert len(said) == letters.BRIEF and said.startswith(r"'\x1b\x1b") and said.endswith("end'")
    assert len(errors.unknown_name("option", "x" * 10_000, ["seed"])) < 200


def test_a_value_without_a_spelling() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError

    assert letters.brief(10**5000) == "a value of type int"
    assert letters.brief([10**5000]) == "a value of type list"
    assert letters.brief(Odd()) == "a value of type Odd"
    with pytest.raises(
        errors.OptionError, match=r"max_new_tokens .* at most 2147483647, got a value of"
    ):
        SamplerConfig(max_new_tokens=10**5000)
    with pytest.raises(errors.OptionError) as caught:
        SamplerConfig.from_generation_config({"t_max": "x" * 5000})
    assert len(str(caught.value)) < 200
