"""Checkpoints of a run: whole, verified, the only ones in their folder, and never spoilt."""

import dataclasses
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import killed_runs
from cli_help import ENVIRONMENT
from diffusiongemma.core.errors import CheckpointError, InputError, OptionError
from diffusiongemma.train import resume
from diffusiongemma.train.config import TrainConfig
from diffusiongemma.train.data import Example
from diffusiongemma.train.loop import DivergedError
from diffusiongemma.train.optim import Average, optimizer
from diffusiongemma.train.resume import Run, checkpoints, save
from settled import Settled
from train_run import flat, log, names, run
from train_toy import CONFIG, source, toy

FEW = dataclasses.replace(CONFIG, steps=4, batch=2, save_every=2)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, with checkpoints of steps 2 and 4; to be copied."""
    folder = tmp_path_factory.mktemp("done")
    run(folder, FEW)
    return folder


@pytest.fixture
def folder(done: Path, tmp_path: Path) -> Path:
    """The same to be spoilt."""
    return Path(shutil.copytree(done, tmp_path / "run"))


def fresh(config: TrainConfig = FEW) -> Run:
    """A run that has not begun."""
    model, dice = toy().requires_grad_(True), torch.Generator().manual_seed(1)
    return Run(model, optimizer(model, config), Average(model, config.ema), dice)


def state(one: Run) -> torch.Tensor:
    """All numbers of a run in a row."""
    return torch.cat([tensor.flatten().double() for tensor in resume._tensors(one).values()])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills its children")
@pytest.mark.slow
def test_killed_at_every_moment_it_comes_out_the_same(tmp_path: Path) -> None:
    env = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, killed_runs.__file__, tmp_path / "place"]
    found = subprocess.run(words, stdout=subprocess.PIPE, check=True, env=env).stdout
    moments = [json.loads(line) for line in found.splitlines()]
    assert len(moments) > 60 and all(moment["same"] for moment in moments)
    assert sum(moment["whole"] for moment in moments) == 2, "one for each save, and it is adopted"


def test_a_killed_trainer_s_folder_is_free(tmp_path: Path) -> None:
    script = (
        "import sys, train_run, train_toy; from pathlib import Path\n"
        "def wait(line): print('waiting', flush=True), sys.stdin.readline()\n"
        "train_run.run(Path(sys.argv[1]), train_toy.CONFIG, report=wait)"
    )
    env = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", script, tmp_path]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    with process:
        assert process.stdout is not None and process.stdout.readline() == b"waiting\n"
        with pytest.raises(
            CheckpointError, match=r"another run is training in .*; wait for it, or"
        ):
            run(tmp_path)
        process.send_signal(signal.SIGKILL)
    run(tmp_path, FEW)


def test_two_in_one_process_are_two(tmp_path: Path) -> None:
    def second(line: dict) -> None:
        with pytest.raises(CheckpointError, match=r"another run is training in"):
            run(tmp_path, FEW)

    run(tmp_path, FEW, report=second)
    assert names(tmp_path) == ["metrics.jsonl", "step-00000002", "step-00000004"]


def test_two_are_kept(tmp_path: Path) -> None:
    run(tmp_path, dataclasses.replace(FEW, steps=5, save_every=1))
    assert names(tmp_path) == ["metrics.jsonl", "step-00000004", "step-00000005"]


def test_a_step_that_is_saved_is_not_saved_again(folder: Path) -> None:
    one = fresh()
    assert resume.resume(one, FEW, folder)
    before = (folder / "step-00000004" / "state.json").stat().st_ino
    save(one, FEW, folder)
    assert (folder / "step-00000004" / "state.json").stat().st_ino == before
    (folder / "step-00000004" / "state.safetensors").write_bytes(b"spoilt")
    save(one, FEW, folder)
    again = fresh()
    assert resume.resume(again, FEW, folder) and torch.equal(state(one), state(again))
    assert names(folder) == ["metrics.jsonl", "step-00000002", "step-00000004"]


def test_what_a_killed_save_left_whole_is_adopted(folder: Path) -> None:
    wanted = fresh()
    resume.resume(wanted, FEW, folder)
    left = folder / ".step-00000004.0badcafe.partial"
    (left / "whole").mkdir(parents=True)
    (left / "lock").touch()
    (folder / "step-00000004").rename(left / "whole" / "step-00000004")
    found = fresh()
    assert resume.resume(found, FEW, folder) and found.step == 4
    assert torch.equal(state(found), state(wanted)) and not left.exists()


def test_no_bit_is_lost_without_a_word(folder: Path) -> None:
    """200 flips, half of them in the description: each is one sentence, and nothing is copied."""
    one, dice = fresh(), random.Random(0)
    before = state(one).clone()
    files = [folder / "step-00000004" / name for name in ("state.json", "state.safetensors")]
    for number in range(200):
        file = files[number % 2]
        good = bytearray(file.read_bytes())
        bad = bytearray(good)
        bad[place := dice.randrange(len(bad))] ^= 1 << dice.randrange(8)
        file.write_bytes(bad)
        with pytest.raises(CheckpointError) as error:
            resume.resume(one, FEW, folder)
        assert "\n" not in str(error.value).strip() and "step-00000004" in str(error.value), place
        assert torch.equal(state(one), before) and one.step == 0
        file.write_bytes(good)
    assert resume.resume(one, FEW, folder) and one.step == 4


def test_damage_is_named_and_the_one_before_goes_on(folder: Path, done: Path) -> None:
    last = folder / "step-00000004"
    written = (last / "state.json").read_text()
    match = "step-00000004 is damaged: .*; remove it, and the run goes on from step-00000002"
    for spoil in (
        lambda: (last / "state.json").unlink(),
        lambda: (last / "state.safetensors").unlink(),
        lambda: (last / "state.json").write_text("[" * 100_000),
        lambda: (last / "state.json").write_text("[]\n"),
        lambda: (last / "state.json").write_bytes(b"\xff"),
        lambda: (last / "state.json").write_text(written.replace("{", "{ ", 1)),
        lambda: (last / "state.safetensors").write_bytes(b""),
        lambda: shutil.copy(folder / "step-00000002" / "state.json", last),
        lambda: shutil.copy(folder / "step-00000002" / "state.safetensors", last),
    ):
        spoil()
        with pytest.raises(CheckpointError, match=match):
            run(folder, FEW)
        shutil.copytree(done / "step-00000004", last, dirs_exist_ok=True)
    last.rename(folder / "step-00000005")
    with pytest.raises(
        CheckpointError, match="step-00000005 is damaged: it is of format 2, step 4"
    ):
        run(folder, FEW)
    shutil.rmtree(folder / "step-00000005")
    assert torch.equal(run(folder, FEW), flat_of(done)) and log(folder) == log(done)
    shutil.rmtree(folder / "step-00000002")
    (last / "state.json").unlink()
    with pytest.raises(CheckpointError, match="remove it, and the run begins anew"):
        run(folder, FEW)


def flat_of(folder: Path) -> torch.Tensor:
    """The weights of a run's last checkpoint."""
    one = fresh()
    resume.resume(one, FEW, folder)
    return flat(one.model, one.average.weights)


def test_another_network_s_checkpoint_is_refused(folder: Path) -> None:
    other = fresh()
    other.model.norm.weight = torch.nn.Parameter(torch.ones(7))
    with pytest.raises(CheckpointError, match=r"is of another network or device: .*\[32\].*\[7\]"):
        resume.resume(other, FEW, folder)


def test_numbers_that_are_none_are_never_saved(tmp_path: Path) -> None:
    """Between two lines of the log, where nobody looks at the loss."""
    config = dataclasses.replace(FEW, steps=9, save_every=2, log_every=9)
    model = toy()

    def spoilt(number: int) -> Example:
        if number == 5 * config.batch:
            with torch.no_grad():
                model.norm.weight[0] = torch.nan
        return source(number)

    with pytest.raises(DivergedError, match=r"nan at step 6; lower lr .* begin in another folder"):
        run(tmp_path, config, model=model, source=spoilt)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002", "step-00000004"]
    assert not list(tmp_path.glob(".*.partial"))


def test_ctrl_c_saves_no_nonsense_either(tmp_path: Path) -> None:
    config = dataclasses.replace(FEW, steps=9, save_every=2, log_every=9)
    model = toy()

    def spoilt(number: int) -> Example:
        if number == 4 * config.batch:
            with torch.no_grad():
                model.norm.weight[0] = torch.nan
            signal.raise_signal(signal.SIGTERM)
        return source(number)

    with pytest.raises(DivergedError, match="at step 5"):
        run(tmp_path, config, model=model, source=spoilt)
    assert checkpoints(tmp_path)[-1].name == "step-00000004"


@pytest.mark.parametrize("what", ["weight", "average", "exp_avg", "exp_avg_sq"])
def test_every_number_is_looked_at(what: str, folder: Path) -> None:
    one = fresh()
    resume.resume(one, FEW, folder)
    weight = one.model.norm.weight
    places = {"weight": weight.detach(), "average": one.average.weights["norm.weight"]}
    (places | one.optimizer.state[weight])[what][3] = torch.inf
    one.step = 5
    with pytest.raises(DivergedError, match=f"not all numbers of {what}/norm.weight are finite"):
        save(one, FEW, folder)
    assert checkpoints(folder)[-1].name == "step-00000004"


@contextmanager
def full_disk(at: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_sentence_and_the_checkpoint_before_stays(
    folder: Path, done: Path
) -> None:
    one = fresh()
    resume.resume(one, FEW, folder)
    one.step = 5
    for at in (100_000, 500):  # in the tensors, or anywhere
        with full_disk(at), pytest.raises(CheckpointError) as error:
            save(one, FEW, folder)
        said = str(error.value)
        assert "step-00000005 cannot be written: " in said and "File too large" in said
        assert said.endswith("go on from the checkpoint before it") and "\n" not in said
        assert names(folder) == names(done)
    shutil.rmtree(folder / "step-00000004")
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    with (
        full_disk(len(b"".join(lines[:2]))),
        pytest.raises(CheckpointError, match=r"metrics\.jsonl cannot be written: "),
    ):
        run(folder, FEW)
    assert torch.equal(run(folder, FEW), flat_of(done)) and log(folder) == log(done)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file cannot be written: .*; name another folder"):
        run(tmp_path / "file", FEW)
    with pytest.raises(CheckpointError, match="file/deep cannot be written: Not a directory"):
        run(tmp_path / "file" / "deep", FEW)


@pytest.mark.parametrize("tail", [b'{"step": 3, "lo', b"\x00\x00", b"\n", b'{"step": 3}\n[]\n'])
def test_the_log_is_the_unbroken_run_s(tail: bytes, folder: Path, done: Path) -> None:
    """A kill leaves lines of steps that are done again, and half a line."""
    shutil.rmtree(folder / "step-00000004")
    with (folder / "metrics.jsonl").open("r+b") as file:
        lines = file.readlines()
        file.seek(0)
        file.truncate()
        file.writelines(lines[:3])
        file.write(tail)
    run(folder, FEW)
    assert log(folder) == log(done)


def test_all_of_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, settled: Settled) -> None:
    run(tmp_path, FEW)
    files = ["", "state.json", "state.safetensors"]
    settled.check(tmp_path / "step-00000004", files, tmp_path / "metrics.jsonl")


def test_what_the_network_cannot_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"canvas_length 64 leaves no room .* this model, 64"):
        run(tmp_path, dataclasses.replace(FEW, canvas_length=64))
    for example, said in (
        (Example([5] * 61, [6, 7]), "an example has 65 tokens with its canvases, .* holds 64;"),
        (Example([5], [40]), "holds what is no token id from 0 to 39; was it made"),
        (Example([-1], [5]), "holds what is no token id from 0 to 39"),
    ):
        with pytest.raises(InputError, match=said):
            run(tmp_path, FEW, source=lambda number, example=example: example)


def test_the_last_checkpoint_is_that_of_the_last_step(tmp_path: Path) -> None:
    for name in ("step-99999999", "step-100000000", "step-00000003", "step-3", "step-x"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints(tmp_path)][-2:] == ["step-99999999", "step-100000000"]
    assert len(checkpoints(tmp_path)) == 3
