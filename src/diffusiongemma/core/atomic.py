"""Files and folders that appear whole or not at all, and leave nothing behind.

What is being written lies in a hidden folder beside its target until all of it is on the disk:

    .NAME.1f2e3d4c.partial/
        lock        held by whoever writes, for as long as that process lives
        part/NAME   while it is written
        whole/NAME  once it is complete; only then does it take the target's place
        old/NAME    what stood there, between two renames, where names cannot be exchanged
        gone        what is being deleted

A process that is killed leaves such a folder. The next that writes beside it finds the lock free
and deletes it, unless it holds the only copy of something whole.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on every system
    fcntl = None

_OURS = re.compile(r"\..*\.[0-9a-f]{8}\.partial", re.DOTALL)
_WHOLE = ("whole", "old")  # a whole new one is preferred to the old one


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A hidden path for a file or folder, which takes the target's place if all went well.

    Whoever opens the target meets what was there or what is new, also after a power cut. A folder
    is exchanged with the old one in one moment where the system can do that (Linux).

    Args:
        target: what is to appear, behind all links, in a folder that exists.

    Raises:
        OSError: the system refused; the target is as it was.
    """
    sweep(target.parent)
    with scratch_beside(target) as scratch:
        part = scratch / "part"
        part.mkdir()
        yield part / target.name
        for folder, _, files in os.walk(part):
            for file in files:
                settle(Path(folder, file))
            settle(Path(folder))
        whole = part.rename(scratch / "whole")
        _put(whole / target.name, target, scratch)
        settle(target.parent)
    sweep(target.parent)  # what was kept as the only copy is none any more


@contextmanager
def scratch_beside(target: Path) -> Iterator[Path]:
    """A locked hidden folder beside the target, which is deleted in the end."""
    scratch, held = _claimed(target)
    try:
        yield scratch
    finally:
        _delete(scratch, held)


def remove(path: Path) -> None:
    """Delete a folder: it is gone at once, and not file by file.

    Raises:
        OSError: the system refused; the folder is as it was.
    """
    with scratch_beside(path) as scratch:
        path.rename(scratch / "gone")


def sweep(folder: Path, *, adopt: bool = False) -> None:
    """Delete what dead processes left in a folder; what a living one writes stays.

    Args:
        folder: where they wrote.
        adopt: put what was whole, and is nowhere else, in its place; otherwise it is left alone.
    """
    for leftover in _leftovers(folder):
        with contextlib.suppress(OSError):
            _take_over(leftover, adopt)


def left_whole(target: Path) -> Path | None:
    """Where a process that was killed left a target whole, if it did."""
    for leftover in _leftovers(target.parent):
        for kind in _WHOLE:
            if (leftover / kind / target.name).exists():
                return leftover / kind / target.name
    return None


def lock(descriptor: int) -> bool | None:
    """Take the lock of an open file, which ends with the process at the latest.

    Returns:
        whether it is ours; None where the system or the file system has no locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _claimed(target: Path) -> tuple[Path, int]:
    while True:
        scratch = target.with_name(f".{target.name[:50]}.{secrets.token_hex(4)}.partial")
        scratch.mkdir(0o700)  # whoever may write to it could exchange what is being written
        # Until it is locked, somebody who sweeps may take it for a dead one's; then, another.
        with contextlib.suppress(FileNotFoundError):
            held = os.open(scratch / "lock", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            if lock(held) is not False and _is(scratch / "lock", held):
                return scratch, held
            os.close(held)


def _is(path: Path, descriptor: int) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _leftovers(folder: Path) -> list[Path]:
    """Hidden folders of writers in a folder; those of other users are not ours to touch."""
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            # Others may delete theirs meanwhile.
            if _OURS.fullmatch(entry.name):
                with contextlib.suppress(FileNotFoundError):
                    owner = entry.stat(follow_symlinks=False).st_uid
                    ours = os.name != "posix" or owner == os.geteuid()
                    if ours and entry.is_dir(follow_symlinks=False):
                        found.append(Path(entry.path))
    return sorted(found)


def _take_over(leftover: Path, adopt: bool) -> None:
    """Delete a leftover, unless its writer lives or it holds something that is nowhere else."""
    try:
        flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
        held = os.open(leftover / "lock", flags)
    except FileNotFoundError:  # its writer had not begun, or all but this was deleted
        leftover.rmdir()
        return
    if not lock(held):
        os.close(held)
        return
    try:
        only = [one for kind in _WHOLE for one in _entries(leftover / kind)]
        for one in only:
            target = leftover.with_name(one.name)
            if adopt and not os.path.lexists(target):
                one.rename(target)
                settle(leftover.parent)
        kept = any(not os.path.lexists(leftover.with_name(one.name)) for one in only)
    except BaseException:
        os.close(held)
        raise
    if kept:
        os.close(held)
    else:
        _delete(leftover, held)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _delete(scratch: Path, held: int) -> None:
    """Delete a hidden folder: the lock last, and nothing half deleted under a whole one's name.

    What stood in the target's place goes back to it if nothing else took it: its writer may have
    been interrupted between two renames, and once more as it tidied up.
    """
    try:
        with contextlib.suppress(OSError):
            for aside in _entries(scratch / "old"):
                if not os.path.lexists(scratch.with_name(aside.name)):
                    aside.rename(scratch.with_name(aside.name))
            for kind in _WHOLE:
                if (scratch / kind).exists():
                    (scratch / kind).rename(scratch / f"gone-{kind}")
            for entry in scratch.iterdir():
                if entry.name != "lock":
                    shutil.rmtree(entry, ignore_errors=True)
            # As long as it is ours: who takes the lock of a folder has to find it there.
            (scratch / "lock").unlink()
            scratch.rmdir()
    finally:
        os.close(held)
    if os.name != "posix":  # where nothing that is open can be deleted
        with contextlib.suppress(OSError):
            (scratch / "lock").unlink()
            scratch.rmdir()


def _put(new: Path, target: Path, scratch: Path) -> None:
    """Give what is whole its name."""
    if not new.is_dir() or not os.path.lexists(target):
        os.replace(new, target)
        return
    if _exchange(new, target):
        return
    aside = scratch / "old" / target.name
    aside.parent.mkdir()
    target.rename(aside)
    new.rename(target)  # if this fails, the old one goes back as the scratch folder is deleted


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one moment; False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    call = getattr(ctypes.CDLL(None), "renameat2", None)
    if call is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return call(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def settle(path: Path) -> None:
    """See to it that a file, or the list of names in a folder, is on the disk."""
    is_folder = path.is_dir()
    if is_folder and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems have nothing to settle about a folder.
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
