"""A checkpoint folder -> a network with its weights in place.

Weights are mapped from safetensors and go straight to where they live: there is never a second
copy of the model in host memory, and at most one shard is open at a time. Where nothing has to
change (CPU, same dtype) a weight stays the mapped file. Loading is strict: every tensor that is
missing, unexpected or of another shape is named, all in one error. Pickles are never opened.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from diffusiongemma.checkpoint import names
from diffusiongemma.core.errors import CheckpointError
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.model import DiffusionGemma

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SHOWN = 8  # names listed for each kind of mismatch; the count is always given


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: no file, no JSON, or no object in it.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} has no {path.name}; is it a checkpoint?") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}; fetch it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def load_model(
    folder: Path,
    config: ModelConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    progress: bool = False,
) -> DiffusionGemma:
    """Build the network and put the folder's weights in place.

    Args:
        folder: a Hugging Face folder, one file or shards with an index.
        config: the architecture, from its `config.json`.
        device: where the weights go.
        dtype: the format they are wanted in; they are converted one by one on the way.
        progress: show a bar on standard error.

    Raises:
        CheckpointError: files are missing or damaged, or tensors do not fit the architecture.
    """
    with torch.device("meta"):
        model = DiffusionGemma(config)
    slots = _slots(model)
    shards = find_shards(folder)
    problems = _Problems(set(slots))
    bar = tqdm(total=len(slots), unit="tensor", desc="loading", disable=not progress, leave=False)
    with bar:
        for shard in shards:
            with open_shard(shard) as file:
                for there in file.keys():
                    if problems.fits(there, file.get_slice(there).get_shape(), slots, shard):
                        here = names.to_here(there) or ""
                        _place(slots[here], _read(file, there, shard), device, dtype)
                        bar.update()
    problems.raise_if_any(folder)
    return model.eval().requires_grad_(False)


def find_shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder, from the index if there is one.

    Raises:
        CheckpointError: no weights, an index that is no index, or shards missing.
    """
    if (folder / INDEX).exists():
        table = read_json(folder / INDEX).get("weight_map")
        if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
            raise CheckpointError(f"{folder / INDEX} has no weight_map from tensor names to files")
        wanted = sorted(set(table.values()))
        # An index must not lead out of its folder.
        wild = [name for name in wanted if Path(name).name != name]
        if wild:
            raise CheckpointError(
                f"{folder / INDEX} names {wild[0]!r}, which is no plain file name"
            )
        missing = [name for name in wanted if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {len(missing)} of {len(wanted)} shards: {_some(missing)}; "
                "fetch them again"
            )
        return [folder / name for name in wanted]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    pickles = sorted(p.name for p in folder.glob("*.bin")) + [p.name for p in folder.glob("*.pt*")]
    hint = f" ({pickles[0]} is a pickle, which is never opened)" if pickles else ""
    raise CheckpointError(f"{folder} has neither {SINGLE} nor {INDEX}{hint}")


@contextmanager
def open_shard(path: Path) -> Iterator[Any]:
    """A mapped safetensors file.

    Raises:
        CheckpointError: the file is cut off or damaged.
    """
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, FileNotFoundError) as error:
        raise CheckpointError(
            f"{path.name} is truncated or damaged ({error}); fetch it again"
        ) from error


class _Problems:
    """What does not fit, collected over all shards."""

    def __init__(self, expected: set[str]) -> None:
        self.waiting = expected
        self.unexpected: list[str] = []
        self.misshaped: list[str] = []
        self.twice: list[str] = []

    def fits(self, there: str, shape: list[int], slots: "dict[str, _Slot]", shard: Path) -> bool:
        """Whether a stored tensor has a place; notes it if not."""
        here = names.to_here(there)
        if there in names.TIED:
            return False
        if here is None or here not in slots:
            self.unexpected.append(there)
        elif here not in self.waiting:
            self.twice.append(there)
        elif tuple(shape) != tuple(slots[here].shape):
            self.waiting.discard(here)
            self.misshaped.append(
                f"{there} of {tuple(shape)} in {shard.name}, expected {tuple(slots[here].shape)}"
            )
        else:
            self.waiting.discard(here)
            return True
        return False

    def raise_if_any(self, folder: Path) -> None:
        missing = sorted(names.to_there(here) for here in self.waiting)
        kinds = (
            ("missing", missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.misshaped),
            ("stored twice", self.twice),
        )
        said = [f"{len(what)} {kind}: {_some(what)}" for kind, what in kinds if what]
        if said:
            raise CheckpointError(
                f"the weights in {folder} do not fit its config.json: {'; '.join(said)}; "
                "check that both come from the same checkpoint"
            )


class _Slot:
    """A parameter or buffer of the network, still without memory."""

    def __init__(self, owner: nn.Module, name: str, empty: Tensor) -> None:
        self.owner, self.name, self.shape = owner, name, empty.shape
        self.is_parameter = isinstance(empty, nn.Parameter)

    def fill(self, value: Tensor) -> None:
        if self.is_parameter:
            value = nn.Parameter(value, requires_grad=False)
        setattr(self.owner, self.name, value)


def _slots(model: nn.Module) -> dict[str, _Slot]:
    slots = {}
    for path, module in model.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            slots[f"{path}.{name}" if path else name] = _Slot(module, name, tensor)
    return slots


def _read(file: Any, name: str, shard: Path) -> Tensor:
    tensor = file.get_tensor(name)
    if not tensor.dtype.is_floating_point:
        raise CheckpointError(
            f"{name} in {shard.name} is stored as {tensor.dtype}, which is no format this version "
            "can open; use a bfloat16, float16 or float32 checkpoint"
        )
    return tensor


def _place(slot: _Slot, tensor: Tensor, device: torch.device, dtype: torch.dtype) -> None:
    slot.fill(tensor.to(device=device, dtype=dtype))


def _some(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
