"""An answer that grows: thought, text, calls and ids, as they reach a terminal."""

import contextlib
import json
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

import diffusiongemma as dg
from cli_help import Clock
from diffusiongemma.cli.show import Show
from diffusiongemma.cli.watching import Pace
from diffusiongemma.core.letters import printable
from diffusiongemma.dialog.marks import Opening
from diffusiongemma.dialog.reply import ReplyStream
from diffusiongemma.engine.events import Event
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
def at_a_terminal(term: str = "xterm") -> Iterator[pytest.MonkeyPatch]:
    """What is written is taken to go to a terminal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusiongemma.cli.screen._is_terminal", lambda stream: True)
        patch.setenv("TERM", term)
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


@pytest.mark.parametrize("figures", [True, False])
def test_figures_may_be_left_out(
    gemma: dg.Gemma, capsys: pytest.CaptureFixture[str], figures: bool
) -> None:
    reply = gemma.generate("hi", seed=1, max_new_tokens=1, max_denoising_steps=1)
    with at_a_terminal():
        show = Show(gemma, speaks_ids=False, think=False, live=True, figures=figures)
        show.finish(reply)
    assert (reply.summary in capsys.readouterr().err) is figures


def watched(
    gemma: dg.Gemma,
    capsys: pytest.CaptureFixture[str],
    *,
    seconds: list[float],
    pace: float,
    live: bool = True,
    term: str = "xterm",
) -> tuple[list[str], Clock]:
    """The steps that are drawn of a canvas whose steps take so long, and what the clock saw."""
    clock = Clock()

    def steps() -> Iterator[Event]:
        asked = {"seed": 1, "max_new_tokens": 1, "max_denoising_steps": len(seconds)}
        takes = iter(seconds)
        for event in gemma.stream("hello", **asked):
            if isinstance(event, dg.Refined):
                clock.now = round(clock.now + next(takes), 6)
            yield event

    with at_a_terminal(term) as patch:
        patch.setattr("diffusiongemma.cli.show.time", clock)
        patch.setattr("diffusiongemma.cli.watching.time", clock)
        show = Show(gemma, speaks_ids=False, think=False, live=live, pace=Pace(pace))
        show.follow(steps())
    return re.findall(r"canvas 1, step (\d+), mean", capsys.readouterr().out), clock


def test_it_is_drawn_thirty_times_a_second_at_most(
    gemma: dg.Gemma, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn, clock = watched(gemma, capsys, seconds=[0.010] * 12, pace=0.0)
    assert (drawn, clock.slept) == (["1", "5", "9"], [])


def test_a_pace_holds_up_what_is_quicker_and_nothing_else(
    gemma: dg.Gemma, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn, clock = watched(gemma, capsys, seconds=[0.01, 0.01, 0.09, 0.11, 2.0, 0.05], pace=0.1)
    assert drawn == ["1", "2", "3", "4", "5", "6"]
    assert clock.slept == [0.09, 0.01, 0.05, 0.1]  # the last step is looked at, too
    _, clock = watched(gemma, capsys, seconds=[0.01] * 2, pace=0.25)
    assert clock.slept == [0.1, 0.1, 0.04, 0.1, 0.1, 0.05]
    drawn, clock = watched(gemma, capsys, seconds=[0.001] * 5, pace=0.01)
    assert drawn == ["1", "5"] and clock.slept == [0.009] * 4 + [0.01]


@pytest.mark.parametrize("how", [{"live": False}, {"term": "dumb"}])
def test_what_is_not_drawn_has_no_pace(
    gemma: dg.Gemma, capsys: pytest.CaptureFixture[str], how: dict[str, Any]
) -> None:
    assert watched(gemma, capsys, seconds=[0.01] * 4, pace=0.3, **how)[1].slept == []


class Alarm(Clock):
    """Rings Ctrl-C at its second sleep."""

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if len(self.slept) == 2:
            signal.raise_signal(signal.SIGINT)


def test_a_canvas_that_ctrl_c_holds_back_is_shown_if_it_is_kept(
    gemma: dg.Gemma, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while the last step of the first canvas has its time."""
    talk = gemma.converse(max_new_tokens=30, max_denoising_steps=2)
    events = talk.stream("hello", seed=1)
    with at_a_terminal() as patch:
        show = Show(gemma, speaks_ids=False, think=False, live=True, pace=Pace(0.1))
        clock = Alarm()
        patch.setattr("diffusiongemma.cli.show.time", clock)
        patch.setattr("diffusiongemma.cli.watching.time", clock)
        with pytest.raises(KeyboardInterrupt):
            show.follow(events)
        events.close()
        assert "canvas 1, step 2" in capsys.readouterr().out
        kept = talk.messages[-1]["content"]
        show.stop(kept)
    assert kept and capsys.readouterr().out == printable(kept) + "\n"
