"""The compiled library: made once, whole or not at all, and never in the way of an answer."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from diffusiongemma.core.errors import DeviceError
from diffusiongemma.kernels.native import build

ASK = """
import torch, diffusiongemma as dg
from diffusiongemma.core.errors import DeviceError
from diffusiongemma.kernels.native import build
print(build.library() is not None, build.reason())
print(dg.load(device="cpu").generate("Sort: 7 3 5", seed=1).text)
"""


def ask(cache: Path, **more: str) -> list[str]:
    """In a process of its own: whether there is a library, why not, and an answer."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"} | more
    told = subprocess.run(
        [sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True
    )
    assert not told.stderr
    return told.stdout.splitlines()


def made(cache: Path) -> list[Path]:
    return sorted((cache / "diffusiongemma" / "native").iterdir())


@pytest.mark.skipif(build.obstacle() is not None, reason=f"no compiler: {build.obstacle()}")
def test_it_is_made_once_and_mended(tmp_path: Path) -> None:
    assert ask(tmp_path) == ["True None", "3 5 7"]
    (library,) = made(tmp_path)
    before = library.stat().st_mtime_ns
    ask(tmp_path)
    assert made(tmp_path) == [library] and library.stat().st_mtime_ns == before
    whole = library.read_bytes()
    for spoilt in (b"", whole[:20_000], bytes(len(whole))):
        library.write_bytes(spoilt)
        assert ask(tmp_path) == ["True None", "3 5 7"]
        assert [path.stat().st_size for path in made(tmp_path)] == [len(whole)]


@pytest.mark.skipif(build.obstacle() is not None, reason=f"no compiler: {build.obstacle()}")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="these are x86-64's vectors")
def test_short_vectors_say_the_same(tmp_path: Path) -> None:
    assert ask(tmp_path, CC="cc -mno-avx512f") == ["True None", "3 5 7"]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"CC": "no-such-compiler"}, "no C compiler was found (no-such-compiler)"),
        ({"CC": 'gcc "'}, "no C compiler was found"),
        ({"CC": "false"}, "it could not be made"),
        ({"DIFFUSIONGEMMA_KERNELS": "plain"}, "is 'plain'"),
    ],
    ids=["no compiler", "no end of quotes", "one that fails", "switched off"],
)
def test_without_it_answers_are_the_same(tmp_path: Path, more: dict[str, str], why: str) -> None:
    first, answer = ask(tmp_path, **more)
    assert first.startswith("False") and why in first
    assert answer == "3 5 7"
    assert not tmp_path.joinpath("diffusiongemma").exists() or not made(tmp_path)


def test_a_folder_that_others_may_write_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    inner = build._folder()
    for folder in (inner, inner.parent):
        folder.chmod(0o777)
        with pytest.raises(DeviceError, match="others may write"):
            build._folder()
        folder.chmod(0o700)
    (inner / f"{build._name()}0.so").touch(0o666)
    (inner / f"{build._name()}0.so").chmod(0o666)
    with pytest.raises(DeviceError, match="others may write"):
        build._kept()
