"""A plain checkpoint folder -> the same in FP8-dynamic, tensor by tensor.

No network is built and no model is in memory: a shard is mapped, its tensors are quantised one
after the other, and each is written at once. What a shard is quantised to is the shard of the same
name. The folder appears whole or not at all.
"""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffusiongemma.checkpoint import fp8, names
from diffusiongemma.checkpoint.config import read_config
from diffusiongemma.checkpoint.folder import (
    BEFORE,
    CARD,
    GENERATION,
    beside,
    destination,
    is_own,
    tell_strays,
)
from diffusiongemma.checkpoint.load import (
    INDEX,
    Header,
    check_copies,
    find_shards,
    header_of,
    load_model,
    open_shard,
)
from diffusiongemma.checkpoint.save import whole_folder, write_json
from diffusiongemma.checkpoint.shard import Layout, ShardWriter, size_of
from diffusiongemma.core.errors import CheckpointError
from diffusiongemma.core.reading import read_json
from diffusiongemma.kernels.quantised import quantise_weight
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.quant.apply import weights

_TOGETHER = 1 << 22  # numbers that are quantised at a time
_SPARE = 10_000_000  # bytes for what is no weight


def quantise_folder(
    source: Path,
    folder: Path,
    *,
    card: Callable[[Path], bytes] | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Write a checkpoint's FP8-dynamic twin, as compressed-tensors would.

    Args:
        source: a plain checkpoint's folder.
        folder: where to; it must not exist, or be empty, unless `overwrite`.
        card: makes the card, of the folder with all else in it.
        overwrite: replace a checkpoint that is there, with all that its folder holds.
        progress: show a bar on standard error.

    Raises:
        CheckpointError: the source does not open, is quantised or holds what is no number, the
            folder is in the way or cannot be written, or the disk is too small.
        ConfigError: the source asks for something that this code cannot honour.
    """
    raw = read_json(source / "config.json")
    if raw.get("quantization_config") is not None:
        raise CheckpointError(
            f"{source} is quantised already; quantise the checkpoint that it was made from"
        )
    config = read_config(source).config
    with torch.device("meta"):
        wanted = set(weights(DiffusionGemma(config)))
    meta = torch.device("meta")
    load_model(source, config, device=meta, dtype=torch.float32)  # everything fits, or it says
    headers = {shard: header_of(shard) for shard in find_shards(source)}
    check_copies(headers)
    layouts = {shard.name: _layout(header, wanted) for shard, header in headers.items()}
    _check_space(folder, sum(map(size_of, layouts.values())))
    with whole_folder(folder, overwrite=overwrite) as scratch:
        _copy_beside(source, scratch)
        write_json(scratch / "config.json", raw | {"quantization_config": fp8.scheme()})
        count = sum(map(len, headers.values()))
        with tqdm(
            total=count, unit="tensor", desc="quantising", disable=not progress, leave=False
        ) as bar:
            for shard, header in headers.items():
                layout = layouts[shard.name]
                with open_shard(shard) as file, ShardWriter(scratch / shard.name, layout) as out:
                    for there in header:
                        _convert(there, file, out, wanted, shard)
                        bar.update()
        if (source / INDEX).is_file() and len(headers) > 1:
            write_json(scratch / INDEX, _index(layouts))
        if card is not None:
            (scratch / CARD).write_bytes(card(scratch))
    return destination(folder)


def _copy_beside(source: Path, scratch: Path) -> None:
    """What is no weight. The source's card speaks of other weights, and gets another name."""
    tell_strays(source)
    for name in (*beside(source), GENERATION):
        if is_own(source, name):
            made = scratch / (BEFORE if name == CARD else name)
            made.parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, made)


def _layout(header: Header, wanted: set[str]) -> dict[str, tuple[tuple[int, ...], str]]:
    """What the quantised shard will hold."""
    layout: dict[str, tuple[tuple[int, ...], str]] = {}
    for there, (shape, kind) in header.items():
        here = _wanted(names.original(there) or there, wanted)
        if here is None:
            layout[there] = (shape, kind)
        elif names.original(there) is None:
            nothing = torch.empty(shape, device="meta")
            scale = "BF16" if kind == "BF16" else "F32"
            for name, piece in fp8.pieces(here, nothing, nothing[..., 0]):
                is_scale = name.endswith("scale")
                layout[name] = (tuple(piece.shape), scale if is_scale else fp8.STORED)
    return layout


def _wanted(there: str, wanted: set[str]) -> str | None:
    """Our name of a tensor that is to be quantised; None for others."""
    here = names.to_here(there) or ""
    if here in wanted:
        return here
    # Experts that are stored one by one are parts of those that are wanted.
    path, _, part = here.rpartition(".")
    whole = f"{path.rpartition('.')[0]}.{'down' if part == 'down' else 'gate_up'}"
    return here if part in ("gate", "up", "down") and whole in wanted else None


def _convert(there: str, file: Any, out: ShardWriter, wanted: set[str], source: Path) -> None:
    here = _wanted(names.original(there) or there, wanted)
    if here is None:
        out.put(there, file.get_tensor(there))
    elif names.original(there) is None:
        for name, piece in _quantised(here, file.get_tensor(there)):
            # A scale is its channel's largest number over another, so it tells of all of them.
            if name.endswith("scale") and not bool(piece.isfinite().all()):
                raise CheckpointError(
                    f"{there} in {source} holds numbers that are not finite; fetch it again"
                )
            out.put(name, piece)


def _quantised(here: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The pieces of a weight; several experts are quantised one after the other."""
    if weight.ndim == 2:
        rows = max(1, _TOGETHER // weight.shape[1])
        parts = [quantise_weight(part) for part in weight.split(rows)]
        yield from fp8.pieces(here, *(torch.cat(both) for both in zip(*parts, strict=True)))
        return
    path, _, name = here.rpartition(".")
    parts = ("gate", "up") if name == "gate_up" else (name,)
    for number, expert in enumerate(weight):
        for part, own in zip(parts, expert.chunk(len(parts)), strict=True):
            yield from _quantised(f"{path}.{number}.{part}", own)


def _index(layouts: Mapping[str, Layout]) -> dict[str, Any]:
    table = {name: shard for shard, layout in layouts.items() for name in layout}
    total = sum(map(size_of, layouts.values()))
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(table.items()))}


def _check_space(folder: Path, needed: int) -> None:
    place = destination(folder).resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed + _SPARE:
        raise CheckpointError(
            f"{folder} would need {math.ceil((needed + _SPARE) / 1e6):,} MB, and its disk has "
            f"{free // 1_000_000:,} MB free; name a folder on another disk"
        )
