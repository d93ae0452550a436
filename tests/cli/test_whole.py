"""The whole-size bench, rehearsed at toy size."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cli_help import ENVIRONMENT
from diffusiongemma.cli.main import main
from diffusiongemma.cli.whole import account, check, network, run, twins
from diffusiongemma.model.count import parameters
from diffusiongemma.model.model import DiffusionGemma

DATA = twins.Data(network.TOY, torch.device("cpu"))


def test_the_released_size_is_the_accounts() -> None:
    """Parameters, bytes and floors of the plan's accounting, to the digit or the rounding."""
    assert parameters(network.RELEASED) == 25_250_986_752
    for experts, floor in ((128, 12.9), (84, 9.3)):
        work = account.step(network.RELEASED, 1024, 1, experts)
        seconds = sum(one.seconds(4.3e12, 790e12) for one in work.values())
        assert seconds * 1e3 == pytest.approx(floor, abs=0.06)


def test_routing_can_be_skewed() -> None:
    config = network.TOY
    model = network.made(config, torch.device("cpu"), torch.bfloat16)
    dice = torch.Generator().manual_seed(0)
    even = network.hits(model, model.blocks[0].router, dice)
    assert network.skew(model, 0.8) == pytest.approx(0.8, abs=0.1)
    assert even > 0.95


@torch.no_grad()
@pytest.mark.parametrize(
    "name", [name for name, _ in twins.all_of(twins.Data(network.TOY, torch.device("cpu")))]
)
def test_every_kernel_check_passes_interpreted(name: str) -> None:
    pytest.importorskip("triton")
    import right_interpreter

    with right_interpreter.right():
        said = dict(twins.all_of(DATA))[name]()
    assert said and "not run" not in said


def test_a_wrong_kernel_is_found() -> None:
    truth = torch.randn(1000)
    usual = truth.bfloat16()
    twins.held(usual, usual, truth)
    with pytest.raises(AssertionError, match="mean error"):
        twins.held(usual * 1.05, usual, truth)
    with pytest.raises(AssertionError, match="mean error"):
        twins.held(torch.zeros(10), torch.zeros(10), torch.zeros(10))


def test_captured_steps_are_compared() -> None:
    assert check.captured(torch.device("cpu"))["equal"]


def test_transformers_computes_with_our_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    said = check.exact(cpu)
    assert 0 < said["largest_difference"] < 1e-4 < said["largest_logit"]
    real = check.rival.sharing

    def other(model: DiffusionGemma):
        theirs = real(model)
        theirs.model.model.decoder.layers[1].layer_scalar.mul_(1.01)  # ours too, if it is shared
        return theirs

    monkeypatch.setattr(check.rival, "sharing", other)
    model = network.made(network.TOY, cpu, torch.float32)
    before = float(model.blocks[1].denoise_scalar)
    other(model)
    assert float(model.blocks[1].denoise_scalar) == pytest.approx(1.01 * before)
    with pytest.raises(AssertionError, match="logits differ"):
        check.exact(cpu)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two canvases of a few steps rehearse as much as four of many."""
    monkeypatch.setattr(run, "STEPS", 3)
    monkeypatch.setattr(run, "CANVASES", 2)
    monkeypatch.setattr(run, "PROMPT", 100)


@pytest.mark.usefixtures("short")
def test_parts_are_resumed(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["bench", "--size", "toy", "--part", "batch", "--out", str(tmp_path), "--alone"]
    assert main(asked) == 0
    out = capsys.readouterr()
    assert "times the floor" in out.out and "tokens/s" in out.out
    assert (tmp_path / "toy-batch.log").read_text() == out.out
    file = tmp_path / "toy-batch.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    step = next(line for line in lines if line["case"].endswith("batch 8: step"))
    assert sum(step["part_seconds"].values()) == pytest.approx(step["step_seconds"], rel=1.0)
    assert step["over_floor"] > 1
    file.write_text(file.read_text()[:-200])  # cut off in its last line
    assert main(asked) == 0
    again = capsys.readouterr()
    assert len(re.findall("done before", again.err)) == len(lines) - 1
    assert [json.loads(one)["case"] for one in file.read_text().splitlines()[-1:]] == [
        lines[-1]["case"]
    ]
    assert len(file.read_text().splitlines()) == len(lines) + 1  # the half one stays


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--size", "27b"], "unknown size '27b'; did you mean '26b'"),
        (["--size", "toy", "--part", "fp4"], "unknown part 'fp4'; did you mean 'fp8'"),
        (["--size", "26b", "--device", "cpu"], "needs a GPU"),
        (["--size", "toy", "--threads", "2"], "--threads has no meaning with --size"),
        (["--size", "toy", "--steps", "3"], "--steps has no meaning with --size"),
        (["--size", "toy", "--quick"], "--quick has no meaning with --size"),
        (["--part", "fp8"], "--part needs --size"),
        (["--size", "toy", "--part", ""], "unknown part ''; known: batch, bf16, check, fp8"),
        (["--size", "toy", "--out", "/dev/null/x"], "--out /dev/null/x cannot be written"),
    ],
)
def test_what_cannot_be_is_told(asked: list[str], said: str, capsys) -> None:
    assert main(["bench", *asked]) != 0
    assert said in capsys.readouterr().err


def test_two_at_once_do_not_share_a_file(tmp_path, capsys) -> None:
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / "toy-batch.jsonl").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["bench", "--size", "toy", "--part", "batch", "--out", str(tmp_path)]) != 0
    assert "another bench is writing to" in capsys.readouterr().err


@pytest.mark.usefixtures("short")
def test_a_step_is_kept_where_the_limits_failed(tmp_path, capsys, monkeypatch) -> None:
    def fails(clock: object) -> dict[str, float]:
        raise RuntimeError("no bandwidth " + "x" * 100_000)

    monkeypatch.setattr("diffusiongemma.cli.whole.run.limits", fails)
    assert main(["bench", "--size", "toy", "--part", "fp8", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert len(said.out) + len(said.err) < 20_000
    assert "no bandwidth" in said.out and "limits were not measured" in said.out
    lines = [json.loads(line) for line in (tmp_path / "toy-fp8.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["case"].endswith(": step")]
    assert len(steps) == 2 and all(step["step_seconds"] > 0 for step in steps)
    assert len((tmp_path / "toy-fp8.errors").read_text()) > 100_000


RIVAL = """
import gc, weakref
import torch
from diffusiongemma.cli.whole import run

left, real = [], run.rival.sharing

def watched(model):
    theirs = real(model)
    left.append(weakref.ref(theirs.model))
    return theirs

run.rival.sharing = watched
gc.disable()  # or it may come by chance
bench = run.Bench("toy", "bf16", torch.device("cpu"), None, alone=False, data=False)
assert bench._rival("even", False)["step_seconds"] > 0
print([one() is None for one in left])
"""


def test_a_rival_leaves_nothing_behind() -> None:
    """Its network is a circle of references around our weights."""
    done = subprocess.run(
        [sys.executable, "-c", RIVAL], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.stdout == "[True]\n", done.stdout + done.stderr


def test_a_part_that_fails_does_not_end_the_others(tmp_path) -> None:
    root = Path(__file__).parent.parent.parent
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\ncase "$*" in *"--part one"*) exit 1;; esac\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["make", "gpu", "PART=one two", f"GPU_PYTHON={python}"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert "--part two" in done.stdout
    assert done.returncode != 0 and "these parts failed: one" in done.stderr
