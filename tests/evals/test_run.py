"""Evaluation on a random checkpoint: all wrong, and counted."""

import re

import pytest

import diffusiongemma as dg
import toys
from diffusiongemma.core.errors import OptionError
from diffusiongemma.dialog.calls import ToolCall
from diffusiongemma.engine.reply import Reply, Stats
from diffusiongemma.evals.report import interval, rows, shapes, table
from diffusiongemma.evals.run import Record, evaluate
from diffusiongemma.evals.tasks import NEXT
from toys_words import SIZE, write_words


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> dg.Gemma:
    folder = tmp_path_factory.mktemp("evals")
    toys.write(toys.Toy(seed=61, vocabulary=SIZE, canvas=16), folder)
    write_words(folder)
    return dg.load(folder)


def test_every_problem_is_asked_once_and_the_same_again(gemma: dg.Gemma) -> None:
    options = {"max_new_tokens": 16, "max_denoising_steps": 2}

    def ask() -> list[Record]:
        return list(evaluate(gemma, ["repair", "extraction"], 5, batch=3, **options))

    first, again = ask(), ask()
    assert first == again
    assert [record.task for record in first] == ["repair"] * 35 + ["extraction"] * 25
    assert len({(record.task, record.shape) for record in first}) == 12
    assert len({record.prompt for record in first}) == 60
    assert not any(record.right for record in first)
    alone = gemma.generate(first[6].prompt, seed=6, **options)
    assert alone.text == first[6].text


class Scripted(dg.Gemma):
    """Answers as it is told, and notes what it was asked."""

    def __init__(self, answer) -> None:
        self.answer, self.asked = answer, []

    def generate_many(self, prompts, *, seed, think, tools, **options):
        self.asked += [(prompt, think, tools) for prompt in prompts]
        return [self.answer(prompt, tools) for prompt in prompts]


def reply(text: str, calls=()) -> Reply:
    stats = Stats(
        seed=0, prompt_tokens=1, new_tokens=3, steps=(1,), revisions=0, seconds=1.0, loop=False
    )
    return Reply(
        text=text,
        thought=None,
        tool_calls=tuple(calls),
        tokens=(1,),
        finish_reason="stop",
        stats=stats,
    )


def reckon(messages, tools) -> Reply:
    """A model that calls its tool with all of the question, then says what the tool said."""
    if messages[-1]["role"] == "tool":
        return reply(messages[-1]["content"])
    function = tools[0]["function"]
    (parameter,) = function["parameters"]["properties"]
    found = re.search(r"\d+ [-+*] \d+", messages[-1]["content"])
    if found is None:
        return reply("no idea")
    return reply("", [ToolCall(function["name"], {parameter: found[0]})])


def test_a_tool_is_called_and_its_result_answered() -> None:
    model = Scripted(reckon)
    records = list(evaluate(model, ["tool call"], 6, tasks=NEXT))
    by_shape = {}
    for record in records:
        by_shape.setdefault(record.shape, []).append(record.right)
    assert not any(by_shape.pop("not needed")) and all(map(all, by_shape.values()))
    assert all(len(tools) == 1 for _, _, tools in model.asked)
    wrong = Scripted(lambda m, t: reply("", [ToolCall("other", {"x": 1})]))
    assert not any(r.right for r in evaluate(wrong, ["tool call"], 2, tasks=NEXT))


def test_thinking_is_asked_for_where_it_is_taught() -> None:
    model = Scripted(lambda m, t: reply("1"))
    list(evaluate(model, ["thinking", "addition"], 1, tasks=NEXT))
    asked = [think for _, think, _ in model.asked]
    assert asked == [True] * 16 + [False] * 17


def test_bad_requests_say_what_got_do(gemma: dg.Gemma) -> None:
    with pytest.raises(OptionError, match="unknown task 'adition'; did you mean 'addition'"):
        list(evaluate(gemma, ["adition"], 5))
    with pytest.raises(OptionError, match="at least 1, got 0 and 50"):
        list(evaluate(gemma, ["addition"], 0))


def test_the_table_adds_up() -> None:
    records = [
        Record(
            task="addition", shape="odd" if n % 2 else "even", prompt=str(n), expected="1",
            text="" if n == 0 else "1", right=n > 0,
            steps=(2, 4), new_tokens=7, loop=n == 3,
        )
        for n in range(4)
    ]  # fmt: skip
    line = table(rows(records)).splitlines()[-1]
    assert line == "| addition | 4 | 75.0 % | 30.1 to 95.4 | 3.0 | 1.0 | 1 | 1 |"
    worst, best = table(shapes(records)).splitlines()[-2:]
    assert worst == "| addition: even | 2 | 50.0 % | 9.5 to 90.5 | 3.0 | 1.0 | 1 | 0 |"
    assert best == "| addition: odd | 2 | 100.0 % | 34.2 to 100.0 | 3.0 | 1.0 | 0 | 1 |"


def test_the_interval_is_wilson_s() -> None:
    low, high = interval(0, 100)
    assert low == 0.0 and high == pytest.approx(0.0370, abs=1e-4)
    low, high = interval(50, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))
