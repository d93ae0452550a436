"""FP8-dynamic checkpoints that compressed-tensors wrote: opened, exact, and strict."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import diffusiongemma as dg
import quantised_toys
import toys
from diffusiongemma.checkpoint.load import holds
from diffusiongemma.core.errors import CheckpointError, ConfigError
from diffusiongemma.model.experts import Experts
from diffusiongemma.quant.linear import Fp8Experts, Fp8Linear
from parity_oracle import Denoise, Dice, Encode, open_ours, play_hf, play_ours

TOY = toys.Toy(seed=61, vision=False, calm=True)
SINGLE = quantised_toys.SINGLE
QUERY = "model.decoder.layers.0.self_attn.q_proj"
EXPERT = "model.decoder.layers.1.experts.3"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Experts one by one, float32; transformers' model and the folder, not to be changed."""
    folder = tmp_path_factory.mktemp("fp8") / "apart"
    return quantised_toys.write(TOY, folder), folder


@pytest.fixture
def folder(theirs: tuple[Any, Path], tmp_path: Path) -> Path:
    """A copy, to be spoilt."""
    return Path(shutil.copytree(theirs[1], tmp_path / "toy"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return open_ours(folder).state_dict()


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.float(), other.float())


def test_every_number_is_the_stored_one(theirs: tuple[Any, Path]) -> None:
    stored = load_file(theirs[1] / SINGLE)
    ours = weights(theirs[1])
    assert stored[f"{QUERY}.weight"].dtype == torch.float8_e4m3fn
    assert same(ours["blocks.0.attention.q.weight"], stored[f"{QUERY}.weight"])
    scale = ours["blocks.0.attention.q.scale"]
    assert scale.dtype == torch.float32
    assert torch.equal(scale, stored[f"{QUERY}.weight_scale"][:, 0])
    gate_up, down = ours["blocks.1.experts.gate_up"][3], ours["blocks.1.experts.down"][3]
    assert same(gate_up[:32], stored[f"{EXPERT}.gate_proj.weight"])
    assert same(gate_up[32:], stored[f"{EXPERT}.up_proj.weight"])
    assert same(down, stored[f"{EXPERT}.down_proj.weight"])
    found = ours["blocks.1.experts.gate_up_scale"][3]
    assert torch.equal(found[32:], stored[f"{EXPERT}.up_proj.weight_scale"][:, 0])
    found = ours["blocks.1.experts.down_scale"][3]
    assert torch.equal(found, stored[f"{EXPERT}.down_proj.weight_scale"][:, 0])


def test_the_logits_are_those_of_the_library(theirs: tuple[Any, Path], tmp_path: Path) -> None:
    """Transformers runs its own model and the library rounds weights and rows; we say the same.

    Experts here have 32 hidden channels, so that their one group is the library's whole row. Where
    two sums differ in their last bit, a number may be rounded to its other neighbour, now and then.
    """
    model, folder = theirs
    toys.write(TOY, tmp_path / "plain")
    dice = Dice(TOY, 1)
    script = [
        Encode(dice.ids(14)),
        Denoise(dice.canvas()),
        Denoise(dice.canvas(), dice.logits()),
    ]
    wanted = play_hf(model, script)
    quantised = play_ours(open_ours(folder), script)
    plain = play_ours(open_ours(tmp_path / "plain"), script)
    for one, two, three in zip(wanted, quantised, plain, strict=True):
        assert float((one - three).abs().median()) > 0.1
        assert float((one - two).abs().quantile(0.9)) < 1e-4


@pytest.mark.parametrize("scale", ["{}_scale", "{}.weight_scale", "{}_weight_scale"])
def test_experts_in_two_tensors(theirs: tuple[Any, Path], tmp_path: Path, scale: str) -> None:
    quantised_toys.fuse(theirs[1], tmp_path / "fused", scale)
    assert not any(".experts.0." in name for name in load_file(tmp_path / "fused" / SINGLE))
    ours, apart = weights(tmp_path / "fused"), weights(theirs[1])
    assert ours.keys() == apart.keys()
    assert all(same(ours[name], apart[name]) for name in ours)


def test_experts_that_the_library_passed_over_stay_plain(tmp_path: Path) -> None:
    quantised_toys.write(TOY, tmp_path / "toy", apart=False, dtype=torch.bfloat16)
    stored = load_file(tmp_path / "toy" / SINGLE)
    gemma = dg.load(tmp_path / "toy", device="cpu")
    block = gemma.model.blocks[1]
    assert isinstance(block.experts, Experts) and isinstance(block.dense.gate, Fp8Linear)
    assert same(block.experts.down, stored["model.decoder.layers.1.experts.down_proj"])
    # Its scales are bfloat16, as the model was; they are kept as they are, and multiply in float32.
    scale = stored[f"{QUERY}.weight_scale"]
    assert scale.dtype == torch.bfloat16
    assert torch.equal(gemma.model.blocks[0].attention.q.scale, scale[:, 0].float())


def test_it_just_opens(folder: Path) -> None:
    gemma = dg.load(folder, device="cpu")
    assert isinstance(gemma.model.blocks[0].experts, Fp8Experts)
    ask = {"max_new_tokens": 16, "max_denoising_steps": 3, "seed": 5}
    alone = gemma.generate([7, 8, 9], **ask).tokens
    assert len(alone) == 16
    both = gemma.generate_many([[7, 8, 9], [11, 12, 13, 14, 15]], **ask)
    assert both[0].tokens == alone


def test_it_goes_there_and_back(folder: Path, tmp_path: Path) -> None:
    dg.load(folder, device="cpu").save(tmp_path / "copy")
    ours, again = weights(folder), weights(tmp_path / "copy")
    assert ours.keys() == again.keys() and all(same(ours[name], again[name]) for name in ours)
    there = load_file(tmp_path / "copy" / SINGLE)
    stored = load_file(folder / SINGLE)
    assert all(same(value, stored[name]) for name, value in there.items())
    assert f"{EXPERT}.up_proj.weight_scale" in there


def test_a_number_that_differs_is_found(theirs: tuple[Any, Path]) -> None:
    """In a weight, a scale, an expert's share, and what stayed plain."""
    model = open_ours(theirs[1])
    assert holds(theirs[1], model)
    for name in ("attention.q.weight", "attention.q.scale", "experts.gate_up", "router.weight",
                 "experts.gate_up_scale", "experts.down", "experts.down_scale"):  # fmt: skip
        value = model.state_dict()[f"blocks.1.{name}"]
        before = value[-1].clone()
        value[-1] = 0
        assert not holds(theirs[1], model), name
        value[-1] = before
    assert holds(theirs[1], model)


def test_copies_in_the_encoder_must_be_copies(folder: Path) -> None:
    """The library parts what is tied, and transformers then stores it twice."""
    tensors = load_file(folder / SINGLE)
    copy = QUERY.replace("decoder", "encoder.language_model")
    assert f"{copy}.weight_scale" in tensors
    tensors[f"{copy}.weight_scale"][0] *= 2
    save_file(tensors, folder / SINGLE)
    with pytest.raises(CheckpointError, match=r"q_proj.weight_scale in .* differs from .*decoder"):
        open_ours(folder)


def spoilt(folder: Path, **changes: torch.Tensor | None) -> str:
    tensors = load_file(folder / SINGLE)
    for name in [name for name in tensors if name.startswith("model.encoder.language_model")]:
        if not name.endswith("layer_scalar"):
            del tensors[name]
    for name, value in changes.items():
        tensors.pop(name)
        if value is not None:
            tensors[name] = value
    save_file(tensors, folder / SINGLE)
    with pytest.raises(CheckpointError) as caught:
        open_ours(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_missing_or_odd_is_named(folder: Path) -> None:
    said = spoilt(
        folder,
        **{
            f"{QUERY}.weight_scale": None,
            f"{EXPERT}.up_proj.weight": None,
            f"{EXPERT}.gate_proj.weight_scale": torch.ones(1),
            f"{EXPERT}.down_proj.weight": torch.ones(64, 32),
            "model.decoder.layers.0.router.proj.weight": torch.ones(8, 64).to(torch.float8_e4m3fn),
        },
    )
    assert "2 missing: " in said
    assert "model.decoder.layers.{0}.self_attn" not in said
    assert f"{QUERY}.weight_scale" in said and f"{EXPERT}.up_proj.weight" in said
    assert f"{EXPERT}.gate_proj.weight_scale of (1,) in {SINGLE}, expected (32, 1)" in said
    assert f"in a format other than F8_E4M3: {EXPERT}.down_proj.weight as F32" in said
    assert "router.proj.weight as F8_E4M3 in" in said
    assert said.endswith("Check that both come from the same FP8-dynamic checkpoint")


def test_more_experts_than_any_file_could_hold(folder: Path) -> None:
    """Each of them would be named as missing, all ten million."""
    raw = json.loads((folder / "config.json").read_text())
    raw["text_config"]["num_experts"] = 1_000_000
    (folder / "config.json").write_text(json.dumps(raw))
    said = spoilt(folder)
    assert re.match(r"config.json asks for 9,000,000 weights of experts, and \d+ tensors", said)


def test_eight_bits_that_config_json_does_not_speak_of(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    del raw["quantization_config"]
    (folder / "config.json").write_text(json.dumps(raw))
    said = spoilt(folder)
    assert "{0-2}.self_attn.q_proj.weight as F8_E4M3" in said
    assert "{0-2}.self_attn.q_proj.weight_scale" in said and " unexpected: " in said


def test_a_scheme_without_such_weights(theirs: tuple[Any, Path], tmp_path: Path) -> None:
    toys.write(TOY, tmp_path / "plain")
    shutil.copy(theirs[1] / "config.json", tmp_path / "plain")
    with pytest.raises(CheckpointError, match="speaks of weights in e4m3, but none is stored so"):
        open_ours(tmp_path / "plain")


GROUP = ("config_groups", "group_0")


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (["quant_method"], "fp8", "quant_method = 'fp8'"),
        (["format"], "pack-quantized", "format = 'pack-quantized'"),
        (["quantization_status"], "frozen", "quantization_status = 'frozen'"),
        (["kv_cache_scheme"], {"num_bits": 8}, "kv_cache_scheme = "),
        (["sparsity_config"], {"format": "sparse-bitmask"}, "sparsity_config = "),
        (["config_groups"], {}, "config_groups = {}"),
        (["config_groups"], {"NVFP4": ["Linear"]}, "config_groups.'NVFP4' = "),
        ([*GROUP, "weights", "group_size"], 32, "weights.group_size = 32 in 'group_0'"),
        ([*GROUP, "weights", "actorder"], "group", "weights.actorder = 'group'"),
        ([*GROUP, "weights", "block_structure"], [128, 128], "weights.block_structure = "),
        ([*GROUP, "weights", "num_bits"], 4, "weights.num_bits = 4 in 'group_0'"),
        ([*GROUP, "weights", "type"], "int", "weights.type = 'int'"),
        ([*GROUP, "weights", "strategy"], "block", "weights.strategy = 'block'"),
        ([*GROUP, "weights", "symmetric"], False, "weights.symmetric = False"),
        ([*GROUP, "input_activations"], None, "input_activations.num_bits = None"),
        ([*GROUP, "input_activations", "dynamic"], False, "input_activations.dynamic = False"),
        ([*GROUP, "input_activations", "strategy"], "tensor", "activations.strategy = 'tensor'"),
        ([*GROUP, "output_activations"], {"num_bits": 8}, "output_activations = "),
        ([*GROUP, "format"], "nvfp4-pack-quantized", "format = 'nvfp4-pack-quantized' in"),
    ],
)
def test_other_schemes_are_refused(folder: Path, path: list[str], value: Any, named: str) -> None:
    quantised_toys.change_scheme(folder, *path, to=value)
    with pytest.raises(ConfigError) as caught:
        open_ours(folder)
    said = str(caught.value)
    assert named in said and "\n" not in said
    assert "only FP8-dynamic as compressed-tensors writes it is built" in said


def test_a_scheme_by_the_library_s_short_name(folder: Path) -> None:
    quantised_toys.change_scheme(folder, "config_groups", to={"FP8_DYNAMIC": ["Linear"]})
    open_ours(folder)
