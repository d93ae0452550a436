"""A resumed run is the unbroken run, and a killed one leaves a checkpoint that loads."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffusiongemma.core.errors import CheckpointError, InputError
from diffusiongemma.train.config import TrainConfig
from diffusiongemma.train.data import Example, pack
from diffusiongemma.train.loop import DivergedError
from diffusiongemma.train.optim import rate
from diffusiongemma.train.resume import checkpoints
from train_run import log, run
from train_toy import CONFIG, toy


def test_a_resumed_run_is_the_unbroken_run(tmp_path: Path) -> None:
    """Bitwise: weights, averages, log."""
    whole = run(tmp_path / "whole")

    class BrokenOffError(Exception):
        pass

    def interrupt(line: dict) -> None:
        if line["step"] == 5:
            raise BrokenOffError

    with pytest.raises(BrokenOffError):
        run(tmp_path / "broken", report=interrupt)
    assert [path.name for path in checkpoints(tmp_path / "broken")] == ["step-00000004"]
    resumed = run(tmp_path / "broken")
    assert torch.equal(whole, resumed)
    assert log(tmp_path / "whole") == log(tmp_path / "broken")


def test_a_run_that_shows_samples_is_the_run_without(tmp_path: Path) -> None:
    """Whoever samples sees the averaged weights, ready to answer, and leaves no trace."""
    whole = run(tmp_path / "whole")
    model, seen = toy(), []

    def sample() -> None:
        torch.rand(7)  # as an answer without a seed would
        seen.append((model.training, model.norm.weight.detach().clone()))

    assert torch.equal(whole, run(tmp_path / "shown", model=model, sample=sample))
    assert seen and not any(training for training, _ in seen)
    assert not torch.equal(seen[-1][1], model.norm.weight)


def test_a_sample_that_fails_leaves_the_network_as_it_was_trained(tmp_path: Path) -> None:
    class WrongError(Exception):
        pass

    def sample() -> None:
        raise WrongError

    model = toy()
    with pytest.raises(WrongError):
        run(tmp_path, model=model, sample=sample)
    kept = load_file(checkpoints(tmp_path)[-1] / "state.safetensors")
    assert model.training and torch.equal(model.norm.weight, kept["weight/norm.weight"])


def test_another_run_s_checkpoint_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(CheckpointError, match=r"of a run with other settings \(\{'lr': 0.003\}\)"):
        run(tmp_path, dataclasses.replace(CONFIG, lr=1e-4))


def test_divergence_stops_the_run(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, lr=1e30, warmup=1)
    with pytest.raises(DivergedError, match="lower lr or lengthen warmup"):
        run(tmp_path, config)


def test_the_rate_warms_up_and_falls() -> None:
    config = TrainConfig(steps=100, warmup=10, lr=1.0, lr_end=0.1)
    rates = [rate(step, config) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1) and rates[9:] == sorted(rates[9:], reverse=True)


def test_packing_fills_with_the_end_mark_and_pads() -> None:
    batch = pack([Example([7, 8], [9, 9, 9, 9, 5]), Example([6], [4, 5])], width=4, eos=1, pad=0)
    assert batch.clean_BT.tolist() == [
        [7, 8, 9, 9, 9, 9, 5, 1, 1, 1],
        [6, 4, 5, 1, 1, 0, 0, 0, 0, 0],
    ]
    assert batch.canvas_BK.tolist() == [[True, True], [True, False]]
    assert batch.canvases()[0].tolist() == [[9, 9, 9, 9], [5, 1, 1, 1]]


def test_bad_input_says_what_got_do() -> None:
    with pytest.raises(InputError, match="needs a prompt and an answer of at least one token"):
        pack([Example([7], [])], width=4, eos=1, pad=0)
