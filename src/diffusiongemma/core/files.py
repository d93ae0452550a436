"""Text files that people name: checked before the work, written whole or not at all after it."""

import os
import shutil
from pathlib import Path

from diffusiongemma.core.atomic import replacing
from diffusiongemma.core.errors import InputError

_HELP = "name a file in a folder that exists and is yours"


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse a file that surely cannot be written; nothing is touched.

    Raises:
        InputError: it is a folder, or lies in none that can be written to.
    """
    name = os.fspath(path)
    target = Path(os.path.realpath(name))
    if not name or not target.parent.is_dir():
        raise InputError(f"'{name}' cannot be written: there is no such folder; make it first")
    if target.is_dir():
        raise InputError(f"'{name}' cannot be written: it is a folder; {_HELP}")
    place = target if target.exists() and not target.is_file() else target.parent
    if not os.access(place, os.W_OK):
        raise InputError(f"'{name}' cannot be written: no permission in {place}; {_HELP}")


def write_whole(path: str | os.PathLike[str], text: str, *, private: bool = False) -> Path:
    """Write a text file, whole or not at all: what was there stays until all of it is written.

    A link is followed, a pipe or a device is written to, and a file keeps its permissions.

    Args:
        path: of the file.
        text: what it is to hold.
        private: it is for its owner's eyes only, whatever it was before.

    Raises:
        InputError: the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            Path(path).write_text(text, encoding="utf-8")  # a pipe or a terminal; a folder refuses
            return Path(path)
        with replacing(target) as scratch:
            if private:
                scratch.touch(0o600)  # before there is anything to see
            scratch.write_text(text, encoding="utf-8", errors="replace")
            if target.exists() and not private:
                shutil.copymode(target, scratch)
    except OSError as error:
        raise InputError(
            f"'{os.fspath(path)}' cannot be written: {error.strerror or error}; {_HELP}"
        ) from error
    return Path(path)
