"""The command as a program: help, exit codes, Ctrl-C, pipes that close, mistakes of our own."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from cli_help import COMMAND, ENDLESS, ENVIRONMENT, QUICK, Call
from diffusiongemma import __version__
from diffusiongemma.cli.flags import flag_of
from diffusiongemma.diffusion.config import HELP, SamplerConfig


def program(*words: object, **rest: object) -> subprocess.CompletedProcess[str]:
    """Run it in a process of its own."""
    return subprocess.run(
        [*COMMAND, *map(str, words)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
        stdin=subprocess.DEVNULL,
        **rest,  # pyright: ignore[reportArgumentType, reportCallIssue]
    )


HELPS = [
    ["--help"], ["--version"], ["help"], ["help", "chat"], ["completion", "bash"], ["--sed", "3"],
    *([verb, "--help"] for verb in ("chat", "trace", "evaluate", "quantize", "bench", "doctor")),
]  # fmt: skip
_LOADED = """
import contextlib, io, json, sys
before = set(sys.modules)  # what an environment loads into every Python
from diffusiongemma.cli.main import main
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = main(words)
    ours = {"__main__", "diffusiongemma", *sys.builtin_module_names, *sys.stdlib_module_names}
    loaded = {name.partition(".")[0] for name in sys.modules.keys() - before}
    print(json.dumps([code, sorted(loaded - ours)]))
"""


def test_help_comes_at_once() -> None:
    """It loads nothing but the standard library, and two that are small; how long that takes, on
    whatever machine, `benchmarks/start.py` says.
    """
    done = subprocess.run(
        [sys.executable, "-c", _LOADED, json.dumps(HELPS)],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=True,
    )  # fmt: skip
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [code for code, _ in said] == [2 if words == ["--sed", "3"] else 0 for words in HELPS]
    for words, (_, loaded) in zip(HELPS, said, strict=True):
        assert set(loaded) <= {"shtab", "wcwidth"}, words


def test_help_is_derived_from_the_sampler(call: Call) -> None:
    """One flag a field, with its help and default; nothing written twice."""
    said = " ".join(call("--help").out.split())
    for field in fields(SamplerConfig):
        text = HELP[field.name] + ("" if field.default is None else f" ({field.default})")
        assert f"{flag_of(field.name)} " in said
        assert text in said


def test_version(call: Call) -> None:
    assert call("--version").out == f"diffusiongemma {__version__}\n"


def test_debug_shows_where(words: Path, call: Call) -> None:
    done = call("-m", words, "x" * 600, "--debug")
    assert done.code == 2
    assert done.err.startswith("Traceback") and "InputError" in done.err
    assert done.err.splitlines()[-1].startswith("error: the prompt has ")


def fails(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("diffusiongemma.engine.open.load", fail)


def test_a_mistake_of_ours_says_so(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, KeyError("rope"))
    done = call("-m", "x", "hello")
    assert done.code == 1
    assert done.err == (
        "error: this is a mistake of ours (KeyError: 'rope'); run it again with --debug and "
        "report what it prints\n"
    )
    assert "Traceback" in call("-m", "x", "hello", "--debug").err


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "error: out of memory"),
        (OutOfMemoryError("CUDA\nwants 5 GB"), "error: out of memory (CUDA wants 5 GB); give"),
        (OSError(28, "No space left on device"), "error: the system refused: No space left"),
        (PermissionError(13, "Permission denied", "/x"), "Permission denied: /x"),
        (OSError("strange\x1b[2J"), "error: the system refused: strange\ufffd[2J"),
    ],
)
def test_a_lack_of_this_machine(
    error: Exception, sentence: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails(monkeypatch, error)
    done = call("-m", "x", "hello")
    assert done.code == 2
    assert sentence in done.err and done.err.count("\n") == 1


def test_ctrl_c_before_there_is_anything(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, KeyboardInterrupt())
    done = call("-m", "x", "hello")
    assert (done.code, done.out, done.err) == (130, "", "")


def test_ctrl_c_while_it_writes(words: Path) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "-m", str(words), "hello", *ENDLESS],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=slave,
        env=ENVIRONMENT | {"TERM": "xterm"},
    )
    os.close(slave)
    seen = b""
    with os.fdopen(master, "rb", buffering=0) as screen:
        while b"canvas 1, step" not in seen:
            seen += screen.read(4096)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
        try:
            while more := screen.read(4096):
                seen += more
        except OSError:  # the other end is closed
            pass
    assert process.returncode == 130
    assert out == b""
    assert b"Traceback" not in seen and b"error" not in seen
    assert seen.endswith(b"\x1b[J")  # the status is gone


def test_a_reader_who_leaves(words: Path) -> None:
    for given in (["--help"], ["-m", str(words), "hello", *QUICK]):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [*COMMAND, *given],
            stdin=subprocess.DEVNULL,
            stdout=write,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            timeout=120,
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (141, b""), given


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
def test_a_full_disk() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, "--version"], stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True
        )
    assert done.returncode == 2
    assert done.stderr == "error: the system refused: No space left on device\n"


def test_an_encoding_that_lacks_letters(words: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "-m", str(words), "hello", *QUICK],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=ENVIRONMENT | {"PYTHONIOENCODING": "ascii"},
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert re.search(rb"\\ufffd", done.stdout)


PLACES = """
import os, sys
from diffusiongemma.cli import doctor
from diffusiongemma.cli.main import main

def held(args):
    with open(sys.argv[1], "w") as file:
        os.write(2, b"a warning of some library")
        os.write(1, b"another")
        file.write(str(file.fileno()))
    return 0

doctor.run = held
sys.exit(main(["doctor"]))
"""


@pytest.mark.parametrize("closed", [">&- 2>&-", "<&- >&- 2>&-", "2>&-", ">&-"])
def test_no_file_takes_the_place_of_a_closed_stream(closed: str, tmp_path: Path) -> None:
    words = shlex.join([sys.executable, "-c", PLACES, str(tmp_path / "file")])
    subprocess.run(["bash", "-c", f"{words} {closed}"], env=ENVIRONMENT, check=True)
    text = (tmp_path / "file").read_text()
    assert text.isdecimal() and int(text) > 2


@pytest.mark.parametrize("verb", ["doctor", "evaluate --count 1", "bench", "completion bash", "x"])
def test_a_result_has_somewhere_to_go(verb: str) -> None:
    shell = f"{shlex.join(COMMAND)} {verb} >&-"
    done = subprocess.run(
        ["bash", "-c", shell], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output is closed")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_an_error_that_cannot_be_told_keeps_its_status() -> None:
    shell = f"{shlex.join(COMMAND)} -m /nowhere x 2>/dev/full"
    done = subprocess.run(["bash", "-c", shell], stdin=subprocess.DEVNULL, env=ENVIRONMENT)
    assert done.returncode == 2


def test_with_standard_error_closed_it_answers() -> None:
    words = [*COMMAND, "Reverse: abc", "--seed", "1"]
    shell = f"{shlex.join(words)} 2>&-"
    done = subprocess.run(
        ["bash", "-c", shell], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.strip() == "cba"
