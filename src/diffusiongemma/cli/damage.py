"""What a quantised checkpoint lost, measured: logits, answers, and steps times milliseconds.

A format that is faster per step but needs more steps is slower; so the three are told together.
Knows the problems that are asked and how the tables look; the logits, `quant.damage` compares.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffusiongemma.cli.benching.measure import compare as take_turns
from diffusiongemma.cli.benching.ours import Ours
from diffusiongemma.engine.gemma import Gemma
from diffusiongemma.engine.open import load
from diffusiongemma.engine.prompt import Asked, read
from diffusiongemma.evals.run import Record, evaluate
from diffusiongemma.evals.task import problems
from diffusiongemma.evals.tasks import TASKS
from diffusiongemma.quant import damage

LEVELS = (0.25, 0.5, 0.75, 1.0)
EACH = 4  # problems of each task whose canvases are looked at
ROUNDS = 5  # turns of each side where time is measured
_STRANGE = 24  # tokens of a prompt for a network without words
_BATCH = 64
_END = "<turn|>"

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """How one task went, before and after.

    Attributes:
        task: its name, or `all`.
        problems: that were asked.
        right: how many were answered rightly.
        steps: denoising steps per canvas, mean.
    """

    task: str
    problems: int
    right: tuple[int, int]
    steps: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a canvas costs, before and after, one prompt at a time.

    Attributes:
        device: its type.
        threads: of a CPU.
        steps: per canvas, mean over all problems.
        milliseconds: of the fastest step.
    """

    device: str
    threads: int
    steps: tuple[float, float]
    milliseconds: tuple[float, float]


def logits(before: Path, after: Path, tell: Tell, **how: Any) -> list[damage.Damage]:
    """How far the logits moved, by level of noise.

    Args:
        before: the plain checkpoint.
        after: the quantised one.
        tell: is given a word on what runs now.
        **how: for `load`.
    """
    tell("logits before")
    gemma = load(before, **how)
    cases = _cases(gemma)
    seen = damage.look(gemma.model, cases)
    del gemma  # one network at a time
    tell("logits after")
    twin = load(after, **how)
    return damage.compare(twin.model, cases, seen, damage.look(twin.model, cases, seen))


def answers(
    before: Path, after: Path, count: int, tell: Tell, **how: Any
) -> tuple[list[Answered], Cost]:
    """Answers to held-out problems and what they cost.

    Both networks are in memory at once, and take turns where time is measured.

    Args:
        before: the plain checkpoint.
        after: the quantised one.
        count: problems of each task.
        tell: is given a word on what runs now.
        **how: for `load`.
    """
    pair = (load(before, **how), load(after, **how))
    records: list[list[Record]] = []
    for name, gemma in zip(("before", "after"), pair, strict=True):
        tell(f"answers {name}")
        records.append(list(evaluate(gemma, list(TASKS), count, by_shape=False, batch=_BATCH)))
    found = []
    for task in (*TASKS, "all"):
        one, two = ([r for r in side if task in (r.task, "all")] for side in records)
        right = (sum(r.right for r in one), sum(r.right for r in two))
        steps = (_steps(one), _steps(two))
        found.append(Answered(task=task, problems=len(one), right=right, steps=steps))
    return found, _cost(pair, found[-1].steps, tell)


def tables(found: dict[str, Any]) -> str:
    """What `logits` and `answers` gave, in Markdown.

    Args:
        found: `logits`, and where there are answers, `answers` and `cost`.
    """
    parts = [
        "## What it cost",
        "The same canvases of held-out problems before both, at several levels of noise:",
        _logits_table(found["logits"]),
    ]
    if "answers" in found:
        parts.append("Held-out problems, answered by both with the same random numbers:")
        parts += [_answers_table(found["answers"]), _cost_table(found["cost"])]
    return "\n\n".join(parts)


def _logits_table(found: Sequence[damage.Damage]) -> str:
    lines = [
        "| noise | positions | mean error | largest | spread of logits | mean / spread "
        "| same best token |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in found:
        lines.append(
            f"| {100 * one.level:.0f} % | {one.positions} | {one.mean:.4f} | {one.largest:.2f} | "
            f"{one.spread:.2f} | {100 * one.mean / one.spread:.2f} % | {100 * one.agree:.1f} % |"
        )
    return "\n".join(lines)


def _answers_table(found: Sequence[Answered]) -> str:
    lines = [
        "| task | problems | right, before | after | steps per canvas, before | after |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for one in found:
        right = [f"{100 * right / one.problems:.1f} %" for right in one.right]
        steps = [f"{steps:.2f}" for steps in one.steps]
        lines.append(f"| {one.task} | {one.problems} | {' | '.join(right)} | {' | '.join(steps)} |")
    return "\n".join(lines)


def _cost(pair: tuple[Gemma, Gemma], steps: tuple[float, float], tell: Tell) -> Cost:
    sides = [Ours(gemma.model) for gemma in pair]
    for side, name in zip(sides, ("before", "after"), strict=True):
        side.name = name
    prompt = torch.tensor([_cases(pair[0])[0].prompt], device=pair[0].device.device)
    seen = take_turns(sides, prompt, steps=8, canvases=0, rounds=ROUNDS, tell=tell)
    # The fastest step, for what else the machine does only makes steps slower.
    before, after = (1000 * min(seen[side.name].step) for side in sides)
    return Cost(
        device=pair[0].device.device.type,
        threads=torch.get_num_threads(),
        steps=steps,
        milliseconds=(before, after),
    )


def _cost_table(cost: Cost) -> str:
    product = [a * b for a, b in zip(cost.steps, cost.milliseconds, strict=True)]
    rows = {
        "steps per canvas": cost.steps,
        "ms per step": cost.milliseconds,
        "steps x ms": product,
    }
    lines = ["| | before | after | after / before |", "|---|--:|--:|--:|"]
    for name, (one, two) in rows.items():
        lines.append(f"| {name} | {one:.2f} | {two:.2f} | {two / one:.2f} |")
    on_cpu = cost.device == "cpu"
    threads = f", {cost.threads} thread(s)" if on_cpu else ""
    said = f"One prompt at a time, on {cost.device}{threads}; the fastest step counts."
    if on_cpu:
        said += (
            " A CPU has no product of e4m3: it widens the weights at every step, so its time "
            "says nothing of a GPU's."
        )
    return "\n".join([*lines, "", said])


def _steps(records: Sequence[Record]) -> float:
    taken = [steps for record in records for steps in record.steps]
    return sum(taken) / len(taken)


def _cases(gemma: Gemma) -> list[damage.Case]:
    """Held-out problems with their right answers; random tokens, if there are no words."""
    config, chat = gemma.model.config, gemma.chat
    end = min(gemma.eos, default=0)
    if chat is not None:
        found = chat.tokenizer.id(_END)
        end = end if found is None else found
    prompts: list[list[int]] = []
    answers: list[list[int]] = []
    for task in TASKS.values():
        source = problems(task, "damage", held=True)
        dice = random.Random(task.name)
        for problem in (next(source) for _ in range(EACH)):
            if chat is None:
                sizes = (_STRANGE, config.canvas_length)
                ids, answer = ([dice.randrange(config.vocab_size) for _ in range(n)] for n in sizes)
            else:
                ids, _ = read(problem.prompt, Asked(), chat, config)
                answer = chat.tokenizer.encode(problem.answer, special=False)
            prompts.append([one for one in ids if one != config.image_token_id])
            answers.append(answer)
    return damage.cases(prompts, answers, LEVELS, config, end)
