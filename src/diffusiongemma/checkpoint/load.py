"""A checkpoint folder -> a network with its weights in place.

Weights are mapped from safetensors and go straight to where they live: there is never a second
copy of the model in host memory, and at most one shard is open at a time. Where nothing in a shard
has to change (CPU, same dtype) its weights stay the mapped file, which must then not be written
to; replacing it is fine. Loading is strict: every tensor that is missing, unexpected, or of another
shape or format is named, all in one error, before any weight is read. Pickles are never opened.
"""

import json
import re
from collections.abc import Iterable, Iterator
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
# Formats that a weight may be stored in, as safetensors spells them.
_FORMATS = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_ROWS = 8192  # of an embedding table, compared at a time
_LAYER = re.compile(r"(?<=\.layers\.)(0|[1-9][0-9]{0,5})(?=\.)")
_LAYERS = re.compile(r"(?<=\.layers\.)#(?=\.)")

Header = dict[str, tuple[tuple[int, ...], str]]
"""Shape and format of every tensor in a shard, by name."""


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
        raise CheckpointError(_unreadable(path, error)) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}; fetch it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path} holds a {type(value).__name__}, not an object; fetch it again"
        )
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
        device: where the weights go; on `meta` everything is checked and nothing is read.
        dtype: the format they are wanted in; they are converted one by one on the way.
        progress: show a bar on standard error.

    Raises:
        CheckpointError: files are missing or damaged, or tensors do not fit the architecture.
    """
    with torch.device("meta"):
        model = DiffusionGemma(config)
    slots = _slots(model)
    headers = {shard: _header(shard) for shard in find_shards(folder)}
    _check(headers, slots, folder)
    with tqdm(
        total=len(slots), unit="tensor", desc="loading", disable=not progress, leave=False
    ) as bar:
        for shard, header in headers.items():
            ours = [there for there in header if there not in names.TIED]
            # One mapped weight keeps all pages of its shard in memory, read or not.
            stays = device.type == "cpu" and all(_FORMATS[header[t][1]] is dtype for t in ours)
            with open_shard(shard) as file:
                for there in ours:
                    weight = file.get_tensor(there).to(device, dtype, copy=not stays)
                    slots[names.to_here(there) or ""].fill(weight)
                    del weight
                    bar.update()
    if device.type != "meta":
        _check_copies(headers, slots)
    return model.eval().requires_grad_(False)


def find_shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder; as transformers does it, an index counts only if there is
    no single file.

    Raises:
        CheckpointError: no weights, an index that is no index, or shards missing.
    """
    try:
        if (folder / SINGLE).is_file():
            return [folder / SINGLE]
        if (folder / INDEX).exists():
            return _listed(folder)
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(_unreadable(folder, error)) from error
    hint = f" ({pickles[0]} is a pickle, which is never opened)" if pickles else ""
    raise CheckpointError(
        f"{folder} has neither {SINGLE} nor {INDEX}{hint}; fetch the safetensors files"
    )


def _index(folder: Path) -> dict[str, str]:
    """Which file each tensor is in."""
    path = folder / INDEX
    table = read_json(path).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
        raise CheckpointError(
            f"{path} has no weight_map from tensor names to files; fetch it again"
        )
    # An index must not lead out of its folder, or to a pickle.
    for name in sorted(set(table.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{path} names {name!r}, which is no safetensors file of this folder; fetch it "
                "again"
            )
    return table


def _listed(folder: Path) -> list[Path]:
    wanted = sorted(set(_index(folder).values()))
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(wanted)} shards: {', '.join(missing)}; "
            "fetch them again"
        )
    return [folder / name for name in wanted]


@contextmanager
def open_shard(path: Path) -> Iterator[Any]:
    """A mapped safetensors file.

    Raises:
        CheckpointError: the file is cut off or damaged, or may not be read.
    """
    try:
        opened = safe_open(str(path), framework="pt", device="cpu")
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is truncated or damaged ({error}); fetch it again"
        ) from error
    except OSError as error:
        raise CheckpointError(_unreadable(path, error)) from error
    with opened as file:
        yield file


def _header(path: Path) -> Header:
    with open_shard(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        return {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path} cannot be read: {error.strerror or error}; check the file and its permissions"


def _check(headers: dict[Path, Header], slots: "dict[str, _Slot]", folder: Path) -> None:
    """Compare what is stored with what is expected, and raise one error for all that differs."""
    missing = {names.to_there(here): "" for here in slots}
    unexpected, shapes, formats, twice = [], [], [], []
    seen: set[str] = set()
    for shard, header in headers.items():
        for there, (shape, stored) in header.items():
            slot = slots.get(names.to_here(names.TIED.get(there, there)) or "")
            if there in seen:
                twice.append(there)
            elif slot is None:
                unexpected.append(there)
            elif shape != tuple(slot.shape):
                shapes.append(f"{there} of {shape} in {shard.name}, expected {tuple(slot.shape)}")
            elif stored not in _FORMATS:
                formats.append(f"{there} as {stored} in {shard.name}")
            seen.add(there)
            missing.pop(there, None)
    if missing and SINGLE not in {shard.name for shard in headers}:
        table = _index(folder)
        missing = {t: f", not in {table[t]} as listed" if t in table else "" for t in missing}
    kinds = {
        "missing": [there + where for there, where in missing.items()],
        "unexpected": unexpected,
        "of another shape": shapes,
        f"in a format other than {', '.join(_FORMATS)}": formats,
        "stored twice": twice,
    }
    said = [f"{len(what)} {kind}: {_group(what)}" for kind, what in kinds.items() if what]
    if said:
        raise CheckpointError(
            f"the weights in {folder} do not fit its config.json: {'; '.join(said)}. "
            "Check that both come from the same unquantised checkpoint"
        )


def _check_copies(headers: dict[Path, Header], slots: "dict[str, _Slot]") -> None:
    """Tied weights may be stored as copies; one that differs belongs to another architecture."""
    for shard, header in headers.items():
        for there in header.keys() & names.TIED.keys():
            original = names.TIED[there]
            table = slots[names.to_here(original) or ""].value
            with open_shard(shard) as file:
                copy = file.get_slice(there)
                for start in range(0, len(table), _ROWS):
                    rows = table[start : start + _ROWS]
                    if not torch.equal(copy[start : start + _ROWS].to(rows), rows):
                        raise CheckpointError(
                            f"{there} in {shard} differs from {original}, but this network has one "
                            "table for both; remove it from the file or open another checkpoint"
                        )


class _Slot:
    """A parameter or buffer of the network, at first without memory."""

    def __init__(self, owner: nn.Module, name: str, empty: Tensor) -> None:
        self.owner, self.name, self.shape = owner, name, empty.shape
        self.is_parameter = isinstance(empty, nn.Parameter)

    @property
    def value(self) -> Tensor:
        return getattr(self.owner, self.name)

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


def _group(items: Iterable[str]) -> str:
    """All items, those that differ only in the number of a layer as one: `layers.{0-2,5}.x`."""
    numbers: dict[str, list[int]] = {}
    for name in items:
        item = name if name.isprintable() else repr(name)
        found = _LAYER.search(item)
        numbers.setdefault(_LAYER.sub("#", item, count=1), []).extend(
            [int(found[0])] if found else []
        )
    return ", ".join(_LAYERS.sub(_runs(many), pattern, 1) for pattern, many in numbers.items())


def _runs(numbers: list[int]) -> str:
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return text if len(numbers) == 1 else f"{{{text}}}"
