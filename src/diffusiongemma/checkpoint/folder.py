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
BEFORE = "README.source.md"
"""The card of what a copy was made from, if the copy has other weights."""
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
    return [name for name in _named(folder) if name != GENERATION and is_own(folder, name)]


def is_own(folder: Path, name: str) -> bool:
    """Whether a file is a folder's own: whoever made the folder can have a link lead to a file of
    somebody else's, which no copy may hold. Those of a hub's cache lead to the model's blobs there.
    """
    here = Path(os.path.realpath(folder))
    places = [here]
    storage = here.parent.parent
    if here.parent.name == "snapshots" and storage.name.startswith("models--"):
        places.append(storage / "blobs")
    file = Path(os.path.realpath(here / name))
    return file.is_file() and any(file.is_relative_to(place) for place in places)


def tell_strays(folder: Path) -> None:
    """Warn of the files that a copy lacks because they are somebody else's, see `is_own`."""
    try:
        strays = [name for name in _named(folder) if not is_own(folder, name)]
    except OSError:  # it is gone, or shut; what was kept of it is whole
        return
    if strays:
        warn_once(
            f"{folder} has links that lead out of it: {listed(strays)}; a copy lacks them, so put "
            "the files themselves there"
        )


def _named(folder: Path) -> list[str]:
    """Files that would belong to every copy by their names."""
    found = []
    for file in sorted([*folder.iterdir(), *(folder / _TEMPLATES).glob("*.jinja")]):
        name = file.name
        kept = file.suffix in _WORDS or name.upper().startswith(_LEGAL) or name in (CARD, BEFORE)
        apart = name == CONFIG or name.endswith(".index.json")
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
