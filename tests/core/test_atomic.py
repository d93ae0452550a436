"""Whole or not at all, at whatever moment the writer is killed; and nobody's work is swept away."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import killed_writes
from cli_help import ENVIRONMENT
from diffusiongemma.core import atomic
from diffusiongemma.core.files import write_whole
from settled import Settled

OLD, NEW = killed_writes.OLD, killed_writes.NEW
LEFT = ".target.0badcafe.partial"


def leftover(place: Path, *kinds: str, lock: bool = True) -> Path:
    """What a killed process leaves."""
    folder = place / LEFT
    folder.mkdir()
    if lock:
        (folder / "lock").touch()
    for kind in kinds:
        (folder / kind).mkdir()
        killed_writes.fill(folder / kind / "target", f"a:{kind}")
    return folder


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills its children")
@pytest.mark.parametrize("case", killed_writes.CASES)
def test_killed_at_every_moment(case: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, killed_writes.__file__, tmp_path / "place", case],
        stdout=subprocess.PIPE, check=True, env=ENVIRONMENT,
    )  # fmt: skip
    _, old, new = killed_writes.CASES[case]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found[0]["there"] == old and found[-1]["there"] == new
    assert len(found) > 8
    for moment in found:
        assert moment["there"] in (old, new) or moment["left"] in (old, new)
        assert moment["left"] in (None, old, new), "half deleted, it is never taken for whole"
        assert moment["litter"] <= 1
        assert moment["then"] == new, "the next write goes on as if nothing had been"
        assert moment["names"] == ([] if new is None else ["target"])
    if "without" in case:
        assert {m["left"] for m in found if m["there"] is None} == {NEW}
    elif old is not None:
        assert new is None or all(m["there"] is not None for m in found), "it is never not there"


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt(), SystemExit(143)])
def test_an_error_leaves_what_was_there(
    error: BaseException, exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    killed_writes.fill(target, OLD)

    def writing() -> None:
        with atomic.replacing(target) as scratch:
            killed_writes.fill(scratch, NEW)
            raise error

    with pytest.raises(type(error)):
        writing()

    def refused(one: Path, other: Path) -> bool:
        if exchange:
            raise error
        monkeypatch.setattr(Path, "rename", second)
        return False

    def second(self: Path, other: Path) -> Path:
        if other == target and self.parent.name == "whole":
            raise error
        os.rename(self, other)
        return other

    monkeypatch.setattr(atomic, "_exchange", refused)
    with pytest.raises(type(error)):
        killed_writes.write_folder(target)
    assert killed_writes.content(target) == OLD
    assert [one.name for one in tmp_path.iterdir()] == ["target"]


def test_what_is_whole_and_nowhere_else_stays(tmp_path: Path) -> None:
    left = leftover(tmp_path, "part", "whole", "old")
    target = tmp_path / "target"
    assert atomic.left_whole(target) == left / "whole" / "target"
    atomic.sweep(tmp_path)
    write_whole(tmp_path / "another", "text")
    assert killed_writes.content(left / "whole" / "target") == "a:whole"
    atomic.sweep(tmp_path, adopt=True)
    assert killed_writes.content(target) == "a:whole" and atomic.left_whole(target) is None
    assert sorted(one.name for one in tmp_path.iterdir()) == ["another", "target"]


@pytest.mark.parametrize("lock", [True, False])
def test_the_dead_are_swept_whatever_they_were_writing(lock: bool, tmp_path: Path) -> None:
    leftover(tmp_path, *(["part", "gone"] if lock else []), lock=lock)
    write_whole(tmp_path / "another", "text")
    assert [one.name for one in tmp_path.iterdir()] == ["another"]


def test_a_living_neighbour_is_left_alone(tmp_path: Path) -> None:
    """Another thread, and another process, that write the same file."""
    target = tmp_path / "target"
    script = (
        "import sys; from pathlib import Path; from diffusiongemma.core.atomic import replacing\n"
        "with replacing(Path(sys.argv[1])) as scratch:\n"
        "    scratch.write_text('theirs'); print(flush=True); sys.stdin.readline()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, target],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    with process, atomic.replacing(target) as scratch:
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        scratch.write_text("ours")
        write_whole(target, "quick")
        assert len(list(tmp_path.iterdir())) == 3
        process.communicate(b"\n")
        assert process.returncode == 0 and target.read_text() == "theirs"
    assert target.read_text() == "ours"
    assert [one.name for one in tmp_path.iterdir()] == ["target"]


def test_many_writers_at_once(tmp_path: Path) -> None:
    target, trouble = tmp_path / "target", []

    def write(number: int) -> None:
        try:
            for _ in range(20):
                write_whole(target, f"{number}" * 1000)
        except Exception as error:
            trouble.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not trouble and target.read_text() in {f"{n}" * 1000 for n in range(4)}
    assert [one.name for one in tmp_path.iterdir()] == ["target"]


def test_who_finds_a_lock_free_finds_it_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that has made its lock, and has yet to take it, meets one that sweeps."""
    place = leftover(tmp_path)
    late = os.open(place / "lock", os.O_RDWR)
    close, taken = os.close, []

    def closed(number: int) -> None:
        close(number)
        taken.append(atomic.lock(late) and atomic._is(place / "lock", late))

    monkeypatch.setattr(os, "close", closed)
    atomic.sweep(tmp_path)
    monkeypatch.undo()
    os.close(late)
    assert taken == [False] and not place.exists()


@pytest.mark.parametrize("again", [1, 2, 3])
@pytest.mark.parametrize("exchange", [True, False])
def test_an_interrupt_upon_another_loses_nothing(
    exchange: bool, again: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two calls, and as it tidies up after that."""
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    target, kept, moment = tmp_path / "target", set(), 0
    while True:
        killed_writes.fill(target, OLD)
        with monkeypatch.context() as patch:
            count = interrupted(patch, range(moment, moment + again))
            with contextlib.suppress(KeyboardInterrupt):
                killed_writes.write_folder(target)
        found = killed_writes.content(target)
        if found is None:
            where = atomic.left_whole(target)
            assert where is not None, f"it is lost at {moment}"
            found = killed_writes.content(where)
        assert found in (OLD, NEW)
        kept.add(found)
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        if len(count) <= moment:
            break
        moment += 1
    assert kept == {OLD, NEW} and moment > 9


def interrupted(patch: pytest.MonkeyPatch, moments: range) -> list[str]:
    """Raise in some of the calls that look at names and change them, before they do and after."""
    count: list[str] = []

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def interrupting(*args: Any, **options: Any) -> Any:
            count.append(name)
            if len(count) - 1 in moments:
                raise KeyboardInterrupt
            found = call(*args, **options)
            count.append(name)
            if len(count) - 1 in moments:
                raise KeyboardInterrupt
            return found

        return interrupting

    for module, name in ((os, "rename"), (os.path, "lexists"), (os, "mkdir")):
        patch.setattr(module, name, wrapped(name, getattr(module, name)))
    return count


def test_what_is_not_ours_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other names, links, files, and folders of other users."""
    place, elsewhere = tmp_path / "place", tmp_path / "elsewhere"
    place.mkdir()
    elsewhere.mkdir()
    precious = leftover(elsewhere, "part")
    (place / ".link.0badcafe.partial").symlink_to(precious)
    (place / ".file.0badcafe.partial").touch()
    (place / ".name.0badcafe").mkdir()
    (place / "name.0badcafe.partial").mkdir()
    before = sorted(place.iterdir())
    atomic.sweep(place, adopt=True)
    assert sorted(place.iterdir()) == before and (precious / "part" / "target" / "a").is_file()
    left = leftover(place, "part")
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    atomic.sweep(place)
    assert left.is_dir()


def test_without_locks_nothing_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "lock", lambda descriptor: None)
    left = leftover(tmp_path, "part")
    write_whole(tmp_path / "target", "text")
    assert sorted(one.name for one in tmp_path.iterdir()) == [left.name, "target"]


@pytest.mark.skipif(os.name != "posix", reason="Windows has other rights")
def test_nobody_else_gets_at_what_is_being_written(tmp_path: Path) -> None:
    """Whatever the umask; what appears has the rights that it says."""
    before = os.umask(0)
    try:
        with atomic.replacing(tmp_path / "target") as part:
            (scratch,) = tmp_path.iterdir()
            assert scratch.stat().st_mode & 0o777 == 0o700
            part.touch()
        assert (tmp_path / "target").stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(before)


def test_long_names(tmp_path: Path) -> None:
    for name in ("n" * 255, "😀" * 63, "a\nb"):
        write_whole(tmp_path / name, "text")
        assert [one.name for one in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()


def test_all_of_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, settled: Settled) -> None:
    target = tmp_path / "target"
    killed_writes.fill(target, OLD)
    with atomic.replacing(target) as scratch:
        killed_writes.fill(scratch, NEW)
        (scratch / "deeper").mkdir()
        (scratch / "deeper" / "d").write_text("new")
    settled.check(target, ["", "a", "c", "deeper", "deeper/d"])
    write_whole(tmp_path / "file", "text")
    settled.check(tmp_path / "file", [""])


def test_the_lock_is_the_process_s(tmp_path: Path) -> None:
    """Killed, it is free at once."""
    file = tmp_path / "lock"
    script = (
        "import os, sys, signal; from diffusiongemma.core.atomic import lock\n"
        "held = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "print(lock(held), flush=True); sys.stdin.readline()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, file],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    with process, file.open("a") as ours:
        assert process.stdout is not None and process.stdout.readline() == b"True\n"
        assert atomic.lock(ours.fileno()) is False
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert atomic.lock(ours.fileno()) is True
