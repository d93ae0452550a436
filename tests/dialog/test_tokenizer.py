"""Text to ids and back."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers
from tokenizers import Tokenizer as Library

from diffusiongemma.core.errors import CheckpointError, InputError
from diffusiongemma.dialog.tokenizer import Tokenizer


def test_no_file_is_no_tokenizer(tmp_path: Path) -> None:
    assert Tokenizer.from_folder(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": {"type": "Nonsense"}}'])
def test_broken_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer .*again"):
        Tokenizer.from_folder(tmp_path)


def test_special_tokens_are_seen_and_no_bos_is_added(
    tokenizer: Tokenizer, marks: dict[str, int]
) -> None:
    ids = tokenizer.encode("<|turn>a<turn|>")
    assert ids == [marks["<|turn>"], 32 + ord("a"), marks["<turn|>"]]
    assert tokenizer.decode(ids) == "a"
    assert tokenizer.decode(ids, special=True) == "<|turn>a<turn|>"


def test_special_tokens_can_be_plain_letters(tokenizer: Tokenizer, marks: dict[str, int]) -> None:
    text = "".join(marks)
    ids = tokenizer.encode(text, special=False)
    assert ids == [32 + byte for byte in text.encode()]
    assert tokenizer.decode(ids) == text
    # asking for it changed nothing for others
    assert len(tokenizer.encode(text)) == len(marks)


@given(text=st.text())
def test_any_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, special=False)) == text


def test_names_and_size(tokenizer: Tokenizer, marks: dict[str, int]) -> None:
    assert tokenizer.size == 300
    assert tokenizer.id("<bos>") == 2 and tokenizer.id("nothing") is None
    assert tokenizer.token(2) == "<bos>"
    assert tokenizer.token(-1) is None and tokenizer.token(10**6) is None
    assert tokenizer.control == marks
    assert tokenizer.is_control(2) and not tokenizer.is_control(100)


def test_ids_beyond_the_vocabulary_have_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([10**6, 32 + ord("a")]) == "a"


@pytest.mark.parametrize("number", [-1, 2**32])
def test_impossible_id(tokenizer: Tokenizer, number: int) -> None:
    with pytest.raises(InputError, match=f"token id {number} is not in the vocabulary; pass"):
        tokenizer.decode([5, number])


@pytest.mark.parametrize(
    ("part", "value", "why"),
    [
        (
            "normalizer",
            normalizers.Sequence([normalizers.Replace(Regex(""), "é"), normalizers.ByteLevel()]),
            "index out of bounds",
        ),
        ("model", models.WordLevel({"b": 0}, unk_token="zz"), r"Missing \[UNK\] token"),
    ],
)
def test_a_tokenizer_that_fails_on_a_text(
    part: str, value: object, why: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The library's panics are no exceptions, and it prints them where no one can forbid it."""
    made = Library(models.BPE({"a": 0}, []))
    setattr(made, part, value)
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer is not None
    with pytest.raises(
        CheckpointError, match=rf"tokenizer\.json of this .* fails on a text .*{why}"
    ):
        tokenizer.encode("a" * 40 + "!")
    capfd.readouterr()


def test_a_tokenizer_that_fails_on_a_reply(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = Library(models.BPE({"a": 0}, []))
    made.decoder = decoders.Strip("a", 5, 1)
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer is not None
    with pytest.raises(CheckpointError, match=r"tokenizer\.json of this .* fails on a reply"):
        tokenizer.decode([0])
    capfd.readouterr()


def test_lone_surrogate(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"lone surrogate at character 1, .*decode its source"):
        tokenizer.encode("a\ud800")
