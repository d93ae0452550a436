"""Compilers that misbehave: a reason each, nothing kept, nothing changed, nobody left behind."""

import os
import re
import time
from pathlib import Path

import pytest

from diffusiongemma.kernels.native import build
from native_cache import SYMBOLS, compiled, compiler, made

ODD = {
    "fails": ("echo 'trunk.c:1: error: no' >&2; exit 1", "ended with 1: trunk.c:1: error: no"),
    "fails in Latin-1": (r"printf 'caf\351: error\n' >&2; exit 1", "ended with 1: caf\ufffd: err"),
    "fails without a word": ("exit 3", "the compiler ended with 3"),
    "fails at length": ("yes | head -c 300000 >&2; exit 1", "ended with 1: y"),
    "writes to a terminal": (
        r"printf '\033[2J\033]0;x\007error \342\200\256no\n'; exit 1",
        "ended with 1: \ufffd[2J\ufffd]0;x\ufffderror \ufffdno",
    ),
    "makes nothing": ("exit 0", "the compiler left no library; check CC"),
    "makes an empty file": (': > "$out"', "file too short"),
    "makes a text": ('echo hello, I am a library > "$out"', "of what the compiler made ended with"),
    "makes a link to a library": ('ln -s "$LIBRARY" "$out"', "left no library"),
    "makes another name of a file": ('ln "$FILE" "$out"', "of what the compiler made ended with"),
    "makes a link to a device": ('ln -s /dev/zero "$out"', "left no library"),
    "makes a pipe": ('mkfifo "$out"', "left no library"),
    "makes a folder": ('mkdir "$out"', "left no library"),
    "makes what is endless": ('truncate -s 1T "$out"', "left no library"),
    "makes what all may write to": ('compile ""; chmod 666 "$out"', "left no library"),
    "makes what nobody may read": ('compile ""; chmod 0 "$out"', "left no library|undefined"),
    "forgets the symbols": ('compile "int x;"', "undefined symbol"),
    "forgets one": (f'compile "{SYMBOLS}"', "undefined symbol: diffusiongemma_probe"),
    "sums wrongly": (
        f'compile "{SYMBOLS} int diffusiongemma_probe(void) {{ return 0; }}"',
        "said 'its sums are wrong'",
    ),
    "makes what traps": (
        f'compile "{SYMBOLS} int diffusiongemma_probe(void) {{ __builtin_trap(); }}"',
        "ended with -[0-9]",
    ),
    "makes what ends the process": (
        'compile "void _exit(int); __attribute__((constructor)) void f(void) { _exit(0); }"',
        "said ''",
    ),
    "makes what hangs": (
        'compile "__attribute__((constructor)) void f(void) { for (;;); }"',
        "of what the compiler made took over 3 seconds",
    ),
    "hangs": ("sleep 1000 & echo $! > $PID; wait", "the compiler took over 3 seconds"),
    "hangs without output": ("exec >&- 2>&-; sleep 1000", "the compiler took over 3 seconds"),
    "talks for ever": ("yes error", "the compiler took over 3 seconds"),
    "stops": ("kill -STOP $$", "the compiler took over 3 seconds"),
    "dies": ("kill -KILL $$", "the compiler ended with -9"),
    "leaves a child behind": ("sleep 1000 & echo $! > $PID; exit 1", "the compiler ended with 1"),
    "removes its folder": ('rm -rf "$PWD"', "left no library"),
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where libraries are kept, for this process too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DIFFUSIONGEMMA_KERNELS", raising=False)
    return tmp_path / "cache"


@compiled
@pytest.mark.parametrize("how", ODD)
def test_a_compiler_that_misbehaves(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    script, why = ODD[how]
    compiler(tmp_path, script, monkeypatch)
    kept = tmp_path / "of the system"
    kept.mkdir()
    library, file, number = kept / "library.so", kept / "file", kept / "pid"
    for path in (library, file):
        path.write_bytes(b"somebody's")
        path.chmod(0o640)
    for name, path in {"LIBRARY": library, "FILE": file, "PID": number}.items():
        monkeypatch.setenv(name, str(path))
    monkeypatch.setattr(build, "_SECONDS", 3.0 if why.startswith("the compiler took") else 60.0)
    monkeypatch.setattr(build, "_TRIAL_SECONDS", 3.0 if "made took" in why else 60.0)
    found, told = build._found.__wrapped__()
    assert found is None and told is not None and told.startswith("it could not be made: ")
    assert why in told or re.search(why, told), told
    assert told.isprintable() and len(told) < 400
    assert made(cache) == []
    for path in (library, file):
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"somebody's", 0o640)
    if number.exists():
        assert is_gone(int(number.read_text()))


def is_gone(number: int) -> bool:
    """Whether a process has ended, or does so in the next moment."""
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return True
        state = Path(f"/proc/{number}/stat")
        if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


@compiled
def test_a_program_that_is_none(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir(mode=0o700)
    (cache / "cc").write_bytes(b"\0\1\2")
    (cache / "cc").chmod(0o755)
    monkeypatch.setenv("CC", str(cache / "cc"))
    found, why = build._found.__wrapped__()
    assert found is None and why is not None and "Exec format error" in why
    assert made(cache) == []
