"""Nothing that a verb prints can steer a terminal, whatever folders and files are called."""

import json
import shutil
from pathlib import Path

import pytest

from cli_help import QUICK, Call
from diffusiongemma.cli.output import as_json, give
from diffusiongemma.core.letters import STEERING

EVIL = "m\x9b31m\x1b]0;title\x07\u202egnp\u2066\x7f\x85"


@pytest.fixture(scope="module")
def evil(words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose folder's name would colour, retitle and turn around what names it."""
    folder = tmp_path_factory.mktemp("evil") / EVIL
    return Path(shutil.copytree(words, folder))


def test_no_verb_lets_letters_through_that_steer(evil: Path, call: Call, tmp_path: Path) -> None:
    out = tmp_path / f"{EVIL}2"
    for words in (
        ["-m", evil, "hello", "--json", *QUICK],
        ["doctor", "-m", evil],
        ["doctor", "-m", evil, "--json"],
        ["doctor", "-m", evil / EVIL, "--json"],
        ["trace", "-m", evil, "hello", *QUICK, "--out", tmp_path / f"{EVIL}.svg"],
        ["quantize", "-m", evil, "--out", out, "--no-damage"],
        ["quantize", "-m", evil, "--out", out, "--no-damage"],
        ["-m", evil / EVIL, "hello"],
        ["-m", evil, "hello", f"--{EVIL}"],
        ["-m", evil / EVIL, "hello", "--debug"],
    ):
        done = call(*words)
        assert done.out or done.err
        assert not STEERING.search(done.out + done.err), ascii(done)


def test_json_loses_nothing(evil: Path, call: Call) -> None:
    found = json.loads(call("-m", evil, "hello", "--json", *QUICK).out)
    assert found["model"] == str(evil)
    texts = ["".join(map(chr, range(0x300))), "\u2028\u202e\u2066\U0001f600\U000e0001 漢"]
    assert json.loads(as_json(texts)) == texts
    assert not STEERING.search(as_json(texts, indent=2))


@pytest.mark.parametrize("terminal", [True, False])
def test_data_is_exact_in_a_pipe(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    give("a\x9bb\u202e")
    assert capsys.readouterr().out == ("a\ufffdb\ufffd\n" if terminal else "a\x9bb\u202e\n")
