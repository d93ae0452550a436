"""Learning from sheets: a resumed run is the unbroken run, and the host is never asked."""

import dataclasses
from pathlib import Path

import pytest
import torch

from diffusiongemma.core.errors import OptionError
from diffusiongemma.train import lesson, optim
from diffusiongemma.train.config import TrainConfig
from diffusiongemma.train.lesson import Sheets
from diffusiongemma.train.optim import Pace
from diffusiongemma.train.rows import rows_losses
from diffusiongemma.train.sheet import Form, Sheet
from train_run import log, run
from train_toy import CONFIG, source, toy

FORM = Form(rows=2, length=40, width=4, eos=1, pad=0)


def sheet(step: int) -> Sheet:
    return FORM.lay([source(5 * step + n) for n in range(5)], step)


def test_a_resumed_run_of_sheets_is_the_unbroken_run(tmp_path: Path) -> None:
    """Bitwise: weights, averages, log."""

    class BrokenOffError(Exception):
        pass

    def interrupt(line: dict) -> None:
        if line["step"] == 6:
            raise BrokenOffError

    whole = run(tmp_path / "whole", source=Sheets(sheet, 4))
    with pytest.raises(BrokenOffError):
        run(tmp_path / "broken", source=Sheets(sheet, 4), report=interrupt)
    assert torch.equal(whole, run(tmp_path / "broken", source=Sheets(sheet, 4)))
    lines = log(tmp_path / "whole")
    assert lines == log(tmp_path / "broken") and len(lines) == 8
    assert all(abs(sum(layer) - 1) < 1e-3 for line in lines for layer in line["expert_share"])


def test_it_learns_from_sheets(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, steps=150, save_every=150, log_every=10, lr=1e-2)
    run(tmp_path, config, source=Sheets(sheet, 4))
    losses = [line["denoiser"] for line in log(tmp_path)]
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])


def test_a_step_asks_the_host_for_nothing() -> None:
    """On tensors without numbers, where such a question is an error; what is not on the CPU takes
    a GPU's way.
    """
    network = toy().to("meta")
    rows = sheet(0).to(torch.device("cpu"))
    rows = dataclasses.replace(
        rows, numbers=rows.numbers.to("meta"), weight_BS=rows.weight_BS.to("meta")
    )
    weights = list(network.parameters())
    learned, gradients = lesson._gradients(
        network, weights, lambda: rows_losses(network, rows, rows.ids_BS), CONFIG
    )
    assert [g.shape for g in gradients if g is not None] == [w.shape for w in weights]
    found = (learned.losses.total, learned.balance, learned.shares, *gradients)
    assert all(one is not None and one.is_meta for one in found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a graph is captured on a GPU")
def test_a_captured_step_is_the_step_call_by_call(tmp_path: Path) -> None:
    found = []
    for capture in (True, False):
        lessons = Sheets(sheet, 4, capture=capture)
        folder = tmp_path / str(capture)
        found.append(run(folder, source=lessons, model=toy().cuda()))
        assert (lessons._captured is not None) is capture
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_by_the_clock_the_rate_stays_and_then_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(optim, "time", clock)
    pace = Pace(TrainConfig(steps=10**6, warmup=10, lr=1.0, lr_end=0.1), minutes=1)
    assert pace.rate(5) == pytest.approx(0.5) and pace.rate(10) == pytest.approx(1.0)
    rates = []
    for second in (10, 36, 48, 60):
        assert not pace.over(1000)
        clock.now = 100.0 + second
        rates.append(pace.rate(1000))
    assert rates == pytest.approx([1.0, 1.0, 0.55, 0.1])
    assert pace.over(1000) and pace.left_minutes(1000, 1.0) == 0
    clock.now = 130.0
    assert pace.left_minutes(1000, 1.0) == pytest.approx(0.5) and pace.over(10**6)


def test_a_run_ends_by_the_clock_and_is_saved(tmp_path: Path) -> None:
    config, seen = dataclasses.replace(CONFIG, steps=10**6, save_every=10**6), []
    run(tmp_path, config, minutes=0.02, sample=lambda: seen.append(True))
    lines = log(tmp_path)
    assert seen == [True] and 1 < lines[-1]["step"] < 10**6
    assert (tmp_path / f"step-{lines[-1]['step']:08d}" / "state.safetensors").exists()
    assert lines[-1]["lr"] < 0.5 * CONFIG.lr


@pytest.mark.parametrize("minutes", [0, -1.0, float("nan"), float("inf")])
def test_minutes_that_are_none(minutes: float, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="minutes must be a finite number above 0"):
        run(tmp_path, minutes=minutes)
