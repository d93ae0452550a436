"""A verb that is told to end unwinds: what it was writing is cleaned up, and its exit code says so.

The verb's work is held where the signal is to meet it, so that no test has to be quick.
"""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cli_help import ENVIRONMENT
from diffusiongemma.cli import ending
from diffusiongemma.cli.verbs import VERBS

HELD = """
import importlib, sys
from diffusiongemma.cli.main import main

def held(args):
    try:
        print("waiting", flush=True)
        sys.stdin.readline()
    finally:
        print("cleaned", flush=True)
    return 0

module = importlib.import_module(f"diffusiongemma.cli.{sys.argv[1]}")
module.run = held
sys.exit(main(sys.argv[1:]))
"""

QUANTISING = """
import sys
from diffusiongemma.checkpoint.shard import ShardWriter
from diffusiongemma.cli.main import main

def held(self, name, tensor):
    print("waiting", flush=True)
    sys.stdin.readline()

ShardWriter.put = held
sys.exit(main(sys.argv[1:]))
"""


DROPPED = """
import os, signal, sys, time, weakref
from diffusiongemma.cli import doctor, ending
from diffusiongemma.cli.main import main

ending._SOON_S = float(sys.argv[2])

def held(args):
    class Thing: pass
    thing = Thing()
    told = weakref.ref(thing, lambda _: os.kill(os.getpid(), int(sys.argv[1])))
    del thing
    for _ in range(6000):
        time.sleep(0.01)
    return 0

doctor.run = held
sys.exit(main(["doctor"]))
"""

INTERRUPTED = """
import builtins, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
plain = builtins.__import__

def interrupted(name, *rest):
    if name == sys.argv[1]:
        signal.raise_signal(signal.SIGINT)
    return plain(name, *rest)

builtins.__import__ = interrupted
from diffusiongemma.cli.main import main
sys.exit(main(["--help"]))
"""


def ended(script: str, number: int, *words: str) -> tuple[int, str, str]:
    """Run a script, send it a signal when it says that it waits, and see how it ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=ENVIRONMENT,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(number)
        out, err = process.communicate("go on\n")
    return process.returncode, out, err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_unwinds(verb: str) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        assert ended(HELD, number, verb) == (128 + number, "cleaned\n", "")


def test_a_folder_that_is_being_written_is_cleaned_up(tmp_path: Path) -> None:
    words = ("quantize", "--out", str(tmp_path / "out"), "--no-damage")
    for number in (signal.SIGTERM, signal.SIGHUP):
        assert ended(QUANTISING, number, *words) == (128 + number, "", "")
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("soon", [0.01, 0.0], ids=["usual", "at once"])
@pytest.mark.parametrize(("number", "code"), [(15, 143), (1, 129), (2, 130)])
def test_a_signal_that_python_drops_comes_again(number: int, code: int, soon: float) -> None:
    """It was in a callback, whose errors are printed and forgotten; on a busy machine it may come
    again before the callback has ended.
    """
    words = [sys.executable, "-c", DROPPED, str(number), str(soon)]
    done = subprocess.run(words, capture_output=True, env=ENVIRONMENT)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")


@pytest.mark.parametrize(
    "name", ["diffusiongemma.cli.verbs", "difflib", "diffusiongemma.cli.flags"]
)
def test_ctrl_c_while_the_command_itself_is_imported(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, name], capture_output=True, env=ENVIRONMENT
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_what_the_caller_ignores_stays_ignored() -> None:
    """As under nohup: the terminal goes, the work stays."""
    nohup = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    assert ended(nohup + HELD, signal.SIGHUP, "doctor") == (0, "cleaned\n", "")


def test_the_caller_has_its_own_handlers_back() -> None:
    def own(number: int, frame: object) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGTERM, own)
    hanging_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the suite was started in
    try:
        with ending.unwinding():
            assert signal.getsignal(signal.SIGTERM) is own
            with pytest.raises(SystemExit) as stop:
                signal.raise_signal(signal.SIGHUP)
        assert stop.value.code == 129
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGHUP, hanging_up)


def test_in_a_thread_it_does_nothing() -> None:
    seen = []

    def work() -> None:
        with ending.unwinding():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]
