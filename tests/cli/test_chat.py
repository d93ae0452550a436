"""`diffusiongemma chat`: at a terminal, with its keys and its sizes; and over pipes."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import diffusiongemma as dg
from cli_help import COMMAND, ENVIRONMENT, QUICK, Call
from cli_talk import OPTIONS, Open, replies, seen_in
from cli_window import Window
from diffusiongemma.cli.lines import Keys
from diffusiongemma.cli.options import flag_of
from diffusiongemma.core.letters import printable
from toys_words import MARKS

LONG = ["--seed", "3", "--max-new-tokens", "480", "--max-denoising-steps", "40"]
DRAWN = "mean entropy"  # a status that stands below a canvas


@pytest.fixture(scope="module")
def endless(words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network without an end mark: its answers go on until they are stopped."""
    import shutil

    from cli_help import edit

    folder = tmp_path_factory.mktemp("endless") / "words"
    shutil.copytree(words, folder)
    # Placeholders of pictures are never written.
    edit(folder / "generation_config.json", eos_token_id=MARKS.index("<|image|>"))
    return folder


def test_a_conversation_at_a_terminal(opened: Open, words: Path) -> None:
    window = opened(*QUICK)
    window.until(window.asks)
    window.type("hello\n")
    window.until(window.asks)
    window.type("and then?\n")
    window.until(window.asks)
    first, second = replies(words, "hello", "and then?")
    rows = window.text.split("\n")
    assert rows[rows.index("> hello") + 1 :][: len(seen_in(60, first))] == seen_in(60, first)
    assert rows[rows.index("> and then?") + 1 :][: len(seen_in(60, second))] == seen_in(60, second)
    assert DRAWN not in window.text and DRAWN.encode() in window.raw
    assert "prompt tokens reused, seed 3" in "".join(rows)
    assert b"\x1b[38;5;" in window.raw
    window.type("\x04")
    assert window.close() == 0


def test_commands(opened: Open, words: Path) -> None:
    window = opened(*QUICK, columns=140)
    window.until(window.asks)
    said = [
        ("/help", "/undo   take the last question and its answer back"),
        ("/undo", "nothing was said yet"),
        ("/seed 12", "seed 12"),
        ("/seed many", "error: a seed is a whole number from 0 to 2**64 - 1, got"),
        ("/seed", "a new seed for each answer"),
        ("/sed 3", "error: unknown command '/sed'; did you mean '/seed'?"),
        ("/new please", "error: /new takes nothing, got 'please'"),
        ("/seed 3", "seed 3"),
        ("hello", ", seed 3"),
        ("/undo", "taken back; 0 messages are left"),
        ("hello", ", seed 3"),
        ("/new", "a new conversation"),
        ("x" * 600, "error: the prompt has "),
        ("//x", ", seed 3"),
    ]
    for line, answer in said:
        before = window.text.count(answer)
        window.type(line + "\n")
        window.until(window.asks)
        assert window.text.count(answer) > before, (line, window.text)
    (answer,) = replies(words, "/x")
    assert "\n".join(seen_in(140, answer)) in window.text
    window.type("/quit\n")
    assert window.close() == 0


def test_ctrl_c_stops_an_answer(opened: Open, endless: Path) -> None:
    window = opened("-m", endless, *LONG, held=True)
    window.until(window.asks)
    window.type("hello\n")
    window.step_until("canvas 3, step")
    assert not window.echoes
    window.type("typed into it")
    window.type("\x03")
    window.until(window.asks)
    assert "stopped; what is written stays" in window.text
    assert DRAWN not in window.text and "typed into" not in window.text
    window.type("/undo\n")
    window.until("taken back; 0 messages are left")
    window.type("again\n")
    window.step_until("canvas 1, step")
    window.type("\x03")
    window.until("stopped, and not remembered")
    window.until(window.asks)
    assert b"Traceback" not in window.raw


def begin_a_line(window: Window, text: str) -> None:
    """Type it, and watch until the program has it."""
    window.type(text)
    window.until(lambda: window.shown[window.screen.cursor.y] == f"> {text}".rstrip())
    window.until(window.waits)


def test_ctrl_c_at_the_prompt_clears_the_line(opened: Open) -> None:
    window = opened(*QUICK)
    window.until(window.asks)
    for text in ("half a li", "", "the other half"):
        window.type("hello\n")  # what a Ctrl-C said before is over with it
        window.until(window.asks)
        begin_a_line(window, text)
        window.type("\x03")
        window.until(window.asks)
        assert window.text.endswith(f"> {text}^C\nCtrl-C once more leaves, and so does Ctrl-D\n>")
        begin_a_line(window, "another li")  # so it is not meant to leave
        window.type("\x03")
        window.until(window.asks)
    window.type("/undo\n")
    window.until("taken back; 4 messages are left")
    window.until(window.asks)
    window.type("\x03")
    window.until(window.asks)
    window.type("\x03")
    assert window.close() == 130
    assert b"Traceback" not in window.raw


def test_ctrl_c_right_after_an_answer_changes_nothing(opened: Open, words: Path) -> None:
    """It was meant to stop it."""
    window = opened(*QUICK, held=True)
    window.until(window.asks)
    window.type("hello\n")
    window.step_until(", seed 3")
    assert window.screen.title == "answered"
    window.type("\x03")
    window.let_go()
    window.until(lambda: window.text.endswith("\n^C>"))  # as the terminal shows this key
    (answer,) = replies(words, "hello")
    assert "\n".join(seen_in(60, answer)) in window.text and "Ctrl-C once" not in window.text
    window.type("/undo\n")
    window.until("taken back; 0 messages are left")


def test_ctrl_c_is_heard_once_and_where_it_means_something() -> None:
    keys = Keys()
    with keys.ours():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), keys:
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        with keys:
            pass
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_does_not_wait_for_the_pace(opened: Open, endless: Path) -> None:
    window = opened("-m", endless, *LONG, "--pace", 60, "--no-stats")
    window.until(window.asks)
    window.type("hello\n")
    window.until("canvas 1, step 1,")
    window.type("\x03")
    window.until("stopped, and not remembered", seconds=50)


@pytest.mark.parametrize("size", [(60, 5), (7, 30), (200, 2), (200, 1)])
def test_a_canvas_larger_than_the_window(opened: Open, words: Path, size: tuple[int, int]) -> None:
    columns, lines = size
    many = {"canvas_length": 300, "max_new_tokens": 300, "max_denoising_steps": 60}
    flags = [word for name, value in many.items() for word in (flag_of(name), value)]
    window = opened("--seed", 3, *flags, columns=columns, lines=lines, held=True)
    window.until(window.asks)
    window.type("hello\n")
    window.let_go()
    window.until(window.asks)
    reply = dg.load(words).converse(**many).generate("hello", seed=3)
    drawn = sum(reply.stats.steps) if lines > 1 else 0  # with the status, for which there is room
    assert window.raw.count(b"canvas") == drawn + 1  # the summary says it, too
    assert "\n".join(seen_in(columns, printable(reply.text))) in window.text
    assert "canvas 1" not in window.text and "reading" not in window.text


def test_a_window_that_is_pulled_about(opened: Open, endless: Path) -> None:
    window = opened("-m", endless, *LONG, held=True)
    window.until(window.asks)
    window.type("hello\n")
    for number, size in enumerate([(90, 20), (35, 20), (35, 6), (120, 30), (50, 12)]):
        window.step_until(f"canvas {2 * number + 2}, step")
        window.resize(*size)
    window.let_go()
    window.until(window.asks)
    # Nothing of what was drawn is left, wherever the lines of the answer broke.
    assert DRAWN not in window.text
    assert window.text.endswith("seed 3\n>")


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_what_a_terminal_is_spared(opened: Open, words: Path, variables: dict[str, str]) -> None:
    window = opened(*QUICK, variables=variables)
    window.until(window.asks)
    window.type("hello\n")
    window.until(window.asks)
    (answer,) = replies(words, "hello")
    assert "\n".join(seen_in(60, answer)) in window.text
    assert b"\x1b[38" not in window.raw and b"\x1b[2m" not in window.raw
    assert (DRAWN.encode() in window.raw) is ("TERM" not in variables)


def test_each_line_of_a_pipe_is_a_turn(words: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "chat", "-m", str(words), *QUICK],
        input=b"hello\n\n/undo\nhello\nand then?",
        capture_output=True,
        env=ENVIRONMENT,
        timeout=120,
    )
    talk = dg.load(words).converse(**OPTIONS)
    first, second = (talk.generate(turn, seed=3).text for turn in ("hello", "and then?"))
    assert (done.returncode, done.stderr) == (0, b"taken back; 0 messages are left\n")
    assert done.stdout.decode() == f"{first}\n{first}\n{second}\n"


def test_each_answer_may_be_a_line_of_json(words: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "chat", "--json", "-m", str(words), *QUICK],
        input="hello\nand then?\n",
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
    )
    talk = dg.load(words).converse(**OPTIONS)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (0, "")
    assert [one["text"] for one in found] == [
        talk.generate(turn, seed=3).text for turn in ("hello", "and then?")
    ]
    assert found[1]["stats"]["reused_tokens"] > 0


def test_answers_may_go_elsewhere(opened: Open, words: Path, tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb") as file:
        window = opened(*QUICK, stdout=file.fileno())
        window.until(window.asks)
        window.type("hello\n")
        window.until(window.asks)
        window.type("\x04")
        assert window.close() == 0
    reply = dg.load(words).converse(**OPTIONS).generate("hello", seed=3)
    assert (tmp_path / "out").read_bytes() == (reply.text + "\n").encode()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"\xff\n", "standard input is no text in UTF-8"),
        (b"/sed 3\n", "unknown command '/sed'; did you mean '/seed'?"),
        (b"/seed 99999999999999999999\n", "a seed is a whole number from 0 to 2**64 - 1"),
        (b"x" * 600, "the prompt has "),
    ],
)
def test_mistakes_in_a_pipe_end_it(
    words: Path, text: bytes, sentence: str, refused: Callable[..., str]
) -> None:
    read, write = os.pipe()
    with open(write, "wb") as end:
        end.write(text)
    with open(read, encoding="utf-8") as stdin, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", stdin)
        assert sentence in refused("chat", "-m", words, *QUICK)


def test_a_closed_input(call: Call, words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    done = call("chat", "-m", words)
    assert done.code == 2 and "a chat needs a standard input" in done.err


def test_a_checkpoint_without_words(refused: Callable[..., str], bare: Path) -> None:
    with open(os.devnull, encoding="utf-8") as stdin, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", stdin)
        assert "a conversation needs words" in refused("chat", "-m", bare)
