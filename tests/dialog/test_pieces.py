"""Tokens shown apart say together what they say."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from diffusiongemma.dialog.pieces import pieces
from diffusiongemma.dialog.tokenizer import Tokenizer
from toys_words import FIRST_BYTE, write_words


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("pieces")
    write_words(folder)
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer is not None
    return tokenizer


# The replacement character itself looks like half a character to whoever only decodes.
@given(st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=30))
def test_any_text_is_the_sum_of_its_pieces(toy: Tokenizer, text: str) -> None:
    ids = toy.encode(text, special=False)
    found = pieces(toy, ids)
    assert "".join(found) == text
    assert len(found) == len(ids)
    assert all(len(piece) <= 1 for piece in found)


def test_half_a_character_is_a_mark_and_a_control_token_is_nothing(toy: Tokenizer) -> None:
    half = [FIRST_BYTE + byte for byte in "漢".encode()[:2]]
    letter = FIRST_BYTE + ord("x")
    assert pieces(toy, [*half, letter, 5, half[0]]) == ["\ufffd", "\ufffd", "x", "", "\ufffd"]
    assert pieces(toy, []) == []


def test_a_decoder_that_trims_takes_no_spaces_away() -> None:
    words = ["\u2581the", "\u2581sky", "a", "\u2581", "\u2581a"]
    backend = Backend(models.BPE({word: n for n, word in enumerate(words)}, [("\u2581", "a")]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    assert backend.decode([0, 1]) == "the sky"
    assert pieces(Tokenizer(backend), [0, 1, 2]) == [" the", " sky", "a"]
