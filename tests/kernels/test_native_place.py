"""A folder that is ours alone: every step of the way to it, and what lies in it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from diffusiongemma.core.errors import DeviceError
from diffusiongemma.kernels.native import place

NOBODY = 65534
root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")


def made(path: Path, mode: int = 0o755, owner: int | None = None) -> Path:
    path.mkdir()
    path.chmod(mode)
    if owner is not None:
        os.chown(path, owner, owner)
    return path


def test_it_is_made_for_us_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = place.own_folder(tmp_path / "a/b/c")
    finally:
        os.umask(before)
    assert folder == tmp_path.resolve() / "a/b/c"
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")} == {0o700}
    assert place.own_folder(tmp_path / "a/b/c") == folder


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o770, 0o722])
@pytest.mark.parametrize("depth", ["a", "a/b", "a/b/c"])
def test_a_step_that_others_may_write_to(tmp_path: Path, mode: int, depth: str) -> None:
    place.own_folder(tmp_path / "a/b/c")
    (tmp_path / depth).chmod(mode)
    with pytest.raises(DeviceError, match=rf"others may write to {tmp_path}/{depth}, so"):
        place.own_folder(tmp_path / "a/b/c")


def test_a_sticky_step_is_fine_but_not_the_last(tmp_path: Path) -> None:
    made(tmp_path / "a", 0o1777)
    folder = place.own_folder(tmp_path / "a/b")
    folder.chmod(0o1777)
    with pytest.raises(DeviceError, match=r"others may write to .*/a/b, so"):
        place.own_folder(tmp_path / "a/b")


@root
@pytest.mark.parametrize("mode", [0o755, 0o700, 0o1777])
@pytest.mark.parametrize("depth", ["a", "a/b", "a/b/c"])
def test_a_step_of_somebody_else(tmp_path: Path, mode: int, depth: str) -> None:
    place.own_folder(tmp_path / "a/b/c")
    os.chown(tmp_path / depth, NOBODY, NOBODY)
    (tmp_path / depth).chmod(mode)
    with pytest.raises(DeviceError, match=rf"others may write to {tmp_path}/{depth}, so"):
        place.own_folder(tmp_path / "a/b/c")


def test_our_own_links_are_gone_through(tmp_path: Path) -> None:
    made(tmp_path / "disk")
    made(tmp_path / "home")
    (tmp_path / "home/cache").symlink_to(tmp_path / "disk")
    (tmp_path / "near").symlink_to("home/../home/./cache/x")
    assert place.own_folder(tmp_path / "home/cache/x") == (tmp_path / "disk/x").resolve()
    assert place.own_folder(tmp_path / "near/y") == (tmp_path / "disk/x/y").resolve()


def test_behind_a_link_every_step_is_looked_at(tmp_path: Path) -> None:
    made(tmp_path / "open", 0o777)
    made(tmp_path / "open/inner", 0o700)
    (tmp_path / "link").symlink_to(tmp_path / "open/inner")
    with pytest.raises(DeviceError, match=rf"others may write to {tmp_path}/open, so"):
        place.own_folder(tmp_path / "link/x")


def test_a_ring_of_links(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(DeviceError, match="has over 40 links in its way"):
        place.own_folder(tmp_path / "a/x")


@root
def test_a_link_of_somebody_else(tmp_path: Path) -> None:
    made(tmp_path / "tmp", 0o1777)
    made(tmp_path / "good", 0o700)
    (tmp_path / "tmp/link").symlink_to(tmp_path / "good")
    os.lchown(tmp_path / "tmp/link", NOBODY, NOBODY)
    with pytest.raises(DeviceError, match=r"others may write to .*/tmp/link, so"):
        place.own_folder(tmp_path / "tmp/link/x")
    assert list((tmp_path / "good").iterdir()) == []


def test_something_else_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file/x"):
        with pytest.raises(DeviceError, match=r"/file is no folder; remove it"):
            place.own_folder(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DeviceError, match=r"/pipe is no folder; remove it"):
        place.own_folder(tmp_path / "pipe/x")


@pytest.mark.parametrize(
    "make",
    [
        lambda path, good: None,
        lambda path, good: path.mkdir(),
        lambda path, good: os.mkfifo(path),
        lambda path, good: path.symlink_to(good),
        lambda path, good: path.symlink_to("/dev/zero"),
        lambda path, good: (path.write_bytes(b"x"), path.chmod(0o666)),
        lambda path, good: (path.write_bytes(b"x"), path.chmod(0o620)),
        lambda path, good: (path.touch(), os.truncate(path, 1 << 36)),
    ],
    ids=["nothing", "folder", "pipe", "link", "device", "of all", "of a group", "huge"],
)
def test_what_is_not_read(tmp_path: Path, make: Callable[[Path, Path], object]) -> None:
    place.write_own(tmp_path / "good", b"x")
    make(tmp_path / "file", tmp_path / "good")
    before = len(os.listdir("/dev/fd"))
    assert place.read_own(tmp_path / "file") is None
    assert len(os.listdir("/dev/fd")) == before


@root
def test_a_file_of_somebody_else_is_not_read(tmp_path: Path) -> None:
    place.write_own(tmp_path / "file", b"x")
    os.chown(tmp_path / "file", NOBODY, NOBODY)
    assert place.read_own(tmp_path / "file") is None


def test_what_is_written_is_new_and_ours(tmp_path: Path) -> None:
    place.write_own(tmp_path / "file", b"abc")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    number, content = place.read_own(tmp_path / "file") or (-1, b"")
    os.close(number)
    assert content == b"abc"
    (tmp_path / "link").symlink_to(tmp_path / "other")
    for name in ("file", "link"):
        with pytest.raises(FileExistsError):
            place.write_own(tmp_path / name, b"x")
    assert not (tmp_path / "other").exists()
