"""Tasks: answers are right, wrong ones are not, and what is held out is never trained on."""

import itertools
import json
import random

import pytest

from diffusiongemma.evals.task import held_out, problems
from diffusiongemma.evals.tasks import TASKS
from diffusiongemma.evals.tasks.sudoku import Sudoku


@pytest.mark.parametrize("name", TASKS)
def test_the_answer_is_right_and_a_damaged_one_is_not(name: str) -> None:
    task = TASKS[name]
    for problem in itertools.islice(problems(task, 1, held=True), 50):
        assert task.right(problem, problem.answer) and task.right(problem, f" {problem.answer}\n")
        for wrong in ("", problem.answer[:-1], problem.answer + "0", problem.prompt):
            assert not task.right(problem, wrong)


@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_gives_the_same_problems_and_none_is_on_both_sides(name: str) -> None:
    task = TASKS[name]
    learned = {p.prompt for p in itertools.islice(problems(task, 1, held=False), 400)}
    again = {p.prompt for p in itertools.islice(problems(task, 1, held=False), 400)}
    asked = {p.prompt for p in itertools.islice(problems(task, 1, held=True), 100)}
    assert learned == again and not learned & asked
    assert asked != {p.prompt for p in itertools.islice(problems(task, 2, held=True), 100)}


def test_a_fixed_share_is_held_out() -> None:
    dice = random.Random(3)
    found = [held_out(TASKS["reversing"].make(dice)) for _ in range(4000)]
    assert 0.10 < sum(found) / len(found) < 0.15


def test_arithmetic_is_arithmetic() -> None:
    for problem in itertools.islice(problems(TASKS["subtraction"], 1, held=True), 100):
        assert eval(problem.prompt.removeprefix("What is ").rstrip("?")) == int(problem.answer)


def test_a_repair_has_one_possible_answer() -> None:
    for problem in itertools.islice(problems(TASKS["repair"], 1, held=True), 100):
        broken = problem.prompt.removeprefix("Repair: ")
        with pytest.raises(ValueError):
            json.loads(broken)
        assert set(json.loads(problem.answer)) == {"name", "age", "city"}


@pytest.mark.parametrize(("size", "clues"), [(4, (4, 8)), (9, (30, 40))])
def test_sudokus_have_one_solution(size: int, clues: tuple[int, int]) -> None:
    task, dice = Sudoku(size, clues), random.Random(4)
    for _ in range(5):
        problem = task.make(dice)
        marks = problem.prompt.removeprefix("Sudoku: ").replace(" ", "")
        puzzle = [0 if mark == "." else int(mark) for mark in marks]
        assert clues[0] <= sum(1 for digit in puzzle if digit)
        assert task.solutions(puzzle, 2) == 1
        rows = [[int(digit) for digit in row] for row in problem.answer.split()]
        cells = list(itertools.chain(*rows))
        whole = set(range(1, size + 1))
        assert all(set(row) == whole for row in rows)
        assert all(set(column) == whole for column in zip(*rows, strict=True))
        assert all(given in (0, cell) for given, cell in zip(puzzle, cells, strict=True))
