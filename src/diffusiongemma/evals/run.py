"""Tasks x checkpoint -> records: every held-out problem asked once, every answer scored."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from diffusiongemma.core.errors import OptionError, unknown_name
from diffusiongemma.engine.gemma import Gemma
from diffusiongemma.evals.task import problems
from diffusiongemma.evals.tasks import TASKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One problem and what became of it.

    Attributes:
        task: its name.
        prompt: what was asked.
        expected: a right answer.
        text: what was answered.
        right: whether that is right.
        steps: denoising steps of each canvas.
        new_tokens: of the answer.
        loop: the answer repeats itself.
    """

    task: str
    prompt: str
    expected: str
    text: str
    right: bool
    steps: tuple[int, ...]
    new_tokens: int
    loop: bool


def evaluate(
    gemma: Gemma,
    names: Sequence[str],
    count: int,
    *,
    seed: int = 0,
    batch: int = 50,
    report: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Iterator[Record]:
    """Ask held-out problems and score the answers.

    Args:
        gemma: an opened checkpoint.
        names: of tasks; see `tasks.TASKS`.
        count: problems of each task.
        seed: of problems and answers.
        batch: problems that are answered together.
        report: is told how many of how many are done.
        **options: as in `gemma.generate`.

    Raises:
        OptionError: a task that does not exist, or an option out of range.
    """
    for name in names:
        if name not in TASKS:
            raise OptionError(unknown_name("task", name, TASKS))
    if count < 1 or batch < 1:
        raise OptionError(f"count and batch must be at least 1, got {count} and {batch}")
    done = 0
    for name in names:
        task = TASKS[name]
        asked = itertools.islice(problems(task, seed, held=True), count)
        while part := list(itertools.islice(asked, batch)):
            seeds = [seed + done + place for place in range(len(part))]
            replies = gemma.generate_many([p.prompt for p in part], seed=seeds, **options)
            for problem, reply in zip(part, replies, strict=True):
                yield Record(
                    task=name,
                    prompt=problem.prompt,
                    expected=problem.answer,
                    text=reply.text,
                    right=task.right(problem, reply.text),
                    steps=reply.stats.steps,
                    new_tokens=reply.stats.new_tokens,
                    loop=reply.stats.loop,
                )
            done += len(part)
            if report is not None:
                report(done, count * len(names))
