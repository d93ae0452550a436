"""The loop, flat: losses and gradients, clip, step, average, log, save.

Logs are JSON lines; whoever watches gets each line too, as a dictionary.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusiongemma.core.atomic import settle
from diffusiongemma.core.errors import CheckpointError, OptionError
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.train.config import TrainConfig
from diffusiongemma.train.data import Source
from diffusiongemma.train.lesson import Examples, Learned, Lesson, Sheets
from diffusiongemma.train.optim import Average, Pace, optimizer
from diffusiongemma.train.resume import DivergedError, Run, alone, resume, save
from diffusiongemma.train.stop import Stop

Report = Callable[[dict[str, Any]], None]


def train(
    model: DiffusionGemma,
    source: Source | Sheets,
    config: TrainConfig,
    folder: Path,
    *,
    eos: int,
    pad: int,
    minutes: float | None = None,
    report: Report | None = None,
    sample: Callable[[], None] | None = None,
) -> Average:
    """Train, from the last checkpoint in the folder if there is one.

    Ctrl-C, SIGTERM and SIGHUP end it after the step, which is saved: the run then goes on as if
    nothing had been. A second one ends it at once; it saves nothing, and leaves the network in
    memory as it happens to be.

    Args:
        model: the network; its weights are changed in place.
        source: the example of a number; or sheets, which `config.batch` does not cut.
        config: the run.
        folder: where checkpoints and `metrics.jsonl` go; one run at a time.
        eos: fills the last canvas.
        pad: fills what is left.
        minutes: end after so many, with the rate that `optim.Pace` gives, or with the last step.
            What such a run finds depends on the clock.
        report: is given each line of the log.
        sample: is called after each checkpoint, with the averaged weights in the network.

    Returns:
        the averaged weights, which are the ones to keep.

    Raises:
        DivergedError: losses, gradients or weights are no longer finite.
        CheckpointError: a checkpoint is damaged, of another run, or cannot be written, or another
            run is training in the folder.
        OptionError: canvases leave no room for a prompt, or minutes that are none.
        InputError: an example that the network cannot read.
        KeyboardInterrupt, SystemExit: Ctrl-C; SIGTERM or SIGHUP, with 128 + its number.
    """
    _check_room(model, config)
    pace = Pace(config, minutes)
    lesson = source if isinstance(source, Sheets) else Examples(source, eos, pad)
    with Stop() as stop, alone(folder):
        model.requires_grad_(True).train()
        dice = torch.Generator(device=model.device).manual_seed(config.seed)
        run = Run(model, optimizer(model, config), Average(model, config.ema), dice)
        resume(run, config, folder)
        _steps(run, lesson, config, pace, _Log(folder, report, run.step), sample, stop)
    return run.average


def _steps(
    run: Run,
    lesson: Lesson,
    config: TrainConfig,
    pace: Pace,
    log: "_Log",
    sample: Callable[[], None] | None,
    stop: Stop,
) -> None:
    """Up to the end, or until it is told to stop; what was learned is saved."""
    clock, found, over = time.perf_counter(), None, pace.over(run.step)
    while not over and not stop.asked:
        found = _step(run, lesson, config, pace)
        now = time.perf_counter()
        log.add(found, config, now - clock, pace)
        clock, over = now, pace.over(run.step)
        if run.step % config.save_every == 0 or over:
            _keep(run, found, config, log)
            if sample is not None and not stop.asked:
                _shown(run, sample)
                clock = time.perf_counter()
    if stop.asked and found is not None:
        _keep(run, found, config, log)


def _check_room(model: DiffusionGemma, config: TrainConfig) -> None:
    longest = model.config.max_position_embeddings
    if config.canvas_length >= longest:
        raise OptionError(
            f"canvas_length {config.canvas_length} leaves no room for a prompt in the context of "
            f"this model, {longest}"
        )


def _shown(run: Run, sample: Callable[[], None]) -> None:
    """Let somebody look at the averaged weights."""
    run.average.swap(run.model)
    run.model.eval()
    try:
        sample()
    finally:
        run.model.train()
        run.average.swap(run.model)


@dataclass(frozen=True, slots=True)
class _Found:
    """What a step found, on the device, and at what rate it was learned."""

    step: int
    learned: Learned
    norm: Tensor
    rate: float

    def check(self) -> None:
        """Raise if the step was none."""
        loss, norm = float(self.learned.losses.total), float(self.norm)
        if not math.isfinite(loss + norm):
            raise DivergedError(f"the loss is {loss} and the gradient {norm}", self.step)


def _step(run: Run, lesson: Lesson, config: TrainConfig, pace: Pace) -> _Found:
    """One optimizer step. On a GPU the host does not wait for it."""
    learned, now = lesson(run, config), pace.rate(run.step + 1)
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), config.clip)
    for group in run.optimizer.param_groups:
        group["lr"] = now
    run.optimizer.step()
    run.step += 1
    run.average.update(run.model, run.step)
    return _Found(run.step, learned, norm, now)


def _keep(run: Run, found: _Found, config: TrainConfig, log: "_Log") -> None:
    """Save a step that was one, and the log up to it."""
    found.check()
    log.settle()
    save(run, config, log.file.parent)


class _Log:
    """Sums up the steps between two lines.

    Args:
        folder: where the log is; lines that a run wrote after its last checkpoint are removed, and
            half a line too.
        report: is given each line.
        step: that the run goes on from.

    Raises:
        CheckpointError: it cannot be read or written.
    """

    def __init__(self, folder: Path, report: Report | None, step: int) -> None:
        self.file, self.report = folder / "metrics.jsonl", report
        self.tokens = self.seconds = 0.0
        with self._telling(), self.file.open("a+b") as file:
            file.seek(0)
            kept = 0
            for line in file:
                if not _is_done(line, step):
                    break
                kept += len(line)
            file.truncate(kept)

    def add(self, found: _Found, config: TrainConfig, seconds: float, pace: Pace) -> None:
        """Count a step; write a line if it is to be logged."""
        learned = found.learned
        self.tokens += learned.losses.tokens
        self.seconds += seconds
        if found.step % config.log_every and found.step != config.steps:
            return
        found.check()
        left = pace.left_minutes(found.step, self.seconds / config.log_every)
        line = {
            "step": found.step,
            "loss": float(learned.losses.total),
            "denoiser": float(learned.losses.denoiser),
            "encoder": float(learned.losses.encoder),
            "balance": float(learned.balance),
            "norm": float(found.norm),
            "lr": found.rate,
            "expert_share": [
                [round(share, 4) for share in layer] for layer in learned.shares.tolist()
            ],
            "tokens_per_second": round(self.tokens / self.seconds),
            "left_minutes": round(left, 1),
        }
        self.tokens = self.seconds = 0.0
        with self._telling(), self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.report is not None:
            self.report(line)

    def settle(self) -> None:
        """See to it that the log is on the disk before the checkpoint that belongs to it."""
        with self._telling():
            settle(self.file)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"{self.file} cannot be written: {error.strerror or error}; check the disk and its "
                "permissions, and go on from the last checkpoint"
            ) from error


def _is_done(line: bytes, step: int) -> bool:
    """Whether a line of the log is whole, and of a step that is done."""
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
