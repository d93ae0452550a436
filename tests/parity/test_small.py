"""The small model inside the package: small, alive, and the same model to transformers.

transformers opens the very folder and answers held-out problems with its own `generate`, its own
sampler and its own random numbers.
"""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, DiffusionGemmaForBlockDiffusion

import diffusiongemma as dg
from diffusiongemma.engine.open import SHIPPED
from diffusiongemma.evals.run import evaluate, shapes_of
from diffusiongemma.evals.task import Task, problems
from diffusiongemma.evals.tasks import TASKS

EACH = 6  # problems a task, beside transformers
SAMPLE = 40  # alone


@pytest.fixture(scope="module")
def gemma() -> dg.Gemma:
    return dg.load()


def test_it_is_small_and_has_all_parts(gemma: dg.Gemma) -> None:
    config = gemma.model.config
    assert sum(weight.numel() for weight in gemma.model.parameters()) <= 12e6
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) <= 25e6
    assert {layer.sliding for layer in config.layers} == {True, False} and config.num_experts > 1
    assert gemma.folder == SHIPPED and (SHIPPED / "README.md").is_file()


def told() -> dict[str, float]:
    """What the card says of each task and shape, as shares."""
    card = (SHIPPED / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in card]
    rows = [row for row in rows if row[3:] and row[3].endswith(" %")]
    return {row[1]: float(row[3].removesuffix(" %")) / 100 for row in rows}


def test_its_card_has_a_line_for_every_shape_the_worst_first() -> None:
    shapes = [f"{task.name}: {shape}" for task, shape in shapes_of(list(TASKS))]
    said = told()
    assert said.keys() == {*TASKS, *shapes}
    shares = [said[name] for name in said if name not in TASKS]
    assert shares == sorted(shares)


@pytest.mark.parametrize("name", TASKS)
def test_the_card_says_what_is_measured(gemma: dg.Gemma, name: str) -> None:
    """Of each task's worst shape and its best."""
    task, said = TASKS[name], told()
    shapes = sorted((*task.shapes, *task.unseen), key=lambda shape: said[f"{name}: {shape}"])
    for shape in (shapes[0], shapes[-1]):
        one = OneShape(task, shape)
        found = list(evaluate(gemma, [name], SAMPLE, batch=SAMPLE, tasks={name: one}))
        right, share = sum(record.right for record in found), said[f"{name}: {shape}"]
        # Three standard deviations, and one problem for shares near 0 and 1.
        allowed = 3 * math.sqrt(len(found) * share * (1 - share)) + 1
        assert abs(right - len(found) * share) <= allowed, (shape, right, share)


class OneShape:
    """A task with one shape."""

    def __init__(self, task: Task, shape: str) -> None:
        self.name, self.shapes, self.unseen = task.name, (shape,), ()
        self.make, self.right = task.make, task.right


@pytest.mark.filterwarnings("ignore:.*script_method. is deprecated:DeprecationWarning")
def test_transformers_solves_as_many(gemma: dg.Gemma, record_property) -> None:
    ours = [record.right for record in evaluate(gemma, list(TASKS), EACH, by_shape=False)]
    theirs = theirs_right(SHIPPED)
    record_property(
        "measured",
        f"small model, {len(ours)} held-out problems: {sum(ours)} right, with transformers "
        f"{sum(theirs)}",
    )
    share = (sum(ours) + sum(theirs)) / (2 * len(ours))
    noise = math.sqrt(2 * len(ours) * max(share * (1 - share), 0.02))
    assert abs(sum(ours) - sum(theirs)) <= 3 * noise
    assert share >= LEAST


LEAST = 0.9  # of problems whose shapes are drawn alike


def theirs_right(folder: Path) -> list[bool]:
    """Whether each answer of transformers is right."""
    torch.manual_seed(0)
    model = DiffusionGemmaForBlockDiffusion.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for task in TASKS.values():
        asked = problems(task, 0, held=True)
        for _ in range(EACH):
            problem = next(asked)
            turns = [{"role": "user", "content": problem.prompt}]
            ids = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )["input_ids"]
            tokens = model.generate(ids, max_new_tokens=96).sequences[0, ids.shape[1] :]
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            found.append(task.right(problem, text))
    return found
