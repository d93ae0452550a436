"""The compiled library: made once, whole or not at all, and never in the way of an answer."""

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffusiongemma.kernels.native import build
from native_cache import CC, SYMBOLS, compiled, compiler, made, shared

ASK = """
import torch, diffusiongemma as dg
from diffusiongemma.core.errors import DeviceError
from diffusiongemma.kernels.native import build
print(build.library() is not None, build.reason())
print(dg.load(device="cpu").generate("Sort: 7 3 5", seed=1).text)
"""
SWITCHED = """
import diffusiongemma as dg
gemma = dg.load(device="cpu")
print(gemma.generate("Sort: 7 3 5", seed=1).text)
print(gemma.model.choice.trunk)
"""


def ask(cache: Path, program: str = ASK, **more: str) -> list[str]:
    """In a process of its own: whether there is a library, why not, and an answer."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"} | more
    told = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert not told.stderr
    return told.stdout.splitlines()


@compiled
def test_it_is_made_once(tmp_path: Path) -> None:
    assert ask(tmp_path) == ["True None", "3 5 7"]
    (library,) = made(tmp_path)
    before = library.stat().st_mtime_ns
    ask(tmp_path)
    assert made(tmp_path) == [library] and library.stat().st_mtime_ns == before


@compiled
@pytest.mark.skipif(platform.machine() != "x86_64", reason="these are x86-64's vectors")
def test_short_vectors_say_the_same(tmp_path: Path) -> None:
    assert ask(tmp_path, CC="cc -mno-avx512f") == ["True None", "3 5 7"]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"CC": "no-such-compiler"}, "no C compiler was found (no-such-compiler)"),
        ({"CC": 'gcc "'}, "no C compiler was found"),
        ({"CC": "false"}, "it could not be made"),
        ({"XDG_CACHE_HOME": "", "HOME": "relative"}, "the home folder 'relative' is none; set"),
    ],
    ids=["no compiler", "no end of quotes", "one that fails", "no home"],
)
def test_without_it_answers_are_the_same(tmp_path: Path, more: dict[str, str], why: str) -> None:
    first, answer = ask(tmp_path, **more)
    assert first.startswith("False") and why in first
    assert answer == "3 5 7"
    assert not tmp_path.joinpath("diffusiongemma").exists() or not made(tmp_path)


def test_where_the_reference_is_asked_for_nothing_is_made(tmp_path: Path) -> None:
    assert ask(tmp_path, SWITCHED, DIFFUSIONGEMMA_KERNELS="reference") == ["3 5 7", "modules"]
    assert not list(tmp_path.iterdir())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where libraries are kept, for this process too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DIFFUSIONGEMMA_KERNELS", raising=False)
    return tmp_path / "cache"


# What is kept


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A compiler that does not take long, and warns in Latin-1; and what it made."""
    folder = tmp_path_factory.mktemp("quick")
    with pytest.MonkeyPatch.context() as patch:
        script = compiler(folder, f"printf 'caf\\351\\n' >&2; exec {CC} \"$@\" -O0 -w", patch)
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.delenv("DIFFUSIONGEMMA_KERNELS", raising=False)
        found, why = build._found.__wrapped__()
    assert found is not None, why
    (kept,) = made(folder)
    return script, kept


@pytest.fixture
def kept(cache: Path, quick: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library in a cache of its own."""
    monkeypatch.setenv("CC", str(quick[0]))
    path = build.place.own_folder(cache / "diffusiongemma/native") / quick[1].name
    build.place.write_own(path, quick[1].read_bytes())
    return path


def named(kept: Path, content: bytes) -> Path:
    """Where a library of that content would be kept."""
    return kept.with_name(f"{kept.stem.rpartition('-')[0]}-{build._digest(content)}.so")


EMPTY = b"\x7fELF is no more than a beginning"


@compiled
@pytest.mark.parametrize(
    "spoil",
    [
        lambda kept, good: None,
        lambda kept, good: kept.write_bytes(b""),
        lambda kept, good: kept.write_bytes(good[:-1]),
        lambda kept, good: kept.write_bytes(good[:-1] + bytes([good[-1] ^ 1])),
        lambda kept, good: kept.chmod(0o666),
        lambda kept, good: kept.chmod(0o620),
        lambda kept, good: (kept.unlink(), os.mkfifo(kept)),
        lambda kept, good: (kept.unlink(), kept.symlink_to("/dev/zero")),
        lambda kept, good: (kept.rename(kept.parents[2] / "x"), kept.symlink_to("../../x")),
        lambda kept, good: (kept.unlink(), named(kept, EMPTY).write_bytes(EMPTY)),
        lambda kept, good: os.truncate(kept, 1 << 36),
    ],
    ids=range(11),
)
def test_what_is_kept_is_whole_and_ours_or_made_anew(
    kept: Path, quick: tuple[Path, Path], spoil: object
) -> None:
    good = kept.read_bytes()
    assert callable(spoil)
    spoil(kept, good)
    found, why = build._found.__wrapped__()
    assert found is not None, why
    assert found.diffusiongemma_probe() == 1
    (path,) = kept.parent.iterdir()
    about = path.lstat()
    assert (path.read_bytes(), about.st_mode) == (good, 0o100600)


@compiled
@pytest.mark.parametrize("probe", ["int probe;", "int diffusiongemma_probe(void) { return 0; }"])
def test_what_is_kept_is_tried(kept: Path, tmp_path: Path, probe: str) -> None:
    """A library of that name and content, which another version may have kept untried."""
    good = kept.read_bytes()
    shared(tmp_path / "other.so", f"{SYMBOLS} {probe}")
    kept.unlink()
    other = (tmp_path / "other.so").read_bytes()
    build.place.write_own(named(kept, other), other)
    found, why = build._found.__wrapped__()
    assert found is not None and found.diffusiongemma_probe() == 1, why
    assert [path.read_bytes() for path in kept.parent.iterdir()] == [good]


@compiled
def test_whatever_goes_wrong_is_a_reason(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(*_: object) -> None:
        raise LookupError("of a kind that nobody thought of")

    monkeypatch.setattr(build, "_processor", odd)
    why = "it could not be made: LookupError: of a kind that nobody thought of"
    assert build._found.__wrapped__() == (None, why)


@compiled
def test_a_folder_in_its_place(kept: Path) -> None:
    kept.unlink()
    kept.mkdir()
    found, why = build._found.__wrapped__()
    assert found is None and why is not None and kept.name in why


@compiled
@pytest.mark.parametrize("files", ["/proc/self/fd", "/nowhere"])
def test_what_was_read_is_what_is_run(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: str
) -> None:
    """Another library takes the place between the look at the first and its opening."""
    if files.startswith("/proc") and not Path(files).is_dir():
        pytest.skip("no /proc")
    mark = tmp_path / "it ran"
    text = (
        f'#include <fcntl.h>\n__attribute__((constructor)) void f(void) {{ creat("{mark}", 384); }}'
    )
    shared(tmp_path / "evil.so", text)
    look = build._digest

    def digest(content: bytes) -> str:
        seen = look(content)
        os.replace(shutil.copy(tmp_path / "evil.so", tmp_path / "copy.so"), kept)
        return seen

    monkeypatch.setattr(build, "_FILES", Path(files))
    monkeypatch.setattr(build, "_digest", digest)
    found, why = build._found.__wrapped__()
    assert found is not None and found.diffusiongemma_probe() == 1, why
    assert not mark.exists()
    assert list(kept.parent.iterdir()) == [kept]


@compiled
def test_who_is_killed_leaves_what_the_next_removes(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(tmp_path, "echo $$ > $PID; exec sleep 1000", monkeypatch)
    monkeypatch.setenv("PID", str(tmp_path / "pid"))
    code = "from diffusiongemma.kernels.native import build; build.library()"
    child = subprocess.Popen([sys.executable, "-c", code])
    limit = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < limit
        time.sleep(0.05)
    child.kill()
    child.wait()
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert len(list(kept.parent.iterdir())) == 2
    compiler(tmp_path, "exit 1", monkeypatch)
    build._found.__wrapped__()
    assert list(kept.parent.iterdir()) == [kept]


# Other users


@compiled
def test_a_way_that_others_may_change_is_not_gone(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may rename a folder above may put his library in the place of ours."""
    kept.parents[2].chmod(0o777)
    found, why = build._found.__wrapped__()
    assert found is None and why is not None
    assert f"others may write to {kept.parents[2]}, so what lies there is not run" in why
    kept.parents[2].chmod(0o755)
    assert build._found.__wrapped__()[0] is not None


@compiled
@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_root_runs_nothing_from_the_home_of_a_user(
    tmp_path: Path, quick: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user made `.cache`, and may put whatever he likes in place of what root makes there."""
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    command = ["mkdir", "-p", ".cache/diffusiongemma/native"]
    subprocess.run(command, cwd=home, user=65534, group=65534, extra_groups=[], check=True)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("DIFFUSIONGEMMA_KERNELS", raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("CC", str(quick[0]))
    for step in (home, home / ".cache", home / ".cache/diffusiongemma"):
        for start in (1, 2):
            found, why = build._found.__wrapped__()
            assert found is None and why is not None, start
            assert f"others may write to {step}, so" in why
            assert list((home / ".cache/diffusiongemma/native").iterdir()) == []
        os.chown(step, 0, 0)
    os.chown(home / ".cache/diffusiongemma/native", 0, 0)
    assert build._found.__wrapped__()[0] is not None


@compiled
@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_a_process_with_the_rights_of_another(cache: Path) -> None:
    code = """
import os
from diffusiongemma.kernels.native import build
os.seteuid(65534)
print(build.reason())
"""
    told = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "this process has another user's rights" in told


@compiled
def test_only_absolute_names_of_folders(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")  # its standard: not looked at
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build._folder() == tmp_path / ".cache/diffusiongemma/native"
    for home in ("relative", "", str(tmp_path / "not there")):
        monkeypatch.setenv("HOME", home)
        found, why = build._found.__wrapped__()
        assert found is None and why is not None and "set HOME or XDG_CACHE_HOME" in why
