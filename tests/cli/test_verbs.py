"""Which verb a command means; what looks like a verb and is none; help and completion."""

import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cli_help import COMMAND, ENVIRONMENT, Call
from diffusiongemma.cli.verbs import HELP, VERBS, meant

Refused = Callable[..., str]


@pytest.mark.parametrize(
    ("given", "verb", "left"),
    [
        ("doctor --json", "doctor", "--json"),
        ("-m FOLDER doctor", "doctor", "-m FOLDER"),
        ("-mFOLDER --debug doctor --json", "doctor", "-mFOLDER --debug --json"),
        ("--model=FOLDER --t-max 0.5 evaluate --count 3", "evaluate",
         "--model=FOLDER --t-max 0.5 --count 3"),
        ("-o t_max 0.5 chat", "chat", "-o t_max=0.5"),
        ("-c chat", "chat", "-c"),
        ("chat -c FILE", "chat", "-c FILE"),
        ("-s chat hello", "run", "-s chat hello"),
        ("-i doctor", "run", "-i doctor"),
        ("run doctor", "run", "doctor"),
        ("-- doctor", "run", "-- doctor"),
        ("run -- serve", "run", "-- serve"),
        ("trace chat", "trace", "chat"),
        ("'What is a doctor?' doctor", "run", "'What is a doctor?' doctor"),
        ("'doctor, help'", "run", "'doctor, help'"),
        ("help", "run", "--help"),
        ("help help", "run", "--help"),
        ("help trace", "trace", "--help"),
        ("-m FOLDER help trace", "trace", "--help"),
        ("", "run", ""),
        ("-", "run", "-"),
        ("-5", "run", "-5"),
    ],
)  # fmt: skip
def test_the_verb_is_the_first_word_that_is_no_flag(given: str, verb: str, left: str) -> None:
    assert meant(shlex.split(given)) == (verb, shlex.split(left))


@pytest.mark.parametrize("word", ["hello", "Hi", "lantern", "sun", "what", "Serve", "serve!", "42"])
def test_a_word_that_looks_like_no_verb_is_a_prompt(word: str) -> None:
    assert meant([word, "--seed", "1"]) == ("run", [word, "--seed", "1"])


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("evalaute", "evaluate"), ("doctr", "doctor"), ("quantise", "quantize"),
        ("benhc", "bench"), ("chatt", "chat"), ("completions", "completion"), ("eval", "evaluate"),
        ("generate", "run"), ("convert", "quantize"), ("benchmark", "bench"), ("repl", "chat"),
        ("info", "doctor"), ("version", "--version"), ("usage", "help"),
    ],
)  # fmt: skip
def test_a_verb_that_is_none_names_the_nearest(word: str, near: str, refused: Refused) -> None:
    said = refused(word, "--count", "3")
    assert said == (
        f"there is no verb '{word}'; did you mean '{near}'? As a prompt it is: "
        f"diffusiongemma run {word}"
    )
    assert refused("-m", "FOLDER", word) == said


@pytest.mark.parametrize("word", ["serve", "train", "finetune", "fine-tune", "pull", "list"])
def test_a_verb_of_other_tools_is_answered_by_nobody(word: str, refused: Refused) -> None:
    said = refused(word)
    assert said.startswith(f"there is no verb '{word}'; the verbs are run, chat, ")
    assert said.endswith(f". As a prompt it is: diffusiongemma run {word}")
    assert refused("help", word).startswith(f"there is no verb '{word}'; ")


def test_as_a_prompt_it_is_answered(call: Call) -> None:
    quick = ["--seed", "1", "--max-denoising-steps", "1"]
    done = call("run", "serve", *quick)
    assert done.code == 0 and done.out.strip()
    assert call(*quick, "--", "serve") == done


def test_every_verb_has_help(call: Call) -> None:
    trunk = call("--help")
    for verb, about in VERBS.items():
        done = call(HELP, verb)
        assert done == call(verb, "--help") and done.code == 0
        first = done.out.splitlines()[0].replace("[", "").replace("]", "")
        assert first.startswith(f"usage: diffusiongemma {verb} ")
        assert f"  {verb:12}{about}\n" in trunk.out
    assert call(HELP) == call("help", "help") == trunk


def test_what_belongs_to_another_verb_says_to_which(refused: Refused) -> None:
    assert refused("doctor", "--seed", "3") == (
        "doctor has no --seed; it belongs to run, chat, trace and evaluate"
    )
    assert refused("frobnicate", "--wrong", "3") == "run has no --wrong; it belongs to evaluate"
    assert refused("chat", "--sed", "3") == "unknown option '--sed'; did you mean '--seed'?"
    assert refused("doctor", "FOLDER") == "'FOLDER' is one word too many; a checkpoint is -m FOLDER"


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_verbs_flags_and_values(call: Call, tmp_path: Path) -> None:
    done = call("completion", "bash")
    assert (done.code, done.err) == (0, "")
    (tmp_path / "script").write_text(done.out)
    (tmp_path / "folder").mkdir()
    (tmp_path / "words").write_text(
        """
        source ./script
        complete_as() {
            COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=()
            "$(complete -p diffusiongemma | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
            echo "${COMPREPLY[*]}"
        }
        complete_as diffusiongemma ""
        complete_as diffusiongemma -m folder doc
        complete_as diffusiongemma trace --o
        complete_as diffusiongemma trace --picture ""
        complete_as diffusiongemma evaluate --task s
        complete_as diffusiongemma help ev
        complete_as diffusiongemma completion z
        complete_as diffusiongemma -m fol
        """
    )
    shell = subprocess.run(
        ["bash", "words"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert shell.stdout.splitlines() == [
        " ".join([*VERBS, HELP]),
        "doctor",
        "--out --offline --option",
        "moving strip",
        "subtraction sorting sudoku4x4",
        "evaluate",
        "zsh",
        "folder",
    ]


def test_completion_is_for_a_shell_that_there_is(refused: Refused, call: Call) -> None:
    assert refused("completion").startswith("no shell is named; name one of bash, zsh")
    assert refused("completion", "bsh") == "unknown shell 'bsh'; did you mean 'bash'?"
    assert "diffusiongemma" in call("completion", "zsh").out


def test_help_is_light() -> None:
    """Nothing heavy is read to say how any verb is used, or which one was meant."""
    code = (
        "import sys; from diffusiongemma.cli.main import main\n"
        "for word in ('evalaute', *sys.argv[1:]): main(['help', word]); main([word, '-h'])\n"
        "heavy = {'torch', 'numpy', 'PIL', 'jinja2', 'huggingface_hub'} & set(sys.modules)\n"
        "print(heavy, end='')"
    )
    done = subprocess.run(
        [COMMAND[0], "-c", code, *VERBS], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.stdout.splitlines()[-1] == "set()"
