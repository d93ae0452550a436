"""Writes that are killed at every moment: before each call that touches a file or a folder.

A child process counts what Python's audit hooks report and kills itself at a given one, so nothing
depends on how fast the machine is. It is a program of its own, without torch, so that it can fork.
"""

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from diffusiongemma.core import atomic, files

EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir")


def killed(work: Callable[[], object], moment: int, place: Path) -> bool:
    """Do the work in a child that is killed before its n-th event in a place; whether it was."""
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, args: tuple) -> None:
            nonlocal count
            path = str(args[0]) if event in EVENTS else "/"
            if path.startswith(str(place)) or not path.startswith("/"):  # within an open folder
                count += 1
                if count > moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0, "the work failed"
    return os.WIFSIGNALED(status)


def moments(work: Callable[[], object], begin: Callable[[], object], place: Path) -> Iterator[int]:
    """Begin anew, be killed, and yield, for one moment after the other until the work is done."""
    moment = 0
    begin()
    while killed(work, moment, place):
        yield moment
        moment += 1
        begin()
    yield moment  # the last time it was not killed


def content(path: Path) -> str | None:
    """A file's text, or those of a folder; None if it is not there."""
    if path.is_dir():
        return " ".join(f"{one.name}:{one.read_text()}" for one in sorted(path.iterdir()))
    return path.read_text() if path.exists() else None


OLD, NEW = "a:old b:old", "a:new c:new"


def fill(folder: Path, text: str) -> None:
    """Three files of a folder."""
    folder.mkdir()
    for pair in text.split():
        name, _, value = pair.partition(":")
        (folder / name).write_text(value)


def write_folder(target: Path) -> None:
    """What is tried: a folder in the place of another, or of none."""
    with atomic.replacing(target) as scratch:
        fill(scratch, NEW)


def write_file(target: Path) -> None:
    """The same for a file."""
    files.write_whole(target, "new")


CASES = {
    "a new folder": (write_folder, None, NEW),
    "a folder": (write_folder, OLD, NEW),
    "a folder, without exchange": (write_folder, OLD, NEW),
    "a new file": (write_file, None, "new"),
    "a file": (write_file, "old", "new"),
    "a removal": (atomic.remove, OLD, None),
}


def main(place: Path, case: str) -> None:
    """Print what was found after each kill, and what the next write left."""
    work, old, new = CASES[case]
    target = place / "target"
    if "without" in case:
        atomic._exchange = lambda one, other: False

    def begin() -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if old is not None:
            fill(target, old) if " " in old else target.write_text(old)

    for _ in moments(lambda: work(target), begin, place):
        found = {"there": content(target), "litter": len(list(place.iterdir())) - target.exists()}
        left = atomic.left_whole(target)
        found["left"] = None if left is None else content(left)
        if target.exists() or new is not None:
            work(target)
        if new is None:
            atomic.sweep(place)
        found |= {"then": content(target), "names": [one.name for one in place.iterdir()]}
        print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
