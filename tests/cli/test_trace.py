"""`diffusiongemma trace`: what it records is what the door gives, and files are what was asked."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import diffusiongemma as dg
from cli_help import ENVIRONMENT, QUICK, Call
from diffusiongemma.cli.film import moving, strip
from diffusiongemma.cli.replay import page
from diffusiongemma.engine.trace_file import read, write
from toy_trace import settle

OPTIONS = {"seed": 3, "max_new_tokens": 20, "max_denoising_steps": 4}
Refused = Callable[..., str]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A trace's file."""
    return write(settle([["a", "b"], ["c"]]), tmp_path / "saved.jsonl")


def test_it_records_what_the_door_gives(words: Path, call: Call, tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    done = call("trace", "-m", words, "hello", *QUICK, "--out", file)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{file}  {file.stat().st_size / 1000:,.1f} kB\n"
    reply = read(file).finished.reply
    wanted = dg.load(words).generate("hello", **OPTIONS)
    assert (reply.text, reply.tokens, reply.stats.steps) == (
        wanted.text,
        wanted.tokens,
        wanted.stats.steps,
    )


def test_a_page_is_written_where_nothing_is_named(
    words: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("trace", "-m", words, "hello", *QUICK)
    assert done.code == 0 and done.out.startswith("trace.html  ")
    assert [file.name for file in tmp_path.iterdir()] == ["trace.html"]
    text = (tmp_path / "trace.html").read_text("utf-8")
    assert text.startswith("<!doctype html>") and str(words.parent) not in text


def test_options_reach_the_model(words: Path, call: Call, tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    given = ("-s", "be brief", "--think", "--t-max", "0.7", "--canvas-length", 8)
    assert call("trace", "-m", words, "hello", *QUICK, *given, "--out", file).code == 0
    made = read(file)
    assert made.about.options["system"] == "be brief"
    assert (made.about.options["think"], made.about.options["t_max"]) == (True, 0.7)
    assert len(made.canvases()[0][0][0].best) == 8
    options = {"system": "be brief", "think": True, "t_max": 0.7, "canvas_length": 8}
    reply = dg.load(words).generate("hello", **OPTIONS, **options)
    assert made.finished.reply.tokens == reply.tokens


def test_a_checkpoint_without_words_is_traced_by_ids(
    bare: Path, call: Call, tmp_path: Path
) -> None:
    file = tmp_path / "run.jsonl"
    assert call("trace", "-m", bare, "40 41 42", *QUICK, "--out", file).code == 0
    made = read(file)
    assert made.about.prompt == "token ids 40 41 42"
    assert {token.kind for token in made.tokens.values()} == {"id"}


def test_everything_is_drawn_from_a_saved_trace(saved: Path, call: Call, tmp_path: Path) -> None:
    names = ("a.html", "a.jsonl", "a.svg")
    given = [word for name in names for word in ("--out", tmp_path / name)]
    done = call("trace", "--from", saved, *given, "--canvas", 2)
    assert done.code == 0, done.err
    made = read(saved)
    drawn = (page(made), saved.read_text("utf-8"), moving(made, 1))
    for name, text in zip(names, drawn, strict=True):
        assert (tmp_path / name).read_text("utf-8") == text
    assert len(done.out.splitlines()) == 3
    of_moments = ["--out", tmp_path / "s.SVG", "--picture", "strip"]
    assert call("trace", "--from", saved, *of_moments).code == 0
    assert (tmp_path / "s.SVG").read_text("utf-8") == strip(made, 0)


def test_the_trace_itself_may_go_to_standard_output(
    saved: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("trace", "--from", saved, "--json")
    wanted = [json.loads(line) for line in saved.read_text("utf-8").splitlines()]
    assert [json.loads(line) for line in done.out.splitlines()] == wanted
    assert (done.err, [file.name for file in tmp_path.iterdir()]) == ("", ["saved.jsonl"])
    done = call("trace", "--from", saved, "--json", "--out", "a.html")
    assert len(done.out.splitlines()) == len(wanted) and done.err.startswith("a.html  ")


def test_drawing_needs_no_torch(saved: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from diffusiongemma.cli.main import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print({'torch', 'numpy', 'tokenizers', 'PIL'} & set(sys.modules))"
    )
    words = ["trace", "--from", saved, "--out", "a.html", "--out", "a.svg", "--out", "a.jsonl"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


def test_what_belongs_to_a_run_is_refused_beside_a_trace(saved: Path, refused: Refused) -> None:
    for words, name in [
        (["hello"], "prompt"),
        (["-m", "x"], "model"),
        (["--seed", "0"], "seed"),
        (["--t-max", "0.5"], "sampling"),
        (["--think"], "think"),
    ]:
        said = refused("trace", "--from", saved, *words)
        assert (
            said == f"--from draws a trace that is there, and '{name}' belongs to a run; omit one"
        )


def test_what_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, refused: Refused
) -> None:
    nowhere = tmp_path / "none" / "x.html"
    said = refused("trace", "-m", "does not exist", "hello", "--out", nowhere)
    assert said == f"'{nowhere}' cannot be written: there is no such folder; make it first"
    said = refused("trace", "-m", "x", "hello", *["--out", tmp_path / "a.svg"] * 2)
    assert said.startswith("two of the files have one name")
    for flag, value in (("--canvas", "2"), ("--picture", "strip")):
        said = refused("trace", "-m", "x", "hello", flag, value)
        assert said.startswith(f"{flag} has no meaning without --out FILE.svg; add it, or omit")
    said = refused("trace", "-m", "x", "hello", "--canvas", "0", "--out", tmp_path / "a.svg")
    assert said == "--canvas: must be a whole number from 1 to 1,000,000, got '0'"
    said = refused("trace", "-m", "x", "hello", "--out", "run.pdf")
    assert said == "--out: the ending says what is written, .jsonl, .html, .svg; got 'run.pdf'"
    assert list(tmp_path.iterdir()) == []


def test_a_canvas_that_is_not_there(saved: Path, refused: Refused, tmp_path: Path) -> None:
    said = refused("trace", "--from", saved, "--canvas", 3, "--out", tmp_path / "a.svg")
    assert said == "the trace has canvases 1 to 2, got 3; name one of them"


def test_a_file_that_is_no_trace(words: Path, refused: Refused) -> None:
    said = refused("trace", "--from", words / "config.json", "--out", words.parent / "x.html")
    assert "config.json', line 1 needs 'kind' as str, got None; is this a trace?" in said


def test_a_prompt_may_spell_the_end_of_a_script(words: Path, call: Call, tmp_path: Path) -> None:
    file = tmp_path / "x.html"
    evil = "</script><script>alert(1)</script>"
    assert call("trace", "-m", words, evil, *QUICK, "--out", file).code == 0
    text = file.read_text("utf-8")
    assert evil not in text and text.count("</script>") == 2
    data = text.partition('id="data">')[2].partition("</script>")[0]
    assert json.loads(data)["lines"][0]["prompt"] == evil
