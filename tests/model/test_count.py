"""The count of parameters is that of transformers, and of no format."""

from pathlib import Path

import pytest

import diffusiongemma as dg
import toys
from diffusiongemma.checkpoint.config import from_hf
from diffusiongemma.checkpoint.quantise import quantise_folder
from diffusiongemma.engine.open import SHIPPED
from diffusiongemma.model.count import parameters


@pytest.mark.parametrize("toy", toys.TWENTY[:4], ids=lambda toy: f"seed {toy.seed}")
def test_it_is_what_transformers_counts(toy: toys.Toy) -> None:
    theirs = toys.make(toy)
    assert parameters(from_hf(theirs.config.to_dict())) == theirs.num_parameters()


def test_eight_bits_change_no_count(tmp_path: Path) -> None:
    quantise_folder(SHIPPED, tmp_path / "small")
    told = f", {parameters(dg.load().model.config):,} parameters, "
    assert told in repr(dg.load(tmp_path / "small"))
