"""Tasks: answers are right, wrong ones are not, and what is held out is never trained on."""

import itertools
import json
import random

import pytest

from diffusiongemma.evals import task as task_module
from diffusiongemma.evals.task import distinct, held_out, problems
from diffusiongemma.evals.tasks import NEXT, TASKS
from diffusiongemma.evals.tasks.sudoku import Sudoku

ALL = {f"taught now: {name}": task for name, task in TASKS.items()} | NEXT
EVERY = [(name, shape) for name, task in ALL.items() for shape in (*task.shapes, *task.unseen)]


@pytest.mark.parametrize("name", ALL)
def test_the_answer_is_right_and_a_damaged_one_is_not(name: str) -> None:
    task = ALL[name]
    for problem in itertools.islice(problems(task, 1, held=True), 50):
        assert task.right(problem, problem.answer) and task.right(problem, f" {problem.answer}\n")
        for wrong in ("", problem.answer[:-1], problem.answer + "0", problem.prompt + "?"):
            assert not task.right(problem, wrong)


@pytest.mark.parametrize("name", ALL)
def test_the_same_seed_gives_the_same_problems_and_none_is_on_both_sides(name: str) -> None:
    task = ALL[name]

    def first(count: int, seed: int, held: bool) -> list[str]:
        drawn = itertools.islice(problems(task, seed, held=held), count)
        return [problem.key or problem.prompt for problem in drawn]

    learned, asked = first(120, 1, False), first(20, 1, True)
    assert learned == first(120, 1, False) and not set(learned) & set(asked)
    assert asked != first(20, 2, True)


@pytest.mark.parametrize(("name", "shape"), EVERY)
def test_every_shape_has_problems_that_are_held_out_and_distinct(name: str, shape: str) -> None:
    found = distinct(ALL[name], shape, 4, seed=1)
    assert len(found) == len({(problem.prompt, problem.before) for problem in found}) == 4
    assert all(problem.shape == shape and held_out(problem) for problem in found)


def test_a_shape_may_have_fewer_than_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_module, "_PATIENCE", 300)
    found = distinct(TASKS["addition"], "1 + 1 digits", 100, seed=1)
    assert len(found) == 12  # of a hundred sums, those that the hash holds out


def test_shapes_are_drawn_alike() -> None:
    for task in ALL.values():
        drawn = [p.shape for p in itertools.islice(problems(task, 3, held=False), 60)]
        assert len(set(drawn)) > min(len(task.shapes), 20) / 2 and set(drawn) <= set(task.shapes)


def test_what_is_unseen_is_never_taught() -> None:
    """Neither the phrasings nor the sentences that are asked as unseen."""
    marks = (" backwards.", "Please sort", "To JSON", "Fix this", "Choose the larger", "Work out")
    marks += (" minus ", "Look at ")
    for task in NEXT.values():
        taught = [p.prompt for p in itertools.islice(problems(task, 5, held=False), 400)]
        asked = [p.prompt for s in task.unseen for p in distinct(task, s, 20, seed=5)]
        for mark in marks[:6]:
            assert not any(mark in prompt for prompt in taught)
        assert not set(asked) & set(taught)
    prompts = {p.prompt for t in NEXT.values() for s in t.unseen for p in distinct(t, s, 20, 5)}
    for mark in marks:
        assert any(mark in prompt for prompt in prompts)


def test_a_fixed_share_is_held_out() -> None:
    dice = random.Random(3)
    task = NEXT["reversing"]
    found = [held_out(task.make(dice.choice(task.shapes), dice)) for _ in range(4000)]
    assert 0.10 < sum(found) / len(found) < 0.15


def test_arithmetic_is_arithmetic() -> None:
    for name in ("addition", "subtraction", "thinking"):
        for problem in itertools.islice(problems(NEXT[name], 1, held=True), 200):
            assert eval(problem.key.removeprefix("What is ").rstrip("?")) == int(problem.answer)
            for step in (problem.thought or "").splitlines():
                term, _, value = step.partition("=")
                assert eval(term) == int(value)
            assert problem.thought is None or problem.thought.endswith(f"={problem.answer}")
    for problem in itertools.islice(problems(NEXT["tool call"], 1, held=True), 200):
        if problem.tool is not None:
            (expression,) = problem.tool.arguments.values()
            assert str(eval(expression)) == problem.tool.result == problem.answer
            assert problem.tool.declaration in (problem.tools() or [])


def test_phrasings_of_one_problem_are_held_out_together() -> None:
    by_key: dict[str, set[bool]] = {}
    for problem in itertools.chain(
        itertools.islice(problems(NEXT["addition"], 1, held=True), 500),
        itertools.islice(problems(NEXT["addition"], 1, held=False), 2000),
    ):
        by_key.setdefault(problem.key, set()).add(held_out(problem))
    assert all(len(sides) == 1 for sides in by_key.values())


def test_choices_offer_the_answer_and_order_tells_nothing() -> None:
    first = 0
    for problem in itertools.islice(problems(NEXT["choices"], 1, held=True), 600):
        kind, _, way = problem.shape.split(", ")
        if way == "letter":
            assert f"{problem.answer}) " in problem.prompt
            first += problem.answer == "A"
        elif kind != "even":
            assert problem.answer in problem.prompt
    assert 80 < first < 220


def test_second_turns_need_the_first() -> None:
    for problem in itertools.islice(problems(NEXT["two turns"], 1, held=True), 200):
        ((asked, said),) = problem.before
        assert problem.messages() == [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": said},
            {"role": "user", "content": problem.prompt},
        ]
        if problem.shape in ("ascending", "descending"):
            assert problem.answer.split() == said.split()[::-1]


def test_a_repair_has_one_possible_answer() -> None:
    for problem in itertools.islice(problems(TASKS["repair"], 1, held=True), 100):
        broken = problem.prompt.removeprefix("Repair: ")
        with pytest.raises(ValueError):
            json.loads(broken)
        assert set(json.loads(problem.answer)) == {"name", "age", "city"}


@pytest.mark.parametrize(("size", "clues"), [(4, (4, 8)), (9, (30, 40))])
def test_sudokus_have_one_solution(size: int, clues: tuple[int, int]) -> None:
    task, dice = Sudoku(size, clues), random.Random(4)
    for shape in task.shapes[:: max(1, len(task.shapes) // 4)]:
        problem = task.make(shape, dice)
        marks = problem.prompt.removeprefix("Sudoku: ").replace(" ", "")
        puzzle = [0 if mark == "." else int(mark) for mark in marks]
        assert shape == f"{sum(1 for digit in puzzle if digit)} clues"
        assert task.solutions(puzzle, 2) == 1
        rows = [[int(digit) for digit in row] for row in problem.answer.split()]
        cells = list(itertools.chain(*rows))
        whole = set(range(1, size + 1))
        assert all(set(row) == whole for row in rows)
        assert all(set(column) == whole for column in zip(*rows, strict=True))
        assert all(given in (0, cell) for given, cell in zip(puzzle, cells, strict=True))
