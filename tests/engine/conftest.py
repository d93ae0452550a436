"""Toys behind the door: one that speaks ids, one with words."""

from pathlib import Path

import pytest

import diffusiongemma as dg
import toys
from toys_words import write_toy_with_words


@pytest.fixture(scope="session")
def ids_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without a tokenizer."""
    folder = tmp_path_factory.mktemp("ids")
    toys.write(toys.Toy(seed=31, canvas=8, window=6), folder)
    return folder


@pytest.fixture(scope="session")
def words_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with tokenizer, template and vision tower, on each other's ids."""
    folder = tmp_path_factory.mktemp("words")
    write_toy_with_words(folder)
    return folder


@pytest.fixture(scope="session")
def speaks_ids(ids_folder: Path) -> dg.Gemma:
    """Its answers have no end mark, so that their lengths are known."""
    gemma = dg.load(ids_folder)
    gemma.eos = frozenset()
    return gemma


@pytest.fixture(scope="session")
def speaks_words(words_folder: Path) -> dg.Gemma:
    return dg.load(words_folder)
