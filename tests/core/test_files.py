"""Files that people name: refused early, written whole, left alone otherwise."""

import os
import stat
import threading
from pathlib import Path

import pytest

from diffusiongemma.core.errors import InputError
from diffusiongemma.core.files import check_writable, write_whole


def test_a_file_keeps_its_mode_and_a_new_one_follows_the_umask(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("1")
    old.chmod(0o600)
    before = os.umask(0o027)
    try:
        write_whole(old, "2")
        write_whole(new, "3")
    finally:
        os.umask(before)
    assert stat.S_IMODE(old.stat().st_mode) == 0o600
    assert stat.S_IMODE(new.stat().st_mode) == 0o640
    assert (old.read_text(), new.read_text()) == ("2", "3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]


def test_what_is_private_is_so_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, modes, real = tmp_path / "file", list[int](), Path.write_text
    file.touch(0o644)

    def watched(self: Path, *args: str, **options: str) -> int:
        modes.append(stat.S_IMODE(self.stat().st_mode))
        return real(self, *args, **options)

    monkeypatch.setattr(Path, "write_text", watched)
    before = os.umask(0)
    try:
        write_whole(file, "secret", private=True)
    finally:
        os.umask(before)
    assert modes == [0o600] and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text() == "secret"


def test_links_are_followed_and_pipes_written_to(tmp_path: Path) -> None:
    real, link, pipe = tmp_path / "real", tmp_path / "link", tmp_path / "pipe"
    real.write_text("old")
    link.symlink_to(real)
    write_whole(link, "new")
    assert link.is_symlink() and real.read_text() == "new"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    check_writable(pipe)
    write_whole(pipe, "through")
    reader.join()
    assert read == ["through"] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_what_cannot_be_written_is_refused_before(tmp_path: Path) -> None:
    for path, words in [
        (tmp_path / "none" / "a", "there is no such folder; make it first"),
        (tmp_path, "it is a folder"),
        ("", "there is no such folder"),
    ]:
        with pytest.raises(InputError, match=words):
            check_writable(path)
    assert list(tmp_path.iterdir()) == []
