"""A checkpoint folder -> a network with its weights in place.

Weights are mapped from safetensors and go straight to where they live: there is never a second
copy of the model in host memory, and at most one shard is open at a time. Where nothing in a shard
has to change (CPU, same dtype) its weights stay the mapped file, which must then not be written
to; replacing it is fine. Loading is strict: every tensor that is missing, unexpected, or of another
shape or format is named, all in one error, before any weight is read. Pickles are never opened.
Layers that are stored in e4m3 become quantised layers (see `fp8`), if config.json speaks of them.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from diffusiongemma.checkpoint import fp8, names, stand_in
from diffusiongemma.checkpoint.slots import Slot, slots
from diffusiongemma.core.errors import CheckpointError
from diffusiongemma.core.reading import LISTS, check_parts, read_json, unreadable
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.model import DiffusionGemma

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_TOGETHER = 1 << 19  # numbers of two copies that are compared at a time
_LAYER = re.compile(r"(?<=\.layers\.)(0|[1-9][0-9]{0,5})(?=\.)")
_LAYERS = re.compile(r"(?<=\.layers\.)#(?=\.)")

Header = dict[str, tuple[tuple[int, ...], str]]
"""Shape and format of every tensor in a shard, by name."""


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
    headers = {shard: header_of(shard) for shard in find_shards(folder)}
    stored = {name: kind for header in headers.values() for name, (_, kind) in header.items()}
    if config.fp8 and not fp8.adapt(model, stored):
        raise CheckpointError(
            f"config.json in {folder} speaks of weights in e4m3, but none is stored so; remove its "
            "quantization_config, or fetch the weights that belong to it"
        )
    places = slots(model, stored)
    spare = stand_in.shapes(config.hidden_size) if config.vision is None else {}
    _check(headers, places, spare, folder, config.fp8)
    with tqdm(
        total=len(places), unit="tensor", desc="loading", disable=not progress, leave=False
    ) as bar:
        for shard, header in headers.items():
            own = [t for t in header if names.original(t) is None and t not in spare]
            ours = {t: _place(t, places) for t in own}
            # One mapped weight keeps all pages of its shard in memory, read or not.
            stays = device.type == "cpu" and all(
                slot.stays(header[there][1], dtype) for there, slot in ours.items()
            )
            with open_shard(shard) as file:
                for there, slot in ours.items():
                    copy = not stays and not slot.copies
                    value = file.get_tensor(there).to(device, slot.dtype or dtype, copy=copy)
                    if slot.dtype is not None and device.type != "meta":
                        fp8.check(there, value)
                    slot.fill(value)
                    del value
                    bar.update()
    if device.type != "meta":
        check_copies(headers)
    return model.eval().requires_grad_(False)


def holds(folder: Path, model: DiffusionGemma) -> bool:
    """Whether a network has the weights that a folder holds, in whatever format.

    All of them are read, one tensor at a time.
    """
    try:
        headers = {shard: header_of(shard) for shard in find_shards(folder)}
        stored = [name for header in headers.values() for name in header]
        places = slots(model, stored)
        for shard, header in headers.items():
            with open_shard(shard) as file:
                for there in header:
                    slot = places.pop(names.to_here(there) or "", None)
                    if slot is not None and not slot.holds(file.get_tensor(there)):
                        return False
    except (CheckpointError, SafetensorError):  # it is gone, or was changed
        return False
    return not places


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
        raise unreadable(folder, error) from error
    hint = f" ({pickles[0]} is a pickle, which is never opened)" if pickles else ""
    raise CheckpointError(
        f"{folder} has neither {SINGLE} nor {INDEX}{hint}; fetch the safetensors files"
    )


def _index(folder: Path) -> dict[str, str]:
    """Which file each tensor is in."""
    path = folder / INDEX
    table = read_json(path, LISTS).get("weight_map")
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
        raise unreadable(path, error) from error
    with opened as file:
        yield file


def header_of(path: Path) -> Header:
    """Shape and format of every tensor of a shard; no weight is read.

    Raises:
        CheckpointError: the file is cut off or damaged, lists too many tensors, or may not be read.
    """
    _check_length(path)
    with open_shard(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        return {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}


def _check_length(path: Path) -> None:
    """Refuse a shard that lists more tensors than can be looked at."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            head = file.read(min(size, LISTS))
    except OSError as error:
        raise unreadable(path, error) from error
    if size > LISTS:
        raise CheckpointError(
            f"{path} is truncated or damaged (its list of tensors has {size:,} bytes, and at most "
            f"{LISTS:,} are taken); fetch it again"
        )
    check_parts(head, path, LISTS)


def _place(there: str, places: Mapping[str, Slot]) -> Slot:
    """Where a tensor that was checked belongs."""
    return places[names.to_here(there) or ""]


def _check(
    headers: dict[Path, Header],
    places: Mapping[str, Slot],
    spare: Mapping[str, tuple[int, ...]],
    folder: Path,
    quantised: bool,
) -> None:
    """Compare what is stored with what is expected, and raise one error for all that differs.

    Tensors of `spare` may be there, in their shapes, and are not read.
    """
    missing = {names.to_there(here): "" for here in places}
    unexpected, shapes, twice = [], [], []
    formats: dict[str, list[str]] = {}
    seen: set[str] = set()
    for shard, header in headers.items():
        for there, (shape, stored) in header.items():
            original = names.original(there)
            here = names.to_here(original or there) or ""
            slot = places.get(here)
            # A scale of experts may have several names.
            name = names.to_there(here) if slot is not None and original is None else there
            if name in seen:
                twice.append(there)
            elif there in spare and shape == spare[there]:
                pass
            elif slot is None:
                unexpected.append(there)
            elif shape != slot.shape:
                shapes.append(f"{there} of {shape} in {shard.name}, expected {slot.shape}")
            elif stored not in slot.formats:
                kind = f"in a format other than {', '.join(slot.formats)}"
                formats.setdefault(kind, []).append(f"{there} as {stored} in {shard.name}")
            seen.add(name)
            missing.pop(name, None)
    if missing and SINGLE not in {shard.name for shard in headers}:
        table = _index(folder)
        missing = {t: f", not in {table[t]} as listed" if t in table else "" for t in missing}
    kinds = {
        "missing": [there + where for there, where in missing.items()],
        "unexpected": unexpected,
        "of another shape": shapes,
        **formats,
        "stored twice": twice,
    }
    said = [f"{len(what)} {kind}: {_group(what)}" for kind, what in kinds.items() if what]
    if said:
        same = "FP8-dynamic" if quantised else "unquantised"
        raise CheckpointError(
            f"the weights in {folder} do not fit its config.json: {'; '.join(said)}. "
            f"Check that both come from the same {same} checkpoint"
        )


def check_copies(headers: dict[Path, Header]) -> None:
    """Tied weights may be stored as copies; one that differs belongs to another architecture.

    Raises:
        CheckpointError: one differs.
    """
    where = {there: shard for shard, header in headers.items() for there in header}
    copies = {there: original for there in where if (original := names.original(there)) is not None}
    for there, original in copies.items():
        with open_shard(where[there]) as file, open_shard(where[original]) as other:
            copy, table = file.get_slice(there), other.get_slice(original)
            shape, _ = headers[where[there]][there]
            rows = max(1, _TOGETHER // math.prod(shape[1:]))
            for start in range(0, shape[0], rows):
                part = slice(start, start + rows)
                if not torch.equal(copy[part].double(), table[part].double()):
                    raise CheckpointError(
                        f"{there} in {where[there]} differs from {original}, but this network has "
                        "one table for both; remove it from the file or open another checkpoint"
                    )


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
