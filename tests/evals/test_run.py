"""Evaluation on a random checkpoint: all wrong, and counted."""

import pytest

import diffusiongemma as dg
import toys
from diffusiongemma.core.errors import OptionError
from diffusiongemma.evals.report import interval, rows, table
from diffusiongemma.evals.run import Record, evaluate
from toys_words import SIZE, write_words


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> dg.Gemma:
    folder = tmp_path_factory.mktemp("evals")
    toys.write(toys.Toy(seed=61, vocabulary=SIZE, canvas=16), folder)
    write_words(folder)
    return dg.load(folder)


def test_every_problem_is_asked_once_and_the_same_again(gemma: dg.Gemma) -> None:
    options = {"max_new_tokens": 16, "max_denoising_steps": 2}
    told: list[tuple[int, int]] = []

    def ask() -> list[Record]:
        tell = lambda done, of: told.append((done, of))  # noqa: E731
        return list(evaluate(gemma, ["addition", "sorting"], 5, batch=3, report=tell, **options))

    first, again = ask(), ask()
    assert first == again and told[:4] == [(3, 10), (5, 10), (8, 10), (10, 10)]
    assert [record.task for record in first] == ["addition"] * 5 + ["sorting"] * 5
    assert len({record.prompt for record in first}) == 10
    assert not any(record.right for record in first)
    alone = gemma.generate(first[6].prompt, seed=6, **options)
    assert alone.text == first[6].text


def test_bad_requests_say_what_got_do(gemma: dg.Gemma) -> None:
    with pytest.raises(OptionError, match="unknown task 'adition'; did you mean 'addition'"):
        list(evaluate(gemma, ["adition"], 5))
    with pytest.raises(OptionError, match="at least 1, got 0 and 50"):
        list(evaluate(gemma, ["addition"], 0))


def test_the_table_adds_up() -> None:
    records = [
        Record(
            task="addition", prompt=str(n), expected="1", text="" if n == 0 else "1", right=n > 0,
            steps=(2, 4), new_tokens=7, loop=n == 3,
        )
        for n in range(4)
    ]  # fmt: skip
    line = table(rows(records)).splitlines()[-1]
    assert line == "| addition | 4 | 75.0 % | 30.1 to 95.4 | 3.0 | 1.0 | 1 | 1 |"


def test_the_interval_is_wilson_s() -> None:
    low, high = interval(0, 100)
    assert low == 0.0 and high == pytest.approx(0.0370, abs=1e-4)
    low, high = interval(50, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))
