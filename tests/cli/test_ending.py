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
