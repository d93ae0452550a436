"""Patterns of tokenizers: those of real models are quick, what might search without end is told.

What is told is compared with the engine itself, which says when it gave up after ten million ways.
"""

import pytest
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from diffusiongemma.dialog.growth import SEARCHED
from diffusiongemma.dialog.patterns import PAGE, PatternError, work

CASES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REAL = {
    "gpt 2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama 3": CASES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt 4o": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    + CASES
    + r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    + CASES
    + r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "deepseek": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?"
    r"[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "kimi": r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}&&[^\p{Han}]]*[\p{Ll}&&[^\p{Han}]]+",
    "bloom": r" ?[^(\s|[.,!?…。、।،])]+",
    "digits from behind": r"\d{1,3}(?=(?:\d{3})*\b)",
}


@pytest.mark.parametrize("name", REAL)
def test_real_ones_are_quick(name: str) -> None:
    assert work(REAL[name]) < 10 * PAGE


@pytest.mark.parametrize(
    "pattern",
    [
        "(?:a|aa){1,28}b", "(a+)+b", "(?:a?){28}b", "a?" * 22 + "b", ".*.*b", "(?:.*b)?.*c",
        ".{1,300}.{1,300}b", "(?=.*.*b)", "(?:(?:a?){9}){9}b", "(?:a|b){0000000028}c",
        r"(a)\1", r"(?<n>a\g<n>?b)", "(?~a)", "(?i)a", "(*FAIL)", "a**", "a{2}{3}", "a{,}", "[]a]+",
        "[^]a]+", "[[]a]]", "(a", "a)", "[a", "a\\", "*a", "(?#a)", "(?x: a)", "a{99999999}",
        "(" * 99 + ")" * 99, "[" * 99 + "a" + "]" * 99, "a" * 100_000, "(?<n>a|b)*",
    ],
)  # fmt: skip
def test_what_might_search_without_end(pattern: str) -> None:
    try:
        assert work(pattern) > SEARCHED
    except PatternError as error:
        assert str(error)


ATOMS = st.sampled_from(
    ["a", "b", ".", "[ab]", r"\w", "(?!b)", "(?=a)", r"\b", "(?>a+)", "(?:a|b)"]
)
MARKS = st.sampled_from(["", "", "?", "*", "+", "{0,3}", "{2}", "{2,}", "*?", "++"])
PIECES = st.builds(lambda a, m: a if m and a[0] + a[1:2] == "\\b" else a + m, ATOMS, MARKS)
ROWS = st.lists(PIECES, min_size=1, max_size=6).map("".join)
GROUPS = st.builds(lambda row, m: f"(?:{row}){m}", ROWS, MARKS)
PATTERNS = st.lists(st.one_of(ROWS, GROUPS), min_size=1, max_size=4).map("".join)


@settings(deadline=None, max_examples=150)
@given(pattern=PATTERNS)
def test_what_is_told_to_be_quick_is(pattern: str) -> None:
    """Two runs that try each other's lengths come to eighteen million ways, an error there."""
    try:
        assume(work(pattern) <= SEARCHED)
    except PatternError:
        reject()
    try:
        search = pre_tokenizers.Split(Regex(rf"\A(?:{pattern})"), "isolated")
    except Exception as error:  # the engine has no class of its own
        assert "Oniguruma error" in str(error)
        reject()
    search.pre_tokenize_str("a" * 6000)


def test_a_pattern_that_is_not_quick_is_an_error_there() -> None:
    assert work(r"\A.*.*b") > SEARCHED
    with pytest.raises(BaseException, match="retry-limit-in-match"):
        pre_tokenizers.Split(Regex(r"\A.*.*[^a]"), "isolated").pre_tokenize_str("a" * 6000)
