"""Conversations on disk: what /save writes, what --continue reads, and where the last one lies.

A file is JSON: a list of messages as `Gemma.generate` and other programs take them, the system
message first. Only its owner can read it. Knows nothing of models.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusiongemma.core.errors import InputError
from diffusiongemma.core.files import check_writable, write_whole
from diffusiongemma.dialog.messages import flatten

LARGEST = 1 << 26  # bytes of a conversation that is read
LAST = "diffusiongemma/chat.json"  # below the folder of state

Messages = Sequence[Mapping[str, Any]]


def last() -> Path:
    """Where the last conversation is kept.

    Raises:
        InputError: this user has no home.
    """
    named = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not named.is_absolute():
        named = Path(os.path.expanduser("~"), ".local", "state")
    if not named.is_absolute():
        raise InputError("there is no home for it: HOME must be an absolute path")
    return named / LAST


def keep(messages: Messages) -> None:
    """Write the last conversation, in a folder that its owner alone can enter.

    Raises:
        InputError: it cannot be written.
    """
    path = last()
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.name == "posix":
            if folder.stat().st_uid != os.geteuid():
                raise InputError(f"{folder} belongs to another user")
            folder.chmod(0o700)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror or error}") from error
    _write(path, messages)


def save(path: str | os.PathLike[str], messages: Messages) -> Path:
    """Write a conversation, whole or not at all, in place of nothing but another conversation.

    Raises:
        InputError: something else lies there, or it cannot be written.
    """
    target = Path(os.path.expanduser(path))
    check_writable(target)
    if target.is_file() and target.stat().st_size:
        try:
            read(target)
        except InputError as error:
            raise InputError(f"'{path}' is there and no conversation; name another file") from error
    return _write(target, messages)


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The messages of a saved conversation.

    Raises:
        InputError: it is none, or cannot be read.
    """
    file = Path(path)
    try:
        if file.exists() and not file.is_file():
            raise InputError(f"'{path}' is no file; name one that /save wrote")
        if file.stat().st_size > LARGEST:
            raise InputError(
                f"'{path}' is larger than {LARGEST:,} bytes; name one that /save wrote"
            )
        messages = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(messages, list):
            raise InputError(f"it is a {type(messages).__name__} and no list")
        if messages and flatten(messages)[1]:
            raise InputError("it holds pictures")
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError, InputError) as error:
        raise InputError(f"'{path}' is no saved conversation ({error}); see /save") from error
    return messages


def _write(path: Path, messages: Messages) -> Path:
    text = json.dumps(list(messages), ensure_ascii=False, indent=2)
    return write_whole(path, text + "\n", private=True)
