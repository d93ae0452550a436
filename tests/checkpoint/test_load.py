"""Weights from safetensors: exact, strict, sharded or not, and every damage is one sentence."""

import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusiongemma.checkpoint import names
from diffusiongemma.checkpoint.config import from_hf
from diffusiongemma.checkpoint.load import INDEX, SINGLE, find_shards, holds, load_model, read_json
from diffusiongemma.core.errors import CheckpointError
from diffusiongemma.model.model import DiffusionGemma

CPU = torch.device("cpu")
TABLE = "model.decoder.embed_tokens.weight"
NORM = "model.decoder.norm.weight"


def opened(folder: Path, dtype: torch.dtype = torch.float32, **options) -> DiffusionGemma:
    config = from_hf(read_json(folder / "config.json"))
    return load_model(folder, config, device=CPU, dtype=dtype, **options)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a single file."""
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def split(folder: Path, parts: int = 3) -> list[Path]:
    """Make shards and an index of a single file, tensors dealt in turn."""
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    table, paths = {}, []
    for part in range(parts):
        name = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        mine = {key: tensors[key].clone() for key in sorted(tensors)[part::parts]}
        save_file(mine, folder / name)
        table |= dict.fromkeys(mine, name)
        paths.append(folder / name)
    write_index(folder, table)
    return paths


def write_index(folder: Path, table: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": table}))


def refusal(folder: Path, match: str, dtype: torch.dtype = torch.float32) -> str:
    with pytest.raises(CheckpointError, match=match) as caught:
        opened(folder, dtype)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def is_mapped(tensor: Tensor) -> bool:
    """Whether the memory of a tensor is a file's."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(x, 16) for x in line.split()[0].split("-"))
        if low <= tensor.data_ptr() < high:
            return line.rstrip().endswith(".safetensors")
    raise AssertionError("an address in no map")


def test_every_weight_is_there_bit_for_bit(written: Path) -> None:
    stored = load_file(written / SINGLE)
    model = opened(written)
    ours = model.state_dict()
    assert len(ours) == len(stored)
    for here, value in ours.items():
        assert torch.equal(value, stored[names.to_there(here)]), here
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("asked", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_formats(toy: Path, kept: torch.dtype, asked: torch.dtype) -> None:
    rewrite(toy, lambda t: t.update({k: v.to(kept) for k, v in t.items()}))
    stored = load_file(toy / SINGLE)
    ours = opened(toy, asked).state_dict()
    for here, value in ours.items():
        assert value.dtype is asked
        assert torch.equal(value, stored[names.to_there(here)].to(asked)), here


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_differs_is_found(toy: Path, dtype: torch.dtype) -> None:
    rewrite(toy, lambda t: t.update({tied: t[TABLE].clone() for tied in names.TIED}))
    split(toy)
    model = opened(toy, dtype)
    assert holds(toy, model)
    for name, value in model.state_dict().items():
        before = value.view(-1)[-1].clone()
        value.view(-1)[-1] += 1
        assert not holds(toy, model), name
        value.view(-1)[-1] = before
    assert holds(toy, model)
    (toy / INDEX).unlink()
    assert not holds(toy, model)
    assert not holds(toy / "gone", model)


def test_weights_stay_mapped_where_a_whole_shard_needs_no_change(toy: Path) -> None:
    assert all(is_mapped(value) for value in opened(toy).state_dict().values())
    assert not any(is_mapped(value) for value in opened(toy, torch.bfloat16).state_dict().values())
    rewrite(toy, lambda t: t.update({NORM: t[NORM].bfloat16()}))
    assert not any(is_mapped(value) for value in opened(toy).state_dict().values())


def test_writing_to_a_weight_leaves_the_file_alone(toy: Path) -> None:
    before = (toy / SINGLE).read_bytes()
    model = opened(toy)
    model.embedding.weight.add_(1)
    assert (toy / SINGLE).read_bytes() == before
    assert not torch.equal(opened(toy).embedding.weight, model.embedding.weight)


def test_shards_of_transformers_equal_the_single_file(written: Path, tmp_path: Path) -> None:
    from transformers import DiffusionGemmaForBlockDiffusion

    theirs = DiffusionGemmaForBlockDiffusion.from_pretrained(written)
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(find_shards(tmp_path)) > 3 and not (tmp_path / SINGLE).exists()
    sharded, single = opened(tmp_path).state_dict(), opened(written).state_dict()
    assert sharded.keys() == single.keys()
    assert all(torch.equal(sharded[key], single[key]) for key in single)


def test_a_single_file_goes_before_an_index_as_in_transformers(toy: Path) -> None:
    write_index(toy, {NORM: "gone.safetensors"})
    assert find_shards(toy) == [toy / SINGLE]


def test_links_are_followed(toy: Path, tmp_path: Path) -> None:
    shards = split(toy)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate([*shards, toy / INDEX, toy / "config.json"]):
        path.rename(blobs / str(number))
        path.symlink_to(Path("..", "blobs", str(number)))
    opened(toy)


def test_everything_that_does_not_fit_is_in_one_error(toy: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        for layer in (0, 1, 3):
            del tensors[f"model.decoder.layers.{layer}.router.scale"]
        del tensors[NORM]
        tensors["model.decoder.layers.4.self_attn.v_proj.weight"] = torch.zeros(2, 2)
        tensors["model.decoder.layers.9.layer_scalar"] = torch.zeros(1)
        tensors["model.decoder.layers.01.layer_scalar"] = torch.zeros(1)
        tensors["rotary\x1b[2J"] = torch.zeros(1)
        tensors["model.encoder.vision_tower.std_bias"] = torch.zeros(31)
        for layer in (2, 3):
            tensors[f"model.decoder.layers.{layer}.mlp.up_proj.weight"] = torch.zeros(96, 63)
        tensors["model.decoder.layers.0.layer_scalar"] = torch.zeros(1, dtype=torch.int64)
        tensors["lm_head.weight"] = torch.zeros(3, 3)

    rewrite(toy, spoil)
    said = refusal(toy, "do not fit its config.json")
    assert "4 missing: " in said and f"{NORM}" in said
    assert "model.decoder.layers.{0-1,3}.router.scale" in said
    assert "4 unexpected: " in said and "layers.4.self_attn.v_proj.weight" in said
    assert "layers.9.layer_scalar" in said and "layers.01.layer_scalar" in said
    assert r"'rotary\x1b[2J'" in said and "\x1b" not in said
    assert "4 of another shape: " in said
    assert "std_bias of (31,) in model.safetensors, expected (32,)" in said
    assert (
        "layers.{2-3}.mlp.up_proj.weight of (96, 63) in model.safetensors, expected (96, 64)"
        in said
    )
    assert "lm_head.weight of (3, 3) in model.safetensors, expected (400, 64)" in said
    assert "1 in a format other than BF16, F16, F32, F64: " in said
    assert "layers.0.layer_scalar as I64 in model.safetensors" in said
    assert said.endswith("Check that both come from the same unquantised checkpoint")


def test_another_checkpoint_is_named_tensor_by_tensor(toy: Path) -> None:
    missing = set(load_file(toy / SINGLE))
    save_file({"transformer.wte": torch.zeros(2)}, toy / SINGLE)
    said = refusal(toy, f"{len(missing)} missing: .*1 unexpected: transformer.wte")
    groups = re.search(r"missing: (.*); 1 unexpected", said)
    assert groups is not None
    named = set()
    for text in re.split(r", (?![^{]*})", groups[1]):
        runs = re.search(r"{([0-9,-]*)}", text)
        numbers = ["0"] if runs is None else []
        for run in runs[1].split(",") if runs else []:
            low, _, high = run.partition("-")
            numbers += [str(n) for n in range(int(low), int(high or low) + 1)]
        named |= {text.replace(runs[0], n) if runs else text for n in numbers}
    assert named == missing


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (torch.int8, "I8"),
        (torch.uint8, "U8"),
        (torch.bool, "BOOL"),
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float8_e5m2, "F8_E5M2"),
    ],
)
def test_other_formats_are_refused(toy: Path, dtype: torch.dtype, stored: str) -> None:
    rewrite(toy, lambda t: t.update({NORM: torch.ones_like(t[NORM]).to(dtype)}))
    refusal(toy, f"1 in a format other than .*: {NORM} as {stored} in .*same unquantised")


def test_a_tensor_in_two_shards(toy: Path) -> None:
    shards = split(toy)
    first = load_file(shards[0])
    save_file(load_file(shards[1]) | {TABLE: first[TABLE]}, shards[1])
    refusal(toy, f"do not fit its config.json: 1 stored twice: {TABLE}. Check")


def test_a_shard_without_a_tensor_that_the_index_puts_there(toy: Path) -> None:
    shards = split(toy)
    tensors = load_file(shards[0])
    del tensors[TABLE]
    save_file(tensors, shards[0])
    refusal(toy, f"json: 1 missing: {TABLE}, not in {shards[0].name} as listed. Check")


def test_copies_of_the_table_are_dropped_if_they_are_copies(toy: Path) -> None:
    plain = opened(toy, torch.bfloat16).state_dict()
    rewrite(toy, lambda t: t.update({tied: t[TABLE].clone() for tied in names.TIED}))
    for dtype in (torch.float32, torch.bfloat16):
        assert opened(toy, dtype).state_dict().keys() == plain.keys()
    split(toy, 5)
    opened(toy)


@pytest.mark.parametrize("tied", sorted(names.TIED))
def test_a_copy_that_differs_is_refused(toy: Path, tied: str) -> None:
    def untie(tensors: dict[str, Tensor]) -> None:
        tensors[tied] = tensors[TABLE].clone()
        tensors[tied][-1, -1] += 1

    rewrite(toy, untie)
    refusal(toy, f"{tied} in .* differs from {TABLE}, but this network has one table for both")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_cut_anywhere(toy: Path, dtype: torch.dtype) -> None:
    whole = (toy / SINGLE).read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    cuts = [0, 1, 7, 8, 9, header // 2, header + 7, header + 8, header + 9, len(whole) // 2]
    for cut in [*cuts, len(whole) - 4096, len(whole) - 1]:
        (toy / SINGLE).write_bytes(whole[:cut])
        refusal(toy, r"model\.safetensors is truncated or damaged \(.*\); fetch it again", dtype)


def _lie(header: dict) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 99_000_000) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"\xff\xff\xff\xff",
        _lie({NORM: {"dtype": "F32", "shape": [64], "data_offsets": [0, 256]}}),
        _lie({NORM: {"dtype": "F32", "shape": [64], "data_offsets": [256, 0]}}),
        _lie({NORM: {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 0]}}),
        _lie({NORM: {"dtype": "F99", "shape": [0], "data_offsets": [0, 0]}}),
        _lie({NORM: {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}}),
        b"\x80\x04\x95 a pickle",
    ],
)
def test_a_header_that_lies(toy: Path, content: bytes) -> None:
    (toy / SINGLE).write_bytes(content)
    refusal(toy, r"is truncated or damaged \(.*\); fetch it again")


def test_more_tensors_than_can_be_looked_at(toy: Path) -> None:
    none = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    head = json.dumps({f"model.layers.{n}.x": none for n in range(150_000)}).encode()
    (toy / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    refusal(toy, r"has 1,050,000 commas and brackets, and at most 1,048,576 are taken")
    (toy / "model.safetensors").write_bytes((1 << 62).to_bytes(8, "little"))
    refusal(toy, r"damaged \(its list of tensors has 4,\d+,.* bytes, and at most 67,108,864 are")


def test_one_damaged_shard_is_found_before_anything_is_read(toy: Path) -> None:
    shards = split(toy)
    shards[2].write_bytes(shards[2].read_bytes()[:-1])
    refusal(toy, "model-00003-of-00003.safetensors is truncated or damaged")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({NORM: "../other.safetensors"}, "'../other.safetensors', which is no safetensors file of"),
        ({NORM: "/etc/passwd"}, "'/etc/passwd', which is no safetensors file of this folder"),
        ({NORM: ".."}, r"'\.\.', which is no safetensors file of this folder"),
        ({NORM: ""}, "'', which is no safetensors file of this folder"),
        ({NORM: "pytorch_model.bin"}, "'pytorch_model.bin', which is no safetensors file of this"),
        ({NORM: "a\0.safetensors"}, "lacks 1 of 1 shards"),
        ({NORM: "x" * 300 + ".safetensors"}, "cannot be read: File name too long"),
        ({NORM: "a.safetensors", TABLE: SINGLE}, "lacks 2 of 2 shards: a.safetensors, model.safet"),
        ({NORM: 3}, "has no weight_map from tensor names to files; fetch it again"),
        ([NORM], "has no weight_map from tensor names to files; fetch it again"),
        (None, "has no weight_map from tensor names to files; fetch it again"),
    ],
)
def test_an_index_that_leads_astray(toy: Path, table: object, message: str) -> None:
    (toy / SINGLE).unlink()
    write_index(toy, table)
    refusal(toy, message)


def test_an_empty_index(toy: Path) -> None:
    (toy / SINGLE).unlink()
    write_index(toy, {})
    refusal(toy, "missing: model.decoder.embed_tokens.weight")


def test_no_weights(toy: Path) -> None:
    (toy / SINGLE).rename(toy / "other.safetensors")
    refusal(toy, f"has neither {SINGLE} nor {INDEX}; fetch the safetensors files")
    (toy / "pytorch_model.bin").write_bytes(b"\x80")
    refusal(toy, r"\(pytorch_model.bin is a pickle, which is never opened\); fetch the safe")


def test_what_may_not_be_read(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="is_file cannot be read: Permission denied; check"):
        monkeypatch.setattr(Path, "is_file", _forbidden)
        find_shards(toy / "is_file")
    monkeypatch.undo()
    monkeypatch.setattr(os, "open", _forbidden)
    with pytest.raises(CheckpointError, match=r"config.json cannot be read: Permission denied; ch"):
        read_json(toy / "config.json")
    monkeypatch.undo()
    (toy / SINGLE).unlink()
    os.mkfifo(toy / SINGLE)  # opening it would wait for ever
    refusal(toy, "has neither")


def _forbidden(*_: object, **__: object) -> bool:
    raise PermissionError(13, "Permission denied")


def test_a_shard_that_vanishes(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusiongemma.checkpoint import load

    monkeypatch.setattr(load, "find_shards", lambda folder: [folder / "gone.safetensors"])
    refusal(toy, r"gone.safetensors cannot be read: No such file .*; check the file and its perm")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON: .*; fetch it again"),
        (b"{", "is not valid JSON: .*; fetch it again"),
        (b"\xff\xfe", "is not valid JSON: .*; fetch it again"),
        (b"[" * 100_000, "is not valid JSON: .*; fetch it again"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not valid JSON: .*; fetch it again"),
        (b"[]", "holds a list, not an object; fetch it again"),
        (b"null", "holds a NoneType, not an object; fetch it again"),
    ],
)
def test_json_that_is_none(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_json(tmp_path / "config.json")
    assert "\n" not in str(caught.value)


def test_json_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config.json; is it a checkpoint\?"):
        read_json(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="is no regular file; remove it, or"):
        read_json(tmp_path)


def test_on_meta_everything_is_checked_and_nothing_read(toy: Path) -> None:
    config = from_hf(read_json(toy / "config.json"))
    meta = torch.device("meta")
    model = load_model(toy, config, device=meta, dtype=torch.bfloat16)
    assert {value.device for value in model.state_dict().values()} == {meta}
    rewrite(toy, lambda t: t.pop(NORM))
    with pytest.raises(CheckpointError, match=f"1 missing: {NORM}"):
        load_model(toy, config, device=meta, dtype=torch.bfloat16)


def test_progress_goes_to_standard_error_only(toy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    split(toy)
    model = opened(toy, progress=True)
    out, err = capfd.readouterr()
    count = len(model.state_dict())
    assert out == "" and "loading" in err and f"/{count}" in err
    assert err.endswith("\r")  # the bar takes itself away
    opened(toy)
    assert capfd.readouterr() == ("", "")
