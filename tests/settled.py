"""What was put on the disk, and when: before it had its name, or after."""

import os
from pathlib import Path

import pytest

from diffusiongemma.core import atomic


class Settled:
    """Notes which files and folders are settled, and when something takes its name."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._notes: list[tuple[str, Path]] = []
        real, put = os.fsync, atomic._put

        def fsync(descriptor: int) -> None:
            real(descriptor)
            self._notes.append(("settled", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))

        def put_and_note(new: Path, target: Path, scratch: Path) -> None:
            put(new, target, scratch)
            self._notes.append(("put", target))

        patch.setattr(os, "fsync", fsync)
        patch.setattr(atomic, "_put", put_and_note)

    def check(self, target: Path, names: list[str], *others: Path) -> None:
        """All of a target's files were settled, then it was put there, and then its folder was.

        Others are files that had to be settled before too.
        """
        at = len(self._notes) - 1 - self._notes[::-1].index(("put", target))
        before = [path for kind, path in self._notes[:at] if kind == "settled"]
        last = [path for path in before if ".partial" in str(path) and target.name in path.parts]
        found = {"/".join(path.parts[path.parts.index(target.name) + 1 :]) for path in last}
        assert found >= set(names), f"never settled: {set(names) - found}"
        assert set(others) <= set(before)
        assert ("settled", target.parent) in self._notes[at:]
