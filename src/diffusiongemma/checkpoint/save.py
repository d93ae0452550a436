"""A network -> a checkpoint folder that transformers opens.

The folder appears whole or not at all; how, `core.atomic` knows.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from diffusiongemma.checkpoint import fp8, stand_in
from diffusiongemma.checkpoint.config import to_hf
from diffusiongemma.checkpoint.folder import destination
from diffusiongemma.checkpoint.load import INDEX, SINGLE
from diffusiongemma.core.atomic import replacing
from diffusiongemma.core.errors import CheckpointError
from diffusiongemma.model.model import DiffusionGemma


def save_model(
    model: DiffusionGemma,
    folder: str | os.PathLike[str],
    *,
    extra: dict[str, Any] | None = None,
    keys: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    shard_bytes: int = 4_900_000_000,
    overwrite: bool = False,
) -> Path:
    """Write config.json and the weights, in as many shards as needed.

    A network without vision tower gets what stands in for one, see `stand_in`.

    Args:
        model: the network.
        folder: where to; it must not exist, or be empty, unless `overwrite`.
        extra: further JSON files, name to content, such as `generation_config.json`.
        keys: keys for config.json that the network does not decide, such as special ids.
        files: further files, name to content, such as the tokenizer.
        shard_bytes: the most that one file may hold; a single larger tensor gets a file of its own.
        overwrite: replace a checkpoint that is there, with all that its folder holds. It may be
            the one that the network was loaded from.

    Returns:
        the folder.

    Raises:
        CheckpointError: the folder is in the way, or cannot be written.
        ConfigError: no config.json can describe the network.
    """
    dtype = str(model.dtype).removeprefix("torch.")
    config = merged(to_hf(dataclasses.replace(model.config, dtype=dtype)), keys or {})
    with whole_folder(folder, overwrite=overwrite) as scratch:
        for name, content in (files or {}).items():
            (scratch / name).parent.mkdir(exist_ok=True)
            (scratch / name).write_bytes(content)
        for name, content in (extra or {}).items():
            write_json(scratch / name, content)
        write_json(scratch / "config.json", config)
        _write_weights(model, scratch, shard_bytes)
    return destination(folder)


@contextmanager
def whole_folder(folder: str | os.PathLike[str], *, overwrite: bool) -> Iterator[Path]:
    """A hidden folder to write to, which takes the place of `folder` if all went well.

    Raises:
        CheckpointError: the folder is in the way, or cannot be written.
    """
    target = _free(folder, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as scratch:
            scratch.mkdir()
            yield scratch
    except CheckpointError:
        raise
    except (OSError, SafetensorError) as error:
        raise unwritable(target, error) from error


def _free(folder: str | os.PathLike[str], overwrite: bool) -> Path:
    """The folder to write, behind all links, if nothing is in the way."""
    try:
        target = Path(os.path.realpath(destination(folder)))
        if not target.exists():
            return target
        here = Path.cwd()
        if target == here or target in here.parents:
            raise CheckpointError(f"{target} is the working folder; name a folder inside it")
        if target.is_dir() and not any(target.iterdir()):
            return target
        if not overwrite:
            raise CheckpointError(f"{target} exists; choose another folder or pass overwrite=True")
        if not (target / "config.json").is_file():
            raise CheckpointError(
                f"{target} has no config.json, so it is no checkpoint that may be replaced; choose "
                "another folder"
            )
    except CheckpointError:
        raise
    except OSError as error:
        raise unwritable(folder, error) from error
    return target


def unwritable(folder: str | os.PathLike[str], error: Exception) -> CheckpointError:
    """The sentence for what the system, or safetensors, said when a folder was written."""
    reason = getattr(error, "strerror", None) or error
    return CheckpointError(
        f"{os.fspath(folder)} cannot be written: {reason}; check the disk and its permissions"
    )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """A JSON object, as people can read it."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can spell
        text = json.dumps(content, indent=2)
    path.write_text(text + "\n", encoding="utf-8")


def _write_weights(model: DiffusionGemma, folder: Path, shard_bytes: int) -> None:
    tensors = dict(fp8.stored(model))
    if model.config.vision is None:
        tensors |= stand_in.tensors(model.config.hidden_size, model.dtype)
    shards = list(_shards(tensors, shard_bytes))
    table, total = {}, 0
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else SINGLE
        # One shard at a time leaves the device, and views of a mapped file become whole tensors.
        ready = {key: value.detach().cpu().contiguous() for key, value in shard.items()}
        save_file(ready, folder / name, metadata={"format": "pt"})
        (folder / name).chmod(folder.stat().st_mode & 0o666)  # safetensors makes it private
        table |= dict.fromkeys(shard, name)
        total += sum(value.nbytes for value in shard.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": table}
        write_json(folder / INDEX, index)


def _shards(tensors: dict[str, Tensor], limit: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def merged(config: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with more keys, sections within sections; its own values stand."""
    made = {**config, **{name: value for name, value in keys.items() if name not in config}}
    for name, value in keys.items():
        if isinstance(value, Mapping) and isinstance(config.get(name), Mapping):
            made[name] = merged(config[name], value)
    return made
