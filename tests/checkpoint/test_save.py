"""Saving: transformers opens it with equal logits, and a folder is there whole or not at all."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import parity_oracle as oracle
from diffusiongemma.checkpoint import hub, save, stand_in
from diffusiongemma.checkpoint.config import from_hf
from diffusiongemma.checkpoint.load import INDEX, SINGLE, find_shards, read_json
from diffusiongemma.checkpoint.save import save_model
from diffusiongemma.core import atomic
from diffusiongemma.core.errors import CheckpointError, ConfigError
from diffusiongemma.model.model import DiffusionGemma
from settled import Settled

from .conftest import TOY


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for shard in find_shards(folder) for k, v in load_file(shard).items()}


@pytest.fixture(scope="module")
def model(written: Path) -> DiffusionGemma:
    return oracle.open_ours(written)


def _theirs(folder: Path) -> Any:
    from transformers import DiffusionGemmaForBlockDiffusion

    kind: Any = DiffusionGemmaForBlockDiffusion
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return aligned(model.eval())


def aligned(model: Any) -> Any:
    """Weights moved from the mapped file to memory of their own.

    The bits of a matrix product depend on where in a cache line its factors begin, and so on the
    length of the file's header.
    """
    for value in [*model.parameters(), *model.buffers()]:
        value.data = value.data.clone()
    return model


@pytest.mark.parametrize("shard_bytes", [10**9, 100_000, 1])
def test_transformers_opens_it_with_equal_logits(
    written: Path, model: DiffusionGemma, tmp_path: Path, shard_bytes: int
) -> None:
    target = tmp_path / "new" / "saved"
    assert save_model(model, target, shard_bytes=shard_bytes) == target
    dice = oracle.Dice(TOY, 1)
    image = dice.image(4, 6)
    script = [
        oracle.Encode(dice.with_images(image), (image,)),
        oracle.Denoise(dice.canvas(), dice.logits()),
        oracle.Encode(dice.ids(9)),
        oracle.Denoise(dice.canvas()),
    ]
    before, after = (oracle.play_hf(_theirs(folder), script) for folder in (written, target))
    assert oracle.furthest(before, after) == 0
    before, after = (
        oracle.play_ours(aligned(oracle.open_ours(folder)), script) for folder in (written, target)
    )
    assert oracle.furthest(before, after) == 0


def test_what_is_written(written: Path, model: DiffusionGemma, tmp_path: Path) -> None:
    target = save_model(
        model,
        tmp_path / "saved",
        extra={"generation_config.json": {"eos_token_id": [1], "é": "ü"}},
        files={
            "tokenizer.json": b"words",
            "config.json": (written / "config.json").read_bytes(),
            "additional_chat_templates/tools.jinja": b"more words",
        },
    )
    more = target / "additional_chat_templates"
    assert listing(more) == {"tools.jinja": b"more words"}
    shutil.rmtree(more)
    assert sorted(listing(target)) == [
        "config.json",
        "generation_config.json",
        SINGLE,
        "tokenizer.json",
    ]
    assert (target / "tokenizer.json").read_text() == "words"
    assert read_json(target / "generation_config.json") == {"eos_token_id": [1], "é": "ü"}
    assert from_hf(read_json(target / "config.json")) == model.config  # ours, not the copy
    old, new = tensors(written), tensors(target)
    assert old.keys() == new.keys()
    assert all(torch.equal(old[key], new[key]) for key in old)
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o777 & ~mask
    assert {path.stat().st_mode & 0o777 for path in target.iterdir()} == {0o666 & ~mask}


def test_the_format_of_the_weights_is_written_too(written: Path, tmp_path: Path) -> None:
    model = oracle.open_ours(written, torch.bfloat16)
    assert model.config.dtype == "float32"
    target = save_model(model, tmp_path / "saved")
    assert read_json(target / "config.json")["dtype"] == "bfloat16"
    assert {value.dtype for value in tensors(target).values()} == {torch.bfloat16}
    assert next(_theirs(target).parameters()).dtype is torch.bfloat16
    with pytest.raises(ConfigError, match="dtype = 'float64', only bfloat16 or"):
        save_model(model.double(), tmp_path / "double")


def test_shards_keep_to_their_size(model: DiffusionGemma, tmp_path: Path) -> None:
    target = save_model(model, tmp_path / "saved", shard_bytes=50_000)
    index = read_json(target / INDEX)
    sizes = {path: sum(v.nbytes for v in load_file(path).values()) for path in find_shards(target)}
    assert len(sizes) > 5
    for path, size in sizes.items():
        assert size <= 50_000 or len(load_file(path)) == 1
        assert {n for n, where in index["weight_map"].items() if where == path.name} == set(
            load_file(path)
        )
    assert sum(sizes.values()) == index["metadata"]["total_size"]
    first, last = min(sizes).name, max(sizes).name
    assert first == f"model-00001-of-{len(sizes):05d}.safetensors"
    assert last == f"model-{len(sizes):05d}-of-{len(sizes):05d}.safetensors"


def test_without_a_vision_tower(model: DiffusionGemma, tmp_path: Path) -> None:
    blind = DiffusionGemma(
        dataclasses.replace(model.config, vision=None, image_token_id=None, dtype="float32")
    )
    blind.load_state_dict({k: v for k, v in model.state_dict().items() if "vision" not in k})
    target = save_model(blind, tmp_path / "saved")
    again = oracle.open_ours(target)
    assert again.config == blind.config
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in blind.state_dict().items())
    theirs = _theirs(target)  # nothing is missing, and so nothing is made up
    spare = sum(math.prod(shape) for shape in stand_in.shapes(TOY.hidden).values())
    assert sum(w.numel() for w in theirs.parameters()) == spare + sum(
        w.numel() for w in blind.parameters()
    )
    stored = tensors(target)
    name = next(name for name in stored if "embed_vision" in name)
    stored[name] = torch.zeros(TOY.hidden, 2)  # of another tower
    save_file(stored, target / SINGLE, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 unexpected: model\.encoder\.embed_vision"):
        oracle.open_ours(target)


def test_what_is_in_the_way(model: DiffusionGemma, tmp_path: Path) -> None:
    target = tmp_path / "here"
    target.mkdir()
    save_model(model, target)  # an empty folder is free
    before = listing(target)
    with pytest.raises(CheckpointError, match=r"here exists; choose another .* overwrite=True"):
        save_model(model, target)
    assert listing(target) == before
    (target / "leftover").write_text("old")
    save_model(model, target, overwrite=True, shard_bytes=100_000)
    assert not (target / "leftover").exists() and not (target / SINGLE).exists()
    work = tmp_path / "work"
    work.mkdir()
    (work / "thesis.tex").write_text("years")
    with pytest.raises(
        CheckpointError, match=r"no config.json, so it is no checkpoint that may be"
    ):
        save_model(model, work, overwrite=True)
    for overwrite in (False, True):
        with pytest.raises(
            CheckpointError, match=r"thesis.tex (exists; choose|has no config.json)"
        ):
            save_model(model, work / "thesis.tex", overwrite=overwrite)
    with pytest.raises(CheckpointError, match="cannot be written: File exists; check the disk"):
        save_model(model, work / "thesis.tex" / "sub")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "work"]
    assert (work / "thesis.tex").read_text() == "years"


def test_a_network_can_replace_the_folder_it_was_read_from(toy: Path) -> None:
    model = oracle.open_ours(toy)  # its weights are that file
    with torch.no_grad():
        model.norm.weight.add_(1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    save_model(model, toy, overwrite=True)
    again = oracle.open_ours(toy).state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) and torch.equal(value, again[key])


def test_links_and_the_working_folder(
    model: DiffusionGemma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    (tmp_path / "loose").symlink_to("later")
    save_model(model, tmp_path / "link")
    save_model(model, tmp_path / "link", overwrite=True)
    save_model(model, tmp_path / "loose")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "loose").is_symlink()
    assert (tmp_path / "disk" / SINGLE).is_file() and (tmp_path / "later" / SINGLE).is_file()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    for folder in (".", ".."):  # the shell would be left in a folder that is gone
        with pytest.raises(CheckpointError, match="is the working folder; name a folder inside it"):
            save_model(model, folder, overwrite=True)
    save_model(model, "deeper/and/deeper")
    assert (tmp_path / "cwd" / "deeper" / "and" / "deeper" / SINGLE).is_file()
    names = ["cwd", "disk", "later", "link", "loose"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(CheckpointError, match="x cannot be written: No such file or directory; ch"):
        save_model(model, "x")


def _failing(error: BaseException, real: Callable[..., None]) -> Callable[..., None]:
    calls = []

    def save_file(*args: Any, **options: Any) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise error
        real(*args, **options)

    return save_file


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError(28, "No space left on device"), CheckpointError, "written: No space left on dev"),
        (SafetensorError("I/O error: full"), CheckpointError, "I/O error: full; check the disk"),
        (RuntimeError("CUDA out of memory"), RuntimeError, "CUDA out of memory"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    ],
)
def test_a_failure_halfway_leaves_nothing(
    written: Path,
    model: DiffusionGemma,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: bool,
    error: BaseException,
    kind: type[BaseException],
    message: str,
) -> None:
    target = tmp_path / "saved"
    if there:
        shutil.copytree(written, target)
    monkeypatch.setattr(save, "save_file", _failing(error, save.save_file))
    with pytest.raises(kind, match=message):
        save_model(model, target, shard_bytes=50_000, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == (["saved"] if there else [])
    if there:
        assert listing(target) == listing(written)


def test_a_failing_rename_brings_the_old_folder_back(
    written: Path, model: DiffusionGemma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = shutil.copytree(written, tmp_path / "saved")
    real = Path.rename

    def rename(self: Path, other: Path) -> Path:
        if other == target and self.parent.name == "whole":
            raise PermissionError(13, "Permission denied")
        return real(self, other)

    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(CheckpointError, match="cannot be written: Permission denied; check the"):
        save_model(model, target, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert listing(target) == listing(written)


VICTIM = """
import sys, time
from pathlib import Path
import torch
from diffusiongemma.checkpoint import save, stand_in
from diffusiongemma.checkpoint.config import from_hf
from diffusiongemma.checkpoint.load import load_model, read_json
from diffusiongemma.core import atomic

source, target, where = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
config = from_hf(read_json(source / "config.json"))
model = load_model(source, config, device=torch.device("cpu"), dtype=torch.float32)
calls = 0

def wait_here(real, nth):
    def instead(*args, **options):
        global calls
        calls += 1
        if calls == nth:
            print("waiting", flush=True)
            time.sleep(60)
        return real(*args, **options)
    return instead

if where == "writing":
    save.save_file = wait_here(save.save_file, 3)
else:
    atomic._put = wait_here(atomic._put, 1)
save.save_model(model, target, shard_bytes=50_000, overwrite=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("where", ["writing", "placing"])
def test_a_killed_process_leaves_no_half_folder(
    written: Path, model: DiffusionGemma, tmp_path: Path, where: str, there: bool
) -> None:
    target = tmp_path / "saved"
    if there:
        shutil.copytree(written, target)
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(written), str(target), where],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with victim:
        assert victim.stdout is not None and victim.stdout.readline() == b"waiting\n"
        victim.send_signal(signal.SIGKILL)
    assert victim.returncode == -signal.SIGKILL
    if there:
        assert listing(target) == listing(written)
    else:
        assert not target.exists()
    left = atomic.left_whole(target)
    assert (left is not None) == (where == "placing")
    if left is not None and not there:
        with pytest.raises(CheckpointError, match="a save that was cut off left it whole in") as no:
            hub.find(target)
        assert str(left) in str(no.value) and oracle.open_ours(left)
    save_model(model, target, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_all_of_it_is_on_the_disk_before_it_has_its_name(
    model: DiffusionGemma, tmp_path: Path, settled: Settled
) -> None:
    for overwrite in (False, True):
        target = save_model(model, tmp_path / "saved", shard_bytes=50_000, overwrite=overwrite)
        settled.check(target, ["", *listing(target)])


def test_a_config_is_read_back_by_any_json_reader(model: DiffusionGemma, tmp_path: Path) -> None:
    text = (save_model(model, tmp_path / "saved") / "config.json").read_text("utf-8")
    assert text.endswith("}\n")
    json.loads(text, parse_constant=pytest.fail)
