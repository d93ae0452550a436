"""A folder quantised tensor by tensor: what compressed-tensors would write, in little memory."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import quantised_toys
import toys
from diffusiongemma.checkpoint import quantise as quantising
from diffusiongemma.checkpoint.config import from_hf
from diffusiongemma.checkpoint.load import INDEX, SINGLE, find_shards, read_json
from diffusiongemma.checkpoint.quantise import quantise_folder
from diffusiongemma.checkpoint.save import save_model
from diffusiongemma.checkpoint.shard import ShardWriter
from diffusiongemma.core import atomic
from diffusiongemma.core.errors import CheckpointError
from diffusiongemma.model.config import LayerConfig, ModelConfig
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.quant.apply import quantise
from parity_oracle import open_ours
from settled import Settled

MB = 1_000_000
TOY = toys.Toy(seed=61, vision=False, calm=True)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.float(), other.float())


def test_it_is_what_the_library_writes(tmp_path: Path) -> None:
    """Number by number, from the same weights in float32; the library's copies aside."""
    toys.write(TOY, tmp_path / "plain")
    quantised_toys.write(TOY, tmp_path / "theirs")
    quantise_folder(tmp_path / "plain", tmp_path / "ours")
    ours, theirs = (load_file(tmp_path / side / SINGLE) for side in ("ours", "theirs"))
    copies = {name for name in theirs if ".language_model.layers." in name}
    copies = {name for name in copies if not name.endswith("layer_scalar")}
    assert ours.keys() == theirs.keys() - copies
    assert all(same(value, theirs[name]) for name, value in ours.items())
    quantised = [name for name, value in ours.items() if value.dtype == torch.float8_e4m3fn]
    assert len(quantised) == 2 * 4 + 3 + 3 * 3 + 3 * 8 * 3


def test_the_library_reads_the_scheme_as_it_is_meant(tmp_path: Path) -> None:
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils import match_named_modules

    toy = toys.Toy(seed=61)
    model = toys.write(toy, tmp_path / "plain")
    quantise_folder(tmp_path / "plain", tmp_path / "ours")
    raw = json.loads((tmp_path / "ours" / "config.json").read_text())["quantization_config"]
    scheme = QuantizationConfig.model_validate(
        {key: raw[key] for key in QuantizationConfig.model_fields if key in raw}
    )
    (group,) = scheme.config_groups.values()
    quantised_toys.take_apart(model)
    wanted = {
        f"{name.replace('encoder.language_model', 'decoder')}.weight"  # the same, tied
        for name, _ in match_named_modules(model, group.targets, scheme.ignore)
    }
    stored = load_file(tmp_path / "ours" / SINGLE)
    eight = {name for name, value in stored.items() if value.dtype == torch.float8_e4m3fn}
    assert wanted == eight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_opens_as_the_network_quantised_in_memory(tmp_path: Path, dtype: torch.dtype) -> None:
    toys.make(toys.Toy(seed=62)).to(dtype).save_pretrained(tmp_path / "plain")
    quantise_folder(tmp_path / "plain", tmp_path / "ours")
    ours = open_ours(tmp_path / "ours", dtype).state_dict()
    wanted = quantise(open_ours(tmp_path / "plain", dtype)).state_dict()
    assert ours.keys() == wanted.keys()
    assert all(same(ours[name], wanted[name]) for name in ours)


def test_shards_stay_shards_and_files_beside_come_along(tmp_path: Path) -> None:
    source = tmp_path / "plain"
    toys.make(TOY).save_pretrained(source, max_shard_size="100KB")
    (source / "tokenizer.json").write_text("{}")
    (source / "LICENSE").write_text("of the weights")
    (source / "README.md").write_text("a card that speaks of other numbers")
    (source / "optimizer.bin").write_bytes(b"\x80")
    quantise_folder(source, tmp_path / "ours")
    there = {path.name for path in (tmp_path / "ours").iterdir()}
    gone, new = {"README.md", "optimizer.bin"}, {"README.source.md"}
    assert there == {path.name for path in source.iterdir()} - gone | new
    assert (tmp_path / "ours/README.source.md").read_text() == (source / "README.md").read_text()
    assert len(find_shards(tmp_path / "ours")) == len(find_shards(source)) > 3
    open_ours(tmp_path / "ours")
    table = json.loads((tmp_path / "ours" / INDEX).read_text())
    stored = {k: (v, path.name) for path in find_shards(tmp_path / "ours")
              for k, v in load_file(path).items()}  # fmt: skip
    assert table["weight_map"] == {name: shard for name, (_, shard) in stored.items()}
    assert table["metadata"]["total_size"] == sum(value.nbytes for value, _ in stored.values())
    given, made = (read_json(folder / "config.json") for folder in (source, tmp_path / "ours"))
    assert given == {key: value for key, value in made.items() if key != "quantization_config"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_appears_with_its_card(
    overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys.write(TOY, tmp_path / "plain")
    if overwrite:
        toys.write(TOY, tmp_path / "ours")
    appeared, put = [], atomic._put

    def watched(new: Path, target: Path, scratch: Path) -> None:
        put(new, target, scratch)
        appeared.append({path.name: path.read_bytes() for path in target.iterdir()})

    monkeypatch.setattr(atomic, "_put", watched)
    quantise_folder(
        tmp_path / "plain",
        tmp_path / "ours",
        card=lambda made: ", ".join(sorted(path.name for path in made.iterdir())).encode(),
        overwrite=overwrite,
    )
    (there,) = appeared
    assert there["README.md"] == b"config.json, generation_config.json, model.safetensors"


def test_experts_that_are_stored_one_by_one(tmp_path: Path) -> None:
    toys.write(TOY, tmp_path / "plain")
    shutil.copytree(tmp_path / "plain", tmp_path / "apart")
    tensors = load_file(tmp_path / "apart" / SINGLE)
    for name in [name for name in tensors if ".experts." in name]:
        for number, expert in enumerate(tensors.pop(name)):
            path = f"{name.rpartition('.')[0]}.{number}"
            parts = {"down": expert} if "down" in name else dict(
                zip(("gate", "up"), expert.chunk(2), strict=True)
            )  # fmt: skip
            tensors |= {f"{path}.{part}_proj.weight": w.clone() for part, w in parts.items()}
    save_file(tensors, tmp_path / "apart" / SINGLE)
    plain, apart = open_ours(tmp_path / "plain"), open_ours(tmp_path / "apart")
    pairs = zip(plain.state_dict().values(), apart.state_dict().values(), strict=True)
    assert all(same(*pair) for pair in pairs)
    for side in ("plain", "apart"):
        quantise_folder(tmp_path / side, tmp_path / f"{side}8")
    one, two = (load_file(tmp_path / side / SINGLE) for side in ("plain8", "apart8"))
    assert one.keys() == two.keys() and all(same(one[name], two[name]) for name in one)


def test_what_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toys.write(TOY, tmp_path / "plain")
    quantise_folder(tmp_path / "plain", tmp_path / "ours")
    with pytest.raises(CheckpointError, match="is quantised already; quantise the checkpoint that"):
        quantise_folder(tmp_path / "ours", tmp_path / "twice")
    with pytest.raises(CheckpointError, match="ours exists; choose another folder"):
        quantise_folder(tmp_path / "plain", tmp_path / "ours")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 5 * MB))
    with pytest.raises(CheckpointError, match="would need 11 MB, and its disk has 5 MB free; "):
        quantise_folder(tmp_path / "plain", tmp_path / "third")
    monkeypatch.undo()
    (tmp_path / "plain" / SINGLE).write_bytes(b"short")
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        quantise_folder(tmp_path / "plain", tmp_path / "fourth")
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "ours"}


def test_a_folder_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toys.write(TOY, tmp_path / "plain")
    left = 20

    def put(self: ShardWriter, name: str, tensor: torch.Tensor) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        real(self, name, tensor)

    real = ShardWriter.put
    monkeypatch.setattr(quantising.ShardWriter, "put", put)
    with pytest.raises(CheckpointError, match="ours cannot be written: No space left on device"):
        quantise_folder(tmp_path / "plain", tmp_path / "ours")
    assert {path.name for path in tmp_path.iterdir()} == {"plain"}


def test_all_of_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, settled: Settled) -> None:
    toys.write(TOY, tmp_path / "plain")
    quantise_folder(tmp_path / "plain", tmp_path / "ours")
    settled.check(tmp_path / "ours", ["", *(path.name for path in (tmp_path / "ours").iterdir())])


LARGE = ModelConfig(
    vocab_size=4_000,
    hidden_size=512,
    intermediate_size=256,
    layers=tuple(LayerConfig(sliding=n < 5, head_dim=32, num_key_value_heads=2) for n in range(6)),
    num_attention_heads=4,
    sliding_window=16,
    num_experts=16,
    top_k_experts=2,
    moe_intermediate_size=320,
    max_position_embeddings=512,
)

# Quantises a small checkpoint first, so that code and libraries are in memory before the baseline.
SCRIPT = """
import re, sys
from pathlib import Path
from diffusiongemma.checkpoint.quantise import quantise_folder

def status(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

small, large, out = map(Path, sys.argv[1:])
quantise_folder(small, out / "small8")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = status("VmRSS")
quantise_folder(large, out / "large8")
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="needs /proc to measure memory"
)
def test_the_peak_is_one_shard(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with torch.device("meta"):
        model = DiffusionGemma(LARGE)
    model = model.to_empty(device="cpu").bfloat16()
    for value in model.state_dict().values():
        value.uniform_(-1, 1)
    save_model(model, tmp_path / "large", shard_bytes=25 * MB)
    del model
    toys.write(TOY, tmp_path / "small")
    shards = [path.stat().st_size for path in find_shards(tmp_path / "large")]
    assert sum(shards) > 100 * MB and len(shards) >= 5
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            SCRIPT,
            tmp_path / "small",
            tmp_path / "large",
            tmp_path,
        ],
        stdout=subprocess.PIPE,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    peak = int(re.findall(rb"\d+", done.stdout)[-1])
    record_property(
        "measured",
        f"quantising {sum(shards) / MB:.0f} MB in {len(shards)} shards of at most "
        f"{max(shards) / MB:.0f} MB: peak {peak / MB:.0f} MB",
    )
    assert peak <= max(shards) + 12 * MB  # numbers at hand, in float32
    assert from_hf(read_json(tmp_path / "large8" / "config.json")).fp8
