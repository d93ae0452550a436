"""A checkpoint's folder: where people say it is to be, and what lies in one beside the weights.

Knows which files belong to every copy: words, settings, templates, licence, card. Does not know
what is inside them. What is opened keeps them in memory, so that a copy has them whatever has
become of the folder since.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusiongemma.checkpoint.hub import looks_like_hub_id
from diffusiongemma.core.errors import CheckpointError
from diffusiongemma.core.log import warn_once
from diffusiongemma.core.reading import listed, read_bytes, unreadable

CARD = "README.md"
CONFIG, GENERATION = "config.json", "generation_config.json"

_WORDS = (".json", ".jinja", ".txt", ".model")
_LEGAL = ("LICENSE", "NOTICE")
_TEMPLATES = "additional_chat_templates"
_MOST = 1 << 28  # bytes that are kept in memory; the released files have 34 million


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a checkpoint's files say that the network does not decide, and a copy must say too.

    Attributes:
        config: keys of `config.json`, as nested objects.
        generation: the parsed `generation_config.json`.
        files: other files, name to content.
        origin: the hub id that it was fetched by.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    origin: str | None = None


def destination(folder: str | os.PathLike[str]) -> Path:
    """The folder that is meant, `~` being somebody's home.

    Raises:
        CheckpointError: no folder can have that name.
    """
    name = os.fspath(folder)
    if "\0" in name:
        raise CheckpointError(f"{name!r} cannot be a folder: it holds a zero byte; name another")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise CheckpointError(f"'{name}' names the home of an unknown user; check it") from error


def origin(model: str | os.PathLike[str], folder: Path) -> str | None:
    """The hub id that a folder was fetched by; None if the folder itself was named."""
    if not isinstance(model, str) or not looks_like_hub_id(model):
        return None
    return None if destination(model) == folder else model


def beside(folder: Path) -> list[str]:
    """Files that belong to every copy, but for the two configs, as paths within the folder."""
    found = []
    for file in sorted([*folder.iterdir(), *(folder / _TEMPLATES).glob("*.jinja")]):
        name = file.name
        kept = file.suffix in _WORDS or name.upper().startswith(_LEGAL) or name == CARD
        apart = name in (CONFIG, GENERATION) or name.endswith(".index.json")
        if kept and not apart and file.is_file():
            found.append(file.relative_to(folder).as_posix())
    return found


def keep(folder: Path) -> dict[str, bytes]:
    """The content of the files that belong to every copy, the smallest first.

    Those that cannot be read or are too large for memory are named in a warning.

    Raises:
        CheckpointError: the folder cannot be listed.
    """
    kept: dict[str, bytes] = {}
    lost, room = [], _MOST
    try:
        names = sorted(beside(folder), key=lambda name: (folder / name).stat().st_size)
    except FileNotFoundError:  # a network that was made here, and never had a folder
        return {}
    except OSError as error:
        raise unreadable(folder, error) from error
    for name in names:
        try:
            content = read_bytes(folder / name, room)
        except CheckpointError:
            lost.append(name)
            continue
        if content is not None:
            kept[name] = content
            room -= len(content)
    if lost:
        warn_once(
            f"{folder} has files that cannot be read or are too large to keep: {listed(lost)}; "
            "a saved copy lacks them"
        )
    return dict(sorted(kept.items()))
