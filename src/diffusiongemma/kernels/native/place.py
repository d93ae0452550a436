"""A folder that is ours alone, and files in it: what is run from there is what we put there.

Whoever may write to a folder on the way to a file, or owns one, can put another file in its place
between two looks at it. So the whole way is looked at, from the root: afterwards nobody but us and
root can change a step of it. POSIX only.
"""

import contextlib
import os
import stat
from pathlib import Path

from diffusiongemma.core.errors import DeviceError

_LINKS = 40  # on one way
_LARGEST = 1 << 26  # bytes of a file that is read


def own_folder(path: Path) -> Path:
    """A folder that only we and root can write to, made if need be; its way is free of links.

    Args:
        path: absolute. A folder on the way may be written to by others if it is sticky, as /tmp.

    Raises:
        DeviceError: somebody else could change what lies there.
        OSError: it cannot be made.
    """
    here, links = "/", 0
    steps = [*reversed(path.parts[1:])]
    _check(here)
    while steps:
        step = steps.pop()
        if step in ("", "."):
            continue
        if step == "..":
            here = os.path.dirname(here)
            continue
        there = os.path.join(here, step)
        with contextlib.suppress(FileExistsError):
            os.mkdir(there, 0o700)
        if stat.S_ISLNK(_check(there).st_mode):
            links += 1
            if links > _LINKS:
                raise DeviceError(f"{path} has over {_LINKS} links in its way; name another folder")
            target = os.readlink(there)
            steps += reversed(target.split("/"))
            there = "/" if target.startswith("/") else here
        here = there
    about = os.lstat(here)
    if about.st_uid != os.geteuid() or about.st_mode & 0o022:
        raise DeviceError(_refusal(here))
    return Path(here)


def _check(path: str) -> os.stat_result:
    """A step of a way: a folder, or a link, that nobody else may take away."""
    about = os.lstat(path)
    folder, link = stat.S_ISDIR(about.st_mode), stat.S_ISLNK(about.st_mode)
    if not folder and not link:
        raise DeviceError(f"{path} is no folder; remove it, or name another with XDG_CACHE_HOME")
    shared = about.st_mode & 0o022 and not about.st_mode & stat.S_ISVTX
    if about.st_uid not in (0, os.geteuid()) or (folder and shared):
        raise DeviceError(_refusal(path))
    return about


def _refusal(path: str) -> str:
    return (
        f"others may write to {path}, so what lies there is not run; make it yours alone, or name"
        " a folder that is with XDG_CACHE_HOME"
    )


def read_own(path: Path) -> tuple[int, bytes] | None:
    """An open descriptor of a file and all that is in it; None if it is no whole file of ours.

    Args:
        path: in a folder that is our own. A link is not followed, a pipe not waited for.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        number = os.open(path, flags)
    except OSError:
        return None
    about = os.fstat(number)
    ours = about.st_uid == os.geteuid() and not about.st_mode & 0o022
    if not stat.S_ISREG(about.st_mode) or not ours or about.st_size > _LARGEST:
        os.close(number)
        return None
    with open(os.dup(number), "rb") as file:
        return number, file.read(_LARGEST)


def write_own(path: Path, content: bytes) -> None:
    """A new file that nobody else can read or write."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
