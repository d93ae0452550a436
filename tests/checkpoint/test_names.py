"""Names of tensors: one to one over a whole network, and all that transformers writes are known."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from diffusiongemma.checkpoint import names
from diffusiongemma.checkpoint.config import from_hf
from diffusiongemma.checkpoint.load import read_json
from diffusiongemma.model.model import DiffusionGemma


def _ours(folder: Path) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return DiffusionGemma(from_hf(read_json(folder / "config.json"))).state_dict()


def test_one_to_one_with_what_transformers_writes(written: Path) -> None:
    ours = _ours(written)
    with safe_open(str(written / "model.safetensors"), "pt") as file:
        stored = {name: file.get_slice(name).get_shape() for name in file.keys()}
    assert {names.to_here(there) for there in stored} == set(ours)
    assert {names.to_there(here) for here in ours} == set(stored)
    for there, shape in stored.items():
        here = names.to_here(there)
        assert here is not None and names.to_there(here) == there
        assert tuple(shape) == tuple(ours[here].shape)


def test_transformers_has_no_other_tensor_but_tied_ones(written: Path) -> None:
    from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

    with torch.device("meta"):
        theirs = DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig.from_pretrained(written))
    known = {names.to_there(here) for here in _ours(written)}
    for there in set(theirs.state_dict()) - known:
        twin = there.replace("encoder.language_model", "decoder")
        assert there in names.TIED or twin in known, there
    assert names.TIED.keys() <= theirs.state_dict().keys()
    assert set(names.TIED.values()) <= known


@pytest.mark.parametrize("side", [0, 1])
def test_no_row_of_the_table_is_repeated_or_idle(written: Path, side: int) -> None:
    column = [row[side] for row in names._TABLE]
    assert len(column) == len(set(column))
    used = {names._NUMBER.sub("#", name) for name in _ours(written)}
    assert used == {here for _, here in names._TABLE}


@pytest.mark.parametrize(
    "there",
    [
        "",
        "model.decoder.layers.0",
        "model.decoder.layers.x.layer_scalar",
        "model.decoder.layers.0.layer_scalar.weight",
        "xmodel.decoder.norm.weight",
        "model.decoder.layers.#.layer_scalar ",
        "lm_head.weight",
        "model.layers.0.self_attn.q_proj.weight",
    ],
)
def test_a_strange_name_is_none_of_ours(there: str) -> None:
    assert names.to_here(there) is None


def test_a_tensor_that_the_table_forgot_is_our_mistake() -> None:
    with pytest.raises(KeyError, match=r"blocks\.0\.new"):
        names.to_there("blocks.0.new")
