"""Checkpoints of a run: everything that the next step depends on, as safetensors and JSON.

    step-00000500/
        state.safetensors   weights, averages, the optimizer's moments, the dice
        state.json          step and settings; the tensors' names, shapes, formats and SHA-256

A checkpoint appears whole or not at all, holds finite numbers only, and is verified before any of
it is put in place; two are kept. So a run that is killed at any moment goes on from the last whole
one, and then does what the unbroken run would have done.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusiongemma.core.atomic import lock, remove, replacing, sweep
from diffusiongemma.core.errors import CheckpointError, DiffusionGemmaError
from diffusiongemma.core.letters import reason
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.train.config import TrainConfig
from diffusiongemma.train.optim import Average

FORMAT = 2
_COUNT = 2  # checkpoints that are kept
_KEPT = ("exp_avg", "exp_avg_sq", "step")
_NAME = re.compile(r"step-([0-9]{8,12})")


class DivergedError(DiffusionGemmaError, RuntimeError):
    """Losses, gradients or weights are no longer numbers."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(
            f"{what} at step {step}; lower lr or lengthen warmup, and begin in another folder (the "
            "last checkpoint stays)"
        )


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


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder, which is made if there is none.

    Raises:
        CheckpointError: another run is training there, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
    except OSError as error:
        why = error.strerror or error
        raise CheckpointError(f"{folder} cannot be written: {why}; name another folder") from error
    with file:
        if lock(file.fileno()) is False:
            raise CheckpointError(
                f"another run is training in {folder}; wait for it, or name another folder"
            )
        yield


def save(run: Run, config: TrainConfig, folder: Path) -> Path:
    """Write the checkpoint of the current step, then remove all but the last two.

    Raises:
        DivergedError: not all numbers are finite; nothing is written.
        CheckpointError: it cannot be written; what was there stays.
    """
    target = folder / f"step-{run.step:08d}"
    tensors = _tensors(run)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise DivergedError(f"not all numbers of {name} are finite", run.step)
    try:
        if not _is_saved(target, config):
            with replacing(target) as scratch:
                scratch.mkdir()
                save_file(tensors, scratch / "state.safetensors")
                about = {
                    "format": FORMAT,
                    "step": run.step,
                    "config": config.as_dict(),
                    "sha256": _digest(scratch / "state.safetensors"),
                    "tensors": _described(tensors),
                }
                (scratch / "state.json").write_text(_text(about), encoding="utf-8")
        _prune(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{target} cannot be written: {getattr(error, 'strerror', None) or error}; check the "
            "disk and its permissions, and go on from the checkpoint before it"
        ) from error
    return target


def _prune(folder: Path) -> None:
    for old in checkpoints(folder)[:-_COUNT]:
        remove(old)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = {path: _step_of(path) for path in folder.glob("step-*")}
    steps = {path: step for path, step in found.items() if step is not None}
    return sorted(steps, key=steps.__getitem__)  # by name, step-100000000 would be an early one


def resume(run: Run, config: TrainConfig, folder: Path) -> bool:
    """Put the last checkpoint's state in place; one that a killed run had written whole counts.

    Returns:
        whether there was one.

    Raises:
        CheckpointError: it is damaged, or belongs to another network or other settings; nothing
            was put in place.
    """
    sweep(folder, adopt=True)
    found = checkpoints(folder)
    if not found:
        return False
    about, tensors = _read(found[-1])
    now, then = json.loads(json.dumps(config.as_dict())), about["config"]
    was = {name: then.get(name) for name in sorted(now) if now[name] != then.get(name)}
    if was or now.keys() != then.keys():
        raise CheckpointError(
            f"{found[-1]} is of a run with other settings ({was or then}); use them or another "
            "folder"
        )
    wanted, there = _described(_wanted(run, tensors)), _described(tensors)
    if wanted != there:
        names = sorted(n for n in {*wanted, *there} if wanted.get(n) != there.get(n))
        raise CheckpointError(
            f"{found[-1]} is of another network or device: {names[0]} is {there.get(names[0])}, "
            f"wanted {wanted.get(names[0])}; use the one that it was trained with"
        )
    _restore(run, tensors)
    run.step = about["step"]
    with contextlib.suppress(OSError):  # a run that was killed may have left one more
        _prune(folder)
    return True


def _step_of(path: Path) -> int | None:
    found = _NAME.fullmatch(path.name)
    return None if found is None else int(found[1])


def _text(about: Any) -> str:
    return json.dumps(about, indent=2) + "\n"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _described(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Shape and format of each tensor, as JSON has them."""
    return {
        name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
        for name, tensor in tensors.items()
    }


def _is_saved(path: Path, config: TrainConfig) -> bool:
    """Whether a checkpoint is there and whole; a run of the same settings had the same state."""
    if not path.exists():
        return False
    try:
        about, _ = _read(path)
    except CheckpointError:
        return False
    return about["config"] == json.loads(json.dumps(config.as_dict()))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A checkpoint's description and its tensors, which stay in the mapped file.

    Raises:
        CheckpointError: any of it is not as it was written.
    """
    try:
        text = (path / "state.json").read_text(encoding="utf-8")
        about: Any = json.loads(text)
        if isinstance(about, dict) and "format" not in about:
            raise _damaged(path, "it names no format, as those of an earlier version do not")
        if _text(about) != text or not isinstance(about["config"], dict):
            raise _damaged(path, "state.json is not as it was written")
        if about["format"] != FORMAT or about["step"] != _step_of(path):
            is_ = f"format {about['format']}, step {about['step']}"
            raise _damaged(path, f"it is of {is_}, and format {FORMAT} of its own step is wanted")
        if _digest(path / "state.safetensors") != about["sha256"]:
            raise _damaged(path, "state.safetensors is not as it was written")
        tensors = load_file(path / "state.safetensors")
        if _described(tensors) != about["tensors"]:
            raise _damaged(path, "its tensors are not those that state.json describes")
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise _damaged(path, f"it cannot be read ({reason(error)})") from error
    return about, tensors


def _damaged(path: Path, why: str) -> CheckpointError:
    others = [one.name for one in checkpoints(path.parent) if one != path]
    then = f"goes on from {others[-1]}" if others else "begins anew"
    return CheckpointError(f"{path} is damaged: {why}; remove it, and the run {then}")


def _tensors(run: Run) -> dict[str, Tensor]:
    found = {"dice": run.dice.get_state()}
    for name, weight in run.model.named_parameters():
        found[f"weight/{name}"] = weight.detach()
        found[f"average/{name}"] = run.average.weights[name]
        for part in _KEPT:
            if part in run.optimizer.state.get(weight, {}):
                found[f"{part}/{name}"] = run.optimizer.state[weight][part]
    return {name: tensor.contiguous().cpu() for name, tensor in found.items()}


def _wanted(run: Run, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the shapes and formats that a checkpoint of this run has."""
    wanted = {"dice": run.dice.get_state()}
    for name, weight in run.model.named_parameters():
        wanted |= {f"weight/{name}": weight, f"average/{name}": run.average.weights[name]}
        if any(f"{part}/{name}" in tensors for part in _KEPT):  # not without a gradient
            wanted |= {f"exp_avg/{name}": weight, f"exp_avg_sq/{name}": weight}
            wanted[f"step/{name}"] = torch.zeros(())
    return wanted


@torch.no_grad()
def _restore(run: Run, tensors: dict[str, Tensor]) -> None:
    run.dice.set_state(tensors["dice"])
    for name, weight in run.model.named_parameters():
        weight.copy_(tensors[f"weight/{name}"])
        run.average.weights[name].copy_(tensors[f"average/{name}"])
        if f"step/{name}" in tensors:
            # A fused optimizer counts its steps on the device, in a format of their own.
            run.optimizer.state[weight] = {
                part: tensors[f"{part}/{name}"].to(weight.device, copy=True) for part in _KEPT
            }
