"""The examples show what they say, on the small model inside the package, and are short."""

import ast
import json
import re
import runpy
import sys
from collections.abc import Callable

import pytest

from cli_help import ROOT
from diffusiongemma.cli.watching import Pace

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
Show = Callable[..., str]


@pytest.fixture
def shows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Show:
    """Run an example; gives what it printed."""

    def run(name: str, *words: str) -> str:
        file = ROOT / "examples" / f"{name}.py"
        assert name == "demo" or len(file.read_text().splitlines()) < 40
        monkeypatch.setattr(sys, "argv", [str(file), *words])
        runpy.run_path(str(file), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_all_are_tried_here() -> None:
    tried = {"custom_rule", "demo", "generate", "many", "steps", "stream"}
    assert {file.stem for file in EXAMPLES} == tried


def test_another_rule_takes_another_number_of_steps(shows: Show) -> None:
    lines = shows("custom_rule").splitlines()[1:]
    counts = {line.partition(": ")[0]: ast.literal_eval(line.partition(": ")[2]) for line in lines}
    assert len(counts) == 5 and {"Margin(times=2)", "EntropyBound(bound=3.0)"} <= counts.keys()
    for place in range(3):
        assert len({count[place] for count in counts.values()}) > 1


def test_many_answers_are_whole_and_those_that_come_alone(shows: Show) -> None:
    said = shows("many")
    answers = [ast.literal_eval(one) for one in re.findall(r"    ('.*') \(\d+ tokens\)", said)]
    assert answers[:2] == ["7 9 11 30 52", "nretnal"]
    assert json.loads(answers[2]) == {"name": "Ada", "age": 36, "city": "Bern"}
    assert "alone, the second one is the same" in said


def test_a_canvas_that_is_turned_around_is_seen(shows: Show) -> None:
    *rows, last = shows("steps").splitlines()[2:]
    left = [row.split()[1:3] for row in rows]
    turned = [row.split()[3:5] for row in rows]
    assert left[0] == turned[0] and left[1:] != turned[1:]
    doubts = [float(nats) for nats, _ in left]
    assert doubts[-1] < doubts[0]
    assert re.fullmatch(r"the last canvases agree in \d+ of 32 tokens", last)


def test_one_question(shows: Show) -> None:
    said = shows("generate", "Reverse: lantern")
    assert "\nnretnal\n" in said and "tokens per forward, because: stop" in said


def test_a_stream_ends_with_the_answer(shows: Show) -> None:
    assert re.search(r"^7 9 11 30 52\nsteps of each canvas: \(\d", shows("stream"), re.MULTILINE)


def test_the_demo_is_mostly_right(shows: Show) -> None:
    said = shows("demo", "3")
    right = re.search(r"^(\d) of 7 right", said, re.MULTILINE)
    assert right is not None and int(right[1]) >= 5
    assert said.count("\n> ") == 7


def test_the_demo_has_a_pace(shows: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    """None in a pipe; one that is asked for is kept at every step."""
    waits: list[float] = []
    monkeypatch.setattr(Pace, "wait", lambda pace: waits.append(pace.seconds))
    shows("demo", "3")
    assert set(waits) == {0.0}
    waits.clear()
    shows("demo", "3", "--pace", "0.25")
    assert len(waits) > 7 and set(waits) == {0.25}
