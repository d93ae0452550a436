"""Traces: they hold what the stream gave, come back from a file as they were, and stay bounded."""

import itertools
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Backend

import diffusiongemma as dg
from diffusiongemma.core.errors import InputError
from diffusiongemma.dialog.tokenizer import Tokenizer
from diffusiongemma.engine.events import Committed, Finished, Refined
from diffusiongemma.engine.recorder import DIGITS, read_token, record
from diffusiongemma.engine.trace import Token, Trace, clean
from diffusiongemma.engine.trace_file import lines, read, write, write_whole
from toy_trace import settle
from toys_words import FIRST_BYTE

QUICK: dict[str, Any] = {"max_new_tokens": 40, "max_denoising_steps": 5}


@pytest.fixture(scope="module")
def trace(speaks_words: dg.Gemma) -> Trace:
    return record(speaks_words, "hello", seed=4, **QUICK)


def test_it_holds_what_the_stream_gave(speaks_words: dg.Gemma, trace: Trace) -> None:
    given = list(speaks_words.stream("hello", seed=4, **QUICK))
    assert len(given) == len(trace.events) > 10
    for one, kept in zip(given, trace.events, strict=True):
        match one, kept:
            case Refined(), Refined():
                rounded = tuple(round(entropy, DIGITS) for entropy in one.entropy)
                temperature = round(one.temperature, 6)
                assert kept == replace(one, entropy=rounded, temperature=temperature)
            case Committed(), Committed():
                assert kept == one
            case Finished(), Finished():
                stats = replace(one.reply.stats, seconds=0.0)
                assert replace(kept.reply.stats, seconds=0.0) == stats
                assert (kept.reply.text, kept.reply.tokens) == (one.reply.text, one.reply.tokens)
            case _:
                pytest.fail(f"{kept} stands for {one}")


def test_a_step_continues_the_one_before(trace: Trace) -> None:
    for steps, commit in trace.canvases():
        for one, other in itertools.pairwise(steps):
            assert other.before == one.after
        kept = [p for p, flag in enumerate(steps[0].accepted) if not flag]
        assert kept and commit.tokens == steps[-1].best[: len(commit.tokens)]


def test_its_first_line_says_what_led_to_it(trace: Trace, speaks_words: dg.Gemma) -> None:
    about = trace.about
    assert (about.prompt, about.seed, about.model) == ("hello", 4, speaks_words.folder.name)
    assert about.options["max_denoising_steps"] == 5
    assert about.options["canvas_length"] == 16
    assert about.options["entropy_bound"] == speaks_words.sampler.entropy_bound
    assert about.device == "cpu float32"
    assert set(about.versions) == {"diffusiongemma", "python", "torch"}
    assert str(speaks_words.folder.parent) not in json.dumps(list(lines(trace)))


def test_a_seed_that_was_drawn_is_noted(speaks_words: dg.Gemma) -> None:
    first = record(speaks_words, "hello", **QUICK)
    again = record(speaks_words, "hello", seed=first.about.seed, **QUICK)
    assert again.events[:-1] == first.events[:-1]
    assert first.finished.reply.stats.seed == first.about.seed


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("owner/name", "owner/name"),
        ("/home/me/models/small", "small"),
        (Path(__file__).parent, "engine"),
        ("hub/models--google--gem/snapshots/0a1b", "google/gem"),
    ],
)
def test_a_path_is_not_told(speaks_words: dg.Gemma, model: str | Path, name: str) -> None:
    given = os.fspath(model)
    assert record(speaks_words, "x", seed=1, model=given, **QUICK).about.model == name


def test_prompts_of_every_kind_are_noted_as_text(speaks_words: dg.Gemma) -> None:
    content = [{"type": "text", "text": "look"}]
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": content}]
    said = record(speaks_words, messages, seed=1, think=True, **QUICK).about
    assert said.prompt == "system: be brief\nuser: look"
    assert said.options["think"] is True
    assert record(speaks_words, [40, 41], seed=1, **QUICK).about.prompt == "token ids 40 41"


def test_it_comes_back_from_its_file(trace: Trace, tmp_path: Path) -> None:
    file = write(trace, tmp_path / "run.jsonl")
    assert read(file) == trace
    kinds = [json.loads(line)["kind"] for line in file.read_text("utf-8").splitlines()]
    assert kinds[:3] == ["run", "draft", "step"] and kinds[-1] == "end"
    assert kinds.count("draft") == kinds.count("commit") == len(trace.canvases())


def test_tools_stops_and_ids_come_back_too(
    speaks_words: dg.Gemma, speaks_ids: dg.Gemma, tmp_path: Path
) -> None:
    plain = record(speaks_words, "hello", seed=4, **QUICK).finished.reply.text
    for made in (
        record(speaks_words, "hello", seed=4, stop=[plain[3]], **QUICK),
        record(speaks_ids, [9, 8, 7], seed=4, **QUICK),
        settle([["a", "b"], ["c"]]),
    ):
        assert read(write(made, tmp_path / "run.jsonl")) == made


def test_beyond_its_limit_only_last_steps_are_kept(speaks_ids: dg.Gemma, tmp_path: Path) -> None:
    whole = record(speaks_ids, [9, 8, 7], seed=4, **QUICK)
    short = record(speaks_ids, [9, 8, 7], seed=4, limit=6 * 8, **QUICK)
    assert len(whole.canvases()) == len(short.canvases()) == 5
    assert short.canvases()[0] == whole.canvases()[0]
    for (every, one), (kept, other) in zip(whole.canvases()[2:], short.canvases()[2:], strict=True):
        assert (kept, other) == (every[-1:], one)
    lost = sum(len(s) for s, _ in whole.canvases()) - sum(len(s) for s, _ in short.canvases())
    assert short.left_out == lost > 0
    assert read(write(short, tmp_path / "run.jsonl")) == short


def test_a_file_is_written_whole_or_not_at_all(
    trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_whole(tmp_path / "a.txt", "before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match=r"a\.txt' cannot be written: No space left"):
        write(trace, file)
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_what_is_no_file_cannot_be_written(trace: Trace, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be written: Is a directory"):
        write(trace, tmp_path)
    with pytest.raises(InputError, match=r"cannot be written: No such file"):
        write(trace, tmp_path / "none" / "run.jsonl")


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("before")
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", "after")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "after"


def test_byte_tokens_read_as_text_marks_or_bytes(speaks_words: dg.Gemma) -> None:
    assert speaks_words.chat is not None
    tokenizer = speaks_words.chat.tokenizer
    mark = tokenizer.id("<turn|>")
    assert mark is not None
    assert read_token(mark, tokenizer) == Token("mark", "<turn|>")
    assert read_token(FIRST_BYTE + ord("a"), tokenizer) == Token("text", "a")
    assert read_token(FIRST_BYTE + ord("\n"), tokenizer) == Token("text", "\n")
    assert read_token(FIRST_BYTE + 0x1B, tokenizer) == Token("text", "·")
    assert read_token(FIRST_BYTE + 0xE2, tokenizer) == Token("bytes", "E2")
    assert read_token(9_999, tokenizer) == Token("id", "9999")
    assert read_token(7, None) == Token("id", "7")


def test_tokens_of_the_other_kind_of_tokenizer() -> None:
    """SentencePiece's way: a block for a space, `<0xE2>` for a byte; and a decoder that trims."""
    names = ["▁moon", "shine", "<0xE2>", "<turn|>", "\u202e", "e\u0301", "\u0301"]
    backend = Backend(models.BPE({name: n for n, name in enumerate(names)}, []))
    backend.decoder = decoders.Sequence(
        [
            *(decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([AddedToken("<turn|>", special=True)])
    tokenizer = Tokenizer(backend)
    assert [read_token(n, tokenizer) for n in range(7)] == [
        Token("text", " moon"),
        Token("text", "shine"),
        Token("bytes", "E2"),
        Token("mark", "<turn|>"),
        Token("text", "·"),
        Token("text", "e\u0301"),
        Token("text", "\u25cc\u0301"),
    ]


def test_clean_text_cannot_steer() -> None:
    assert clean("a\nb c") == "a\nb c"
    assert clean("\x1b[2J\u202eb\u2028\ud800\ufffe\t") == "·[2J·b····"


def broken(change: Callable[[list[Any]], None]) -> str:
    """A trace's file, changed."""
    parsed = [json.loads(json.dumps(line)) for line in lines(settle([["a", "b"], ["c"]], steps=3))]
    change(parsed)
    return "\n".join(line if isinstance(line, str) else json.dumps(line) for line in parsed)


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 1


def put(number: int, **fields: Any) -> Callable[[list[Any]], None]:
    return lambda found: found[number].update(fields)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda found: found.clear(), "has no end line"),
        (lambda found: found.pop(), "has no end line"),
        (lambda found: found.pop(0), "line 1 must be a trace's first line"),
        (lambda found: found.append(found[0]), "must be a trace's first line"),
        (lambda found: found.append(found[2]), "line 13 stands behind the end"),
        (lambda found: found.pop(1), "shows a token that no 'words' explains"),
        (lambda found: found.insert(2, "[1]"), "line 3 must be a JSON object"),
        (lambda found: found.insert(2, "{"), "line 3 is not JSON"),
        (lambda found: found.insert(2, "[" * 100_000), "line 3 is not JSON"),
        (lambda found: found.insert(5, {**found[5]}), "line 7 must be of a kind that can stand"),
        (put(0, format=2), "must be of format 1"),
        (put(0, seed=-1), "needs 'seed' as a whole number of at least 0"),
        (put(0, prompt=7), "needs 'prompt' as str"),
        (put(1, tokens=[]), "needs lists of one length"),
        (put(2, kind="stp"), "must be of a kind that can stand here, got 'stp'"),
        (put(2, best=[True, 1]), "needs 'best' as a list of token ids"),
        (put(2, best=[99_999, 5]), "shows a token that no 'words' explains, got 99999"),
        (put(2, entropy=[float("nan"), 1]), "NaN is no number in JSON"),
        (put(0, options={"entropy_bound": float("inf")}), "Infinity is no number in JSON"),
        (put(2, entropy=[10**400, 1]), "needs 'entropy' as a list of numbers from 0"),
        (put(2, entropy=[1e308, 1]), "needs 'entropy' as a list of numbers from 0"),
        (put(0, options={"a": nested(60)}), "line 1 must be a JSON object"),
        (put(0, prompt="\ud800"), "has half a character in 'prompt'"),
        (put(2, words={"1" * 5000: ["text", "x"]}), "needs 'words' as"),
        (lambda found: found[-1]["stats"].update(steps=[0]), "needs the steps, at least one"),
        (put(2, entropy=[1, 2, 3]), "needs lists of one length"),
        (put(2, accepted="0x"), "needs 'accepted' as a text of 0 and 1"),
        (put(2, temperature=None), "needs 'temperature' as a number"),
        (put(2, words={"5": ["loud", "x"]}), "needs 'words' as"),
        (put(-1, stats={"steps": []}), "needs 'seed' as int"),
        (put(-1, tool_calls=[3]), "must be a JSON object"),
        (put(-1, pieces=[["a"]]), "needs 'pieces' as a list"),
    ],
)
def test_a_damaged_trace_says_where(
    change: Callable[[list[Any]], None], sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "run.jsonl"
    file.write_text(broken(lambda found: None))
    read(file)
    file.write_text(broken(change))
    with pytest.raises(InputError) as raised:
        read(file)
    assert sentence in str(raised.value)
    assert "run.jsonl'" in str(raised.value)


def test_files_that_are_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"cannot be read: No such file"):
        read(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"no text in UTF-8"):
        read(tmp_path / "binary")
    monkeypatch.setattr("diffusiongemma.engine.trace_file.MAX_BYTES", 2)
    with pytest.raises(InputError, match=r"larger than 2 bytes"):
        read(tmp_path / "binary")


def test_words_in_a_foreign_trace_are_cleaned(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    file.write_text(broken(lambda found: found[1]["words"].update({"77": ["text", "\x1b[2J"]})))
    assert read(file).tokens[77] == Token("text", "·[2J")


@pytest.mark.parametrize("text", ["[],", "{},", "0,", "\n"])
def test_more_values_than_any_trace(text: str, tmp_path: Path) -> None:
    """They would take seconds, and fifty times their bytes."""
    path = tmp_path / "trace.jsonl"
    path.write_text('{"kind":"run","options":{"a":[' + text * 11_000_000 + "0]}}")
    with pytest.raises(InputError, match="has more values than any trace, so it is none"):
        read(path)
