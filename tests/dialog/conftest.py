"""A toy tokenizer's folder, and a chat over it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from diffusiongemma.dialog.chat import Chat, SpecialIds
from diffusiongemma.dialog.tokenizer import Tokenizer
from toys_words import MARKS, write_words


def make_tokenizer_folder(path: Path) -> dict[str, int]:
    """Write the toy words; the ids of its marks."""
    return write_words(path)


def make_chat(folder: Path) -> Chat:
    """A chat over what the folder holds now."""
    marks = {mark: number for number, mark in enumerate(MARKS)}
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer is not None
    ids = SpecialIds(
        image_token_id=marks["<|image|>"],
        boi_token_id=marks["<|image>"],
        eoi_token_id=marks["<image|>"],
        eos_token_id=(marks["<eos>"], marks["<turn|>"]),
    )
    return Chat.from_folder(folder, tokenizer, ids)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words")
    make_tokenizer_folder(path)
    return path


@pytest.fixture(scope="session")
def marks(folder: Path) -> dict[str, int]:
    return make_tokenizer_folder(folder)


@pytest.fixture(scope="session")
def tokenizer(folder: Path) -> Tokenizer:
    found = Tokenizer.from_folder(folder)
    assert found is not None
    return found


@pytest.fixture(scope="session")
def chat(folder: Path) -> Chat:
    return make_chat(folder)


@pytest.fixture(scope="session")
def chat_in() -> Callable[[Path], Chat]:
    return make_chat
