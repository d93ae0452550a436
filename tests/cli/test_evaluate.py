"""The verb `evaluate`, with the small model inside the package."""

import json
from pathlib import Path

from cli_help import Call
from diffusiongemma.evals.run import shapes_of


def test_a_table_the_failures_and_every_answer(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    quick = ["--count", "3", "--max-denoising-steps", "1", "--wrong", "2"]
    done = call("evaluate", "--task", "repair", "--task", "sudoku4x4", *quick, "--out", file)
    assert done.code == 0
    rows = [line for line in done.out.splitlines() if line.startswith("| ")]
    names = [row.split(" | ")[0].removeprefix("| ") for row in rows]
    assert names[:4] == ["task", "repair", "sudoku4x4", "shape"]
    assert set(names[4:]) == {f"{task.name}: {shape}" for task, shape in shapes_of(names[1:3])}
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["task"] for record in records] == ["repair"] * 21 + ["sudoku4x4"] * 27
    assert all(record["steps"] == [1] * len(record["steps"]) for record in records)
    wrong = [r for r in records if not r["right"]]
    assert done.out.count("expected ") == sum(
        min(2, sum(r["task"] == name for r in wrong)) for name in ("repair", "sudoku4x4")
    )
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]


def test_the_table_may_be_data(call: Call) -> None:
    words = ["evaluate", "--task", "extraction", "--count", "3", "--max-denoising-steps", "1"]
    found = json.loads(call(*words, "--json", "--wrong", "2").out)
    (row,), shapes = found["tasks"], found["shapes"]
    assert (row["task"], row["problems"], row["steps_per_canvas"]) == ("extraction", 15, 1.0)
    assert len(shapes) == 5 and sum(shape["right"] for shape in shapes) == row["right"]
    assert len(found["failures"]) == min(2, 15 - row["right"])
    assert f"| extraction | 15 | {100 * row['right'] / 15:.1f} % |" in call(*words).out


def test_the_same_seed_gives_the_same_table(call: Call) -> None:
    words = ["evaluate", "--task", "sudoku4x4", "--count", "2", "--seed", "5"]
    assert call(*words).out == call(*words).out


def test_mistakes_are_told_before_the_work(call: Call, tmp_path: Path) -> None:
    def says(text: str, *words: str) -> None:
        done = call("evaluate", *words)
        assert done.code == 2 and text in done.err

    says("unknown task 'sortin'; did you mean 'sorting'", "--task", "sortin")
    for flag, range in (("--count", "1 to 100,000"), ("--batch", "1 to 65,536")):
        for number in ("0", "-1", "9" * 40, "many"):
            says(f"{flag}: must be a whole number from {range}, got '{number}'", flag, number)
    says("there is no such folder; make it first", "--out", str(tmp_path / "none" / "a.jsonl"))
    says("--wrong: must be a whole number from 0 to 1,000,000, got '-1'", "--wrong", "-1")
    says("unknown option '--counts'", "--counts", "3")
