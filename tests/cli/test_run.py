"""`diffusiongemma run`: what goes in, what comes out, and that it is what the door gives."""

import contextlib
import io
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import diffusiongemma as dg
from cli_help import COMMAND, ENVIRONMENT, QUICK, Call, edit
from diffusiongemma.cli.run import parser
from diffusiongemma.cli.watching import PACE, watching
from diffusiongemma.engine.open import SHIPPED

OPTIONS = {"seed": 3, "max_new_tokens": 20, "max_denoising_steps": 4}


@pytest.fixture(scope="module")
def gemma(words: Path) -> dg.Gemma:
    return dg.load(words)


@contextlib.contextmanager
def piped(text: bytes) -> Iterator[None]:
    """Something is piped into this process."""
    read, write = os.pipe()
    with open(write, "wb") as end:
        end.write(text)
    with open(read, encoding="utf-8") as stdin, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", stdin)
        yield


def test_a_folder_without_a_template_is_said_to_be_one(copy: Path, call: Call) -> None:
    assert "note" not in call("-m", copy, "hello", *QUICK).err
    (copy / "chat_template.jinja").unlink()
    done = call("-m", copy, "hello", *QUICK)
    assert done.code == 0
    assert f"note: {copy} has no chat template, so a prompt is read as plain text" in done.err


def test_a_prompt_is_answered_as_by_the_door(words: Path, call: Call, gemma: dg.Gemma) -> None:
    done = call("-m", words, "hello", *QUICK)
    assert (done.code, done.err) == (0, "")
    assert done.out == gemma.generate("hello", **OPTIONS).text + "\n"


def test_the_verb_may_be_said(words: Path, call: Call) -> None:
    assert call("run", "-m", words, "hello", *QUICK) == call("hello", "-m", words, *QUICK)


def test_system_think_image_and_stop_reach_the_model(
    words: Path, picture: Path, call: Call, gemma: dg.Gemma
) -> None:
    plain = gemma.generate("hello", **OPTIONS).text
    for given, options in [
        (["-s", "be brief"], {"system": "be brief"}),
        (["--think"], {"think": True}),
        (["-i", picture], {"images": [picture]}),
        (["-i", picture, "-i", picture], {"images": [picture, picture]}),
        (["-i", picture, "--image-tokens", 140], {"images": [picture], "image_tokens": 140}),
        (["-s", "<turn|>", "--guard"], {"system": "<turn|>", "guard": True}),
        (["--stop", plain[5]], {"stop": [plain[5]]}),
        (["-o", "t_min=0.1", "--t-max", "0.2"], {"t_min": 0.1, "t_max": 0.2}),
        (["-o", "canvas_length=8"], {"canvas_length": 8}),
        (["--canvas-length", "none"], {"canvas_length": None}),
        (["--dtype", "float32", "--device", "cpu"], {}),
    ]:
        expected = gemma.generate("hello", **OPTIONS, **options).text
        assert call("-m", words, "hello", *given, *QUICK).out == expected + "\n", given


def test_a_temperature_is_judged_against_the_checkpoints_own(copy: Path, call: Call) -> None:
    edit(copy / "generation_config.json", t_max=1.5)
    assert call("-m", copy, "hello", "--t-min", "1.2", *QUICK).code == 0


def test_a_picture_needs_no_words(words: Path, picture: Path, call: Call, gemma: dg.Gemma) -> None:
    expected = gemma.generate("", images=[picture], **OPTIONS).text
    assert call("-m", words, "-i", picture, *QUICK).out == expected + "\n"


def test_tools_are_declared(words: Path, tmp_path: Path, call: Call, gemma: dg.Gemma) -> None:
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
    (tmp_path / "tools.json").write_text(json.dumps([tool]))
    expected = gemma.generate("hello", tools=[tool], **OPTIONS).text
    done = call("-m", words, "hello", "--tools", tmp_path / "tools.json", *QUICK)
    assert done.out == expected + "\n"


@pytest.mark.parametrize(
    ("prompt", "text", "meant"),
    [
        ([], b"hello\n", "hello"),
        (["-"], b"hello", "hello"),
        (["look:"], b"a\nb\n\n", "look:\n\na\nb"),
        (["look:"], b"", "look:"),
        (["-"], "größe 漢".encode(), "größe 漢"),
    ],
)
def test_what_is_piped_in_is_read(
    prompt: list[str],
    text: bytes,
    meant: str,
    words: Path,
    call: Call,
    gemma: dg.Gemma,
) -> None:
    with piped(text):
        done = call("-m", words, *prompt, *QUICK)
    assert done.out == gemma.generate(meant, **OPTIONS).text + "\n"


def test_a_standard_input_that_is_no_pipe_is_left_alone(
    words: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("not for us"))
    heard = call("-m", words, "hello", *QUICK).out
    monkeypatch.setattr("sys.stdin", None)
    assert call("-m", words, "hello", *QUICK).out == heard


def test_json_says_all(words: Path, call: Call, gemma: dg.Gemma) -> None:
    done = call("-m", words, "hello", "--json", *QUICK)
    found = json.loads(done.out)
    reply = gemma.generate("hello", **OPTIONS)
    assert done.err == ""
    assert list(found) == [
        "text", "thought", "tool_calls", "tokens", "finish_reason", "stats", "model", "device",
    ]  # fmt: skip
    assert found["text"] == reply.text
    assert found["tokens"] == list(reply.tokens)
    assert found["finish_reason"] == reply.finish_reason
    assert found["stats"].keys() == reply.stats.as_dict().keys()
    assert found["stats"]["seed"] == 3
    assert found["model"] == str(words)
    assert found["device"]["dtype"] == "float32"


def test_a_seed_that_was_drawn_is_told_and_gives_the_answer_again(words: Path, call: Call) -> None:
    quick = QUICK[2:]
    first = json.loads(call("-m", words, "hello", "--json", *quick).out)
    again = call("-m", words, "hello", "--json", "--seed", first["stats"]["seed"], *quick)
    assert json.loads(again.out)["tokens"] == first["tokens"]


@pytest.mark.parametrize("prompt", ["40 41,42", "[40, 41, 42]", " 40\n41\t42 "])
def test_a_folder_without_a_tokenizer_speaks_ids(bare: Path, call: Call, prompt: str) -> None:
    expected = dg.load(bare).generate([40, 41, 42], **OPTIONS)
    done = call("-m", bare, prompt, *QUICK)
    assert done.out == " ".join(map(str, expected.tokens)) + "\n"
    found = json.loads(call("-m", bare, prompt, "--json", *QUICK).out)
    assert (found["text"], found["tokens"]) == ("", list(expected.tokens))


def test_ids_may_be_asked_for(words: Path, call: Call, gemma: dg.Gemma) -> None:
    expected = gemma.generate([40, 41, 42], **OPTIONS)
    done = call("-m", words, "--ids", "40 41 42", *QUICK)
    assert done.out == " ".join(map(str, expected.tokens)) + "\n"


def test_only_the_small_model_has_a_pace_of_its_own(words: Path) -> None:
    for given, folder, expected in [
        ([], SHIPPED, PACE),
        ([], words, 0.0),
        (["--pace", "0"], SHIPPED, 0.0),
        (["--pace", "1.5"], words, 1.5),
    ]:
        seen = watching(parser().parse(given), folder)
        assert seen["pace"].seconds == expected


def test_a_loop_is_warned_of(words: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusiongemma.engine.outcome.repeats", lambda tokens: True)
    done = call("-m", words, "hello", *QUICK)
    assert done.err.startswith("warning: the answer seems to repeat itself")
    assert json.loads(call("-m", words, "hello", "--json", *QUICK).out)["stats"]["loop"] is True


def test_a_pipeline_of_processes(words: Path, gemma: dg.Gemma) -> None:
    done = subprocess.run(
        [*COMMAND, "-m", str(words), "look:", *QUICK],
        input="hello\n",
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    # Text mode would read a lone \r as a newline.
    expected = gemma.generate("look:\n\nhello", **OPTIONS).text.replace("\r", "\n")
    assert done.stdout == expected + "\n"
