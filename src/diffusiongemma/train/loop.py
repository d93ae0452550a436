"""The loop, flat: batch, losses, backward, clip, step, average, log, save.

Logs are JSON lines; whoever watches gets each line too, as a dictionary.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from diffusiongemma.core.errors import DiffusionGemmaError
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.train.balance import Watch
from diffusiongemma.train.config import TrainConfig
from diffusiongemma.train.data import Source, pack
from diffusiongemma.train.objective import losses
from diffusiongemma.train.optim import Average, optimizer, rate
from diffusiongemma.train.resume import Run, resume, save

Report = Callable[[dict[str, Any]], None]


class DivergedError(DiffusionGemmaError, RuntimeError):
    """The loss is no longer a number."""


def train(
    model: DiffusionGemma,
    source: Source,
    config: TrainConfig,
    folder: Path,
    *,
    eos: int,
    pad: int,
    report: Report | None = None,
    sample: Callable[[], None] | None = None,
) -> Average:
    """Train, from the last checkpoint in the folder if there is one.

    Args:
        model: the network; its weights are changed in place.
        source: the example of a number.
        config: the run.
        folder: where checkpoints and `metrics.jsonl` go.
        eos: fills the last canvas.
        pad: fills what is left.
        report: is given each line of the log.
        sample: is called after each checkpoint, with the averaged weights in the network.

    Returns:
        the averaged weights, which are the ones to keep.

    Raises:
        DivergedError: the loss is no longer finite.
        CheckpointError: a checkpoint is damaged or of another run.
    """
    model.requires_grad_(True).train()
    dice = torch.Generator(device=model.device).manual_seed(config.seed)
    run = Run(model, optimizer(model, config), Average(model, config.ema), dice)
    resume(run, config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    log, clock = _Log(folder, report), time.perf_counter()
    try:
        while run.step < config.steps:
            first = run.step * config.batch
            examples = [source(first + n) for n in range(config.batch)]
            batch = pack(examples, config.canvas_length, eos, pad)
            wanted = (run.step + 1) % config.log_every == 0 or run.step + 1 == config.steps
            line = _step(run, batch, config, wanted)
            now = time.perf_counter()
            log.add(line, config, now - clock)
            clock = now
            if run.step % config.save_every == 0 or run.step == config.steps:
                save(run, config, folder)
                if sample is not None:
                    _shown(run, sample)
                    clock = time.perf_counter()
    except KeyboardInterrupt:
        save(run, config, folder)  # of the last whole step; the broken one is done again
        raise
    return run.average


def _shown(run: Run, sample: Callable[[], None]) -> None:
    """Let somebody look at the averaged weights."""
    run.average.swap(run.model)
    run.model.eval()
    try:
        sample()
    finally:
        run.model.train()
        run.average.swap(run.model)


def _step(run: Run, batch: Any, config: TrainConfig, wanted: bool) -> dict[str, Any]:
    """One optimizer step; figures on the host only if they are wanted."""
    state = run.dice.get_state()
    run.optimizer.zero_grad(set_to_none=True)
    try:
        with Watch(run.model) as watch:
            found = losses(
                run.model,
                batch,
                run.dice,
                conditioned=config.conditioned,
                encoder_weight=config.encoder_weight,
            )
            balance = watch.balance()
            (found.total + config.balance * balance).backward()
        norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), config.clip)
    except KeyboardInterrupt:
        run.dice.set_state(state)
        raise
    for group in run.optimizer.param_groups:
        group["lr"] = rate(run.step + 1, config)
    run.optimizer.step()
    run.step += 1
    run.average.update(run.model, run.step)
    line: dict[str, Any] = {"step": run.step, "tokens": found.tokens}
    if wanted:
        shares = watch.shares()
        line |= {
            "loss": float(found.total.detach()),
            "denoiser": float(found.denoiser),
            "encoder": float(found.encoder),
            "balance": float(balance.detach()),
            "norm": float(norm),
            "lr": rate(run.step, config),
            "expert_share": [[round(share, 4) for share in layer] for layer in shares],
        }
        if not math.isfinite(line["loss"] + line["norm"]):
            raise DivergedError(
                f"the loss is {line['loss']} and the gradient {line['norm']} at step {run.step}; "
                "lower lr or lengthen warmup, and go on from the last checkpoint"
            )
    return line


class _Log:
    """Sums up the steps between two lines."""

    def __init__(self, folder: Path, report: Report | None) -> None:
        self.file, self.report = folder / "metrics.jsonl", report
        self.tokens = self.seconds = 0.0

    def add(self, line: dict[str, Any], config: TrainConfig, seconds: float) -> None:
        """Count a step; write a line if the step has figures."""
        self.tokens += line.pop("tokens")
        self.seconds += seconds
        if "loss" not in line:
            return
        line["tokens_per_second"] = round(self.tokens / self.seconds)
        pace = self.seconds / config.log_every
        line["left_minutes"] = round((config.steps - line["step"]) * pace / 60, 1)
        self.tokens = self.seconds = 0.0
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.report is not None:
            self.report(line)
