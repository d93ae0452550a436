"""Small files that came with a checkpoint: read whole, once, whoever put them there.

Knows how such a file may hang or drown a reader: a pipe, a device, a hundred gigabytes of spaces,
ten thousand brackets. Does not know what any file means.
"""

import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from diffusiongemma.core.errors import CheckpointError
from diffusiongemma.core.letters import brief
from diffusiongemma.core.log import warn_once

SETTINGS = 1 << 24
"""Bytes of settings or of a template, at most; the largest that were met have 1.2 million."""
LISTS = 1 << 26
"""Bytes of a list of weights, at most; that of the released ones in eight bits has 4 million."""
TABLES = 1 << 28
"""Bytes of a vocabulary, at most; the released one has 33 million."""

_PER_PART = 64  # bytes; by that a vocabulary has 4.2 million parts, the released one 1.9
_FEW = 16
_DEEPEST = 100  # of brackets within brackets; settings have five
_NAMED = 10


def read_bytes(path: Path, most: int = SETTINGS) -> bytes | None:
    """What a regular file holds; None where there is no such file.

    Args:
        path: the file, or a link to it.
        most: bytes that it may have.

    Raises:
        CheckpointError: something else than a regular file is there, it is larger, or it cannot be
            read.
    """
    try:
        # Opening a pipe would wait for a writer, but for this flag; Windows has neither.
        door = os.open(
            path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        )
    except FileNotFoundError as error:
        if os.path.islink(path):
            raise CheckpointError(f"{path} is a link to nothing; fetch it again") from error
        return None
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    try:
        if not stat.S_ISREG(os.fstat(door).st_mode):
            raise CheckpointError(f"{path} is no regular file; remove it, or fetch it again")
        with os.fdopen(door, "rb", closefd=False) as file:
            content = file.read(most + 1)
    except CheckpointError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    finally:
        os.close(door)
    if len(content) > most:
        raise CheckpointError(f"{path} has over {most:,} bytes, too many for its kind; check it")
    return content


def read_text(path: Path, most: int = SETTINGS) -> str | None:
    """A text in UTF-8, its lines ended by a line feed; None where there is no such file.

    Raises:
        CheckpointError: as `read_bytes`, or it is no such text.
    """
    content = read_bytes(path, most)
    try:
        text = None if content is None else content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is no text in UTF-8 ({error}); fetch it again") from error
    return None if text is None else text.replace("\r\n", "\n").replace("\r", "\n")


def find_json(path: Path, most: int = SETTINGS) -> dict[str, Any] | None:
    """A JSON object; None where there is no such file.

    Raises:
        CheckpointError: as `read_bytes`, or it is no JSON object.
    """
    content = read_bytes(path, most)
    if content is None:
        return None
    check_parts(content, path, most)
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}; fetch it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path} holds a {type(value).__name__}, not an object; fetch it again"
        )
    if _deep(value):
        raise CheckpointError(f"{path} nests more than {_DEEPEST} deep; fetch it again")
    return value


def check_parts(content: bytes, path: Path, most: int = SETTINGS) -> None:
    """Refuse JSON of very many small values, which take fifty times their bytes once they are read.

    Args:
        content: of a file.
        path: where it lies, for messages.
        most: bytes that it may have; for each 64 of them it may have one comma or bracket.

    Raises:
        CheckpointError: there are more.
    """
    parts, taken = sum(map(content.count, (b",", b"[", b"{"))), max(most // _PER_PART, _FEW)
    if parts > taken:
        raise CheckpointError(
            f"{path} has {parts:,} commas and brackets, and at most {taken:,} are taken for a "
            "file of its kind; check it"
        )


def read_json(path: Path, most: int = SETTINGS) -> dict[str, Any]:
    """A JSON object from a file that must be there.

    Raises:
        CheckpointError: as `find_json`, or there is no such file.
    """
    value = find_json(path, most)
    if value is None:
        raise CheckpointError(f"{path.parent} has no {path.name}; is it a checkpoint?")
    return value


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """The sentence for a file that the system does not give."""
    reason = getattr(error, "strerror", None) or error
    return CheckpointError(f"{path} cannot be read: {reason}; check the file and its permissions")


def name_unknown(path: Path, keys: Iterable[str]) -> None:
    """Warn of a file's keys that nobody here knows, in one line, once a process."""
    named = listed(keys)
    if named:
        warn_once(
            f"{path} has keys that this version does not know: {named}; they change nothing here, "
            "and a saved copy keeps them"
        )


def listed(names: Iterable[str]) -> str:
    """Names from a stranger's file in one line: not too many, and none that steers a terminal."""
    shown = [name if name.isprintable() and len(name) <= 100 else brief(name) for name in names]
    more = f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
    return ", ".join(shown[:_NAMED]) + more


def _deep(value: Any) -> bool:
    level: list[Any] = [value]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Iterator[Any]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (part for part in parts if isinstance(part, dict | list))
