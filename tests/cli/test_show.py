"""An answer that grows: thought, text, calls and ids, as they reach a terminal."""

import contextlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest

import diffusiongemma as dg
from diffusiongemma.cli.show import Show
from diffusiongemma.dialog.marks import Opening
from diffusiongemma.dialog.reply import ReplyStream
from toys_words import FIRST_BYTE, MARKS

MARK = {name: number for number, name in enumerate(MARKS)}


@pytest.fixture(scope="module")
def gemma(words) -> dg.Gemma:
    return dg.load(words)


def ids(text: str) -> list[int]:
    """Token ids of a text, with `<|marks>` as marks."""
    found = []
    for part in re.split(r"(<\|?[a-z_]+\|?>)", text):
        found += [MARK[part]] if part in MARK else [FIRST_BYTE + byte for byte in part.encode()]
    return found


def events(
    gemma: dg.Gemma, canvases: list[str], opening: Opening | None
) -> Iterator[dg.Committed | dg.Finished]:
    """What the door would tell of these canvases."""
    assert gemma.chat is not None
    stream, tokens = ReplyStream(gemma.chat.marks, opening=opening), []
    for number, canvas in enumerate(canvases):
        new = ids(canvas)
        tokens += new
        last = number == len(canvases) - 1
        said = stream.push(new, final=last)
        yield dg.Committed(canvas=number, tokens=tuple(new), text=said.text, thought=said.thought)
    reply = gemma.generate("hi", seed=1, max_new_tokens=1, max_denoising_steps=1)
    yield dg.Finished(
        reply=replace(
            reply,
            text=stream.text,
            thought=stream.thought,
            tool_calls=tuple(stream.tool_calls),
            tokens=tuple(tokens),
        )
    )


@contextlib.contextmanager
def at_a_terminal() -> Iterator[pytest.MonkeyPatch]:
    """What is written is taken to go to a terminal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusiongemma.cli.screen._is_terminal", lambda stream: True)
        patch.setenv("TERM", "xterm")
        patch.delenv("NO_COLOR", raising=False)
        yield patch


def shown(
    gemma: dg.Gemma,
    capsys: pytest.CaptureFixture[str],
    *canvases: str,
    think: bool = True,
    ids: bool = False,
    opening: Opening | None = None,
) -> list[str]:
    """What has been printed after each canvas, and after the end."""
    with at_a_terminal():
        show = Show(gemma, speaks_ids=ids, think=think, live=True)
        seen = [""]

        def watched() -> Iterator[dg.Committed | dg.Finished]:
            for event in events(gemma, list(canvases), opening):
                yield event
                seen.append(seen[-1] + capsys.readouterr().out)

        show.finish(show.follow(watched()))
        return [*seen[1:], seen[-1] + capsys.readouterr().out]


def test_a_thought_is_dimmed_and_comes_first(
    gemma: dg.Gemma, capsys: pytest.CaptureFixture[str]
) -> None:
    canvases = ("<|channel>thought\nlet me", " see<channel|>It is ", "blue.")
    seen = shown(gemma, capsys, *canvases)
    assert seen == [
        "\x1b[2mlet me\x1b[22m",
        "\x1b[2mlet me\x1b[22m\x1b[2m see\x1b[22m\nIt is ",
        "\x1b[2mlet me\x1b[22m\x1b[2m see\x1b[22m\nIt is blue.",
        "\x1b[2mlet me\x1b[22m\x1b[2m see\x1b[22m\nIt is blue.\n",
    ]
    assert shown(gemma, capsys, *canvases, think=False)[-1] == "It is blue.\n"


def test_a_thought_that_the_prompt_began_is_dimmed_too(
    gemma: dg.Gemma, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gemma.chat is not None
    opening = gemma.chat.marks.opening(ids("<turn|>\n<|channel>thought\n"))
    canvases = ("let me", " see\n<channel|>It is ", "blue.")
    seen = shown(gemma, capsys, *canvases, opening=opening)
    assert seen[-1] == "\x1b[2mlet me\x1b[22m\x1b[2m see\x1b[22m\nIt is blue.\n"
    assert shown(gemma, capsys, *canvases, opening=opening, think=False)[-1] == "It is blue.\n"


def test_calls_are_lines_of_json(gemma: dg.Gemma, capsys: pytest.CaptureFixture[str]) -> None:
    call = '<|tool_call>call:now{zone:<|"|>CET<|"|>}<tool_call|>'
    seen = shown(gemma, capsys, "One moment.", call)
    head, line, _ = seen[-1].split("\n")
    assert head == "One moment."
    assert json.loads(line) == {"name": "now", "arguments": {"zone": "CET"}}


def test_a_call_that_was_none_is_not_lost(
    gemma: dg.Gemma, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(gemma, capsys, "Well, ", "<|tool_call>oops")[-1] == "Well, oops\n"
    seen = shown(gemma, capsys, "Well, ", "<|tool_call>oops<tool_call|> so", " it is")
    assert seen[-1] == "Well, oops so it is\n"


def test_ids_are_words_of_their_own(gemma: dg.Gemma, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(gemma, capsys, "ab", "c", ids=True)[-1] == "129 130 131\n"


def test_it_is_drawn_thirty_times_a_second_at_most(
    gemma: dg.Gemma, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a clock that goes on by 10 ms a step."""
    steps = {"seed": 1, "max_new_tokens": 1, "max_denoising_steps": 12}
    clock = SimpleNamespace(monotonic=itertools.count(5.0, 0.010).__next__)
    with at_a_terminal() as patch:
        patch.setattr("diffusiongemma.cli.show.time", clock)
        show = Show(gemma, speaks_ids=False, think=False, live=True)
        show.follow(gemma.stream("hello", **steps))
    drawn = re.findall(r"canvas 1, step (\d+), mean", capsys.readouterr().out)
    assert drawn == ["1", "5", "9"]
