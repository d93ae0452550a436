"""Checkpoints of a run: everything that the next step depends on, as safetensors and JSON.

A checkpoint appears whole, by rename, or not at all; the one before it is removed only afterwards.
So a run that is killed at any moment goes on from the last whole one, and then does what the
unbroken run would have done.
"""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusiongemma.core.errors import CheckpointError
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.train.config import TrainConfig
from diffusiongemma.train.optim import Average

_KEPT = ("exp_avg", "exp_avg_sq", "step")


@dataclass(slots=True)
class Run:
    """The moving parts of a run.

    Attributes:
        model: the network.
        optimizer: AdamW over it.
        average: its averaged weights.
        dice: decides noise and coins.
        step: steps done.
    """

    model: DiffusionGemma
    optimizer: torch.optim.AdamW
    average: Average
    dice: torch.Generator
    step: int = 0


def save(run: Run, config: TrainConfig, folder: Path) -> Path:
    """Write the checkpoint of the current step, then remove older ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".step-*"):  # of runs that were killed while writing
        shutil.rmtree(stale, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=".step-", dir=folder))
    save_file(_tensors(run), scratch / "state.safetensors")
    about = {"step": run.step, "config": config.as_dict()}
    (scratch / "state.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    target = folder / f"step-{run.step:08d}"
    if target.exists():
        shutil.rmtree(target)
    os.rename(scratch, target)
    for old in checkpoints(folder)[:-1]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())


def resume(run: Run, config: TrainConfig, folder: Path) -> bool:
    """Put the last checkpoint's state in place.

    Returns:
        whether there was one.

    Raises:
        CheckpointError: it is damaged, or belongs to a run with another configuration.
    """
    found = checkpoints(folder)
    if not found:
        return False
    try:
        about = json.loads((found[-1] / "state.json").read_text(encoding="utf-8"))
        tensors = load_file(found[-1] / "state.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{found[-1]} cannot be read ({error}); remove it") from error
    now = json.loads(json.dumps(config.as_dict()))
    changed = sorted(name for name in now if now[name] != about["config"].get(name))
    if changed:
        was = {name: about["config"].get(name) for name in changed}
        raise CheckpointError(
            f"{found[-1]} is of a run with other settings ({was}); use them or another folder"
        )
    _restore(run, tensors)
    run.step = int(about["step"])
    return True


def _tensors(run: Run) -> dict[str, Tensor]:
    found = {"dice": run.dice.get_state()}
    for name, weight in run.model.named_parameters():
        found[f"weight/{name}"] = weight.detach()
        found[f"average/{name}"] = run.average.weights[name]
        for part in _KEPT:
            if part in run.optimizer.state.get(weight, {}):
                found[f"{part}/{name}"] = run.optimizer.state[weight][part]
    return {name: tensor.contiguous().cpu() for name, tensor in found.items()}


@torch.no_grad()
def _restore(run: Run, tensors: dict[str, Tensor]) -> None:
    run.dice.set_state(tensors["dice"])
    for name, weight in run.model.named_parameters():
        weight.copy_(tensors[f"weight/{name}"])
        run.average.weights[name].copy_(tensors[f"average/{name}"])
        kept = {p: tensors[f"{p}/{name}"] for p in _KEPT if f"{p}/{name}" in tensors}
        if kept:
            # The counter of steps stays on the host, as a fresh optimizer has it.
            run.optimizer.state[weight] = {
                p: value if p == "step" else value.to(weight) for p, value in kept.items()
            }
