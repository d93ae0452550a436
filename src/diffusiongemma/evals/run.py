"""Tasks x checkpoint -> records: every held-out problem asked once, every answer scored."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusiongemma.core.errors import OptionError, unknown_name
from diffusiongemma.engine.gemma import Gemma
from diffusiongemma.engine.reply import Reply
from diffusiongemma.evals.task import Problem, Task, distinct, problems
from diffusiongemma.evals.tasks import TASKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One problem and what became of it.

    Attributes:
        task: its name.
        shape: which of the task's.
        prompt: what was asked.
        expected: a right answer.
        text: what was answered.
        right: whether that is right.
        steps: denoising steps of each canvas.
        new_tokens: of the answer.
        loop: the answer repeats itself.
    """

    task: str
    shape: str
    prompt: str
    expected: str
    text: str
    right: bool
    steps: tuple[int, ...]
    new_tokens: int
    loop: bool


def shapes_of(names: Sequence[str], tasks: Mapping[str, Task] = TASKS) -> list[tuple[Task, str]]:
    """Every task with each of its shapes, taught ones first.

    Raises:
        OptionError: a task that does not exist.
    """
    for name in names:
        if name not in tasks:
            raise OptionError(unknown_name("task", name, tasks))
    return [
        (tasks[name], shape)
        for name in names
        for shape in (*tasks[name].shapes, *tasks[name].unseen)
    ]


def evaluate(
    gemma: Gemma,
    names: Sequence[str],
    count: int,
    *,
    by_shape: bool = True,
    seed: int = 0,
    batch: int = 50,
    tasks: Mapping[str, Task] = TASKS,
    **options: Any,
) -> Iterator[Record]:
    """Ask held-out problems and score the answers.

    Args:
        gemma: an opened checkpoint.
        names: of tasks.
        count: problems of each shape, no two alike; where a shape has fewer, all that it has.
        by_shape: False for so many problems of each task, of shapes that are drawn.
        seed: of problems and answers.
        batch: problems that are answered together.
        tasks: by name.
        **options: as in `gemma.generate`.

    Raises:
        OptionError: a task that does not exist, or an option out of range.
    """
    shapes = shapes_of(names, tasks)
    if count < 1 or batch < 1:
        raise OptionError(f"count and batch must be at least 1, got {count} and {batch}")
    done = 0
    for task, asked in _asked(shapes, count, seed, by_shape):
        for alike in _alike(asked):
            for start in range(0, len(alike), batch):
                part = alike[start : start + batch]
                seeds = [seed + done + place for place in range(len(part))]
                replies = _answers(gemma, part, seeds, options)
                for problem, reply in zip(part, replies, strict=True):
                    yield _record(task, problem, reply)
                done += len(part)


def _asked(
    shapes: Sequence[tuple[Task, str]], count: int, seed: int, by_shape: bool
) -> Iterator[tuple[Task, list[Problem]]]:
    if by_shape:
        for task, shape in shapes:
            yield task, distinct(task, shape, count, seed)
        return
    for task in dict.fromkeys(task for task, _ in shapes):
        yield task, list(itertools.islice(problems(task, seed, held=True), count))


def _alike(asked: Sequence[Problem]) -> Iterator[list[Problem]]:
    """Runs of problems that are asked with the same options."""
    kind = lambda one: (one.thought is not None, str(one.tools()))  # noqa: E731
    for _, run in itertools.groupby(sorted(asked, key=kind), kind):
        yield list(run)


def _answers(
    gemma: Gemma, problems: Sequence[Problem], seeds: Sequence[int], options: Mapping[str, Any]
) -> list[Reply]:
    """What is answered in the end: where a tool is called as it should be, after its result."""
    first = problems[0]
    asked = {"think": first.thought is not None, "tools": first.tools(), **options}
    said = [problem.messages() for problem in problems]
    replies = gemma.generate_many(said, seed=seeds, **asked)
    called = [
        place
        for place, (problem, reply) in enumerate(zip(problems, replies, strict=True))
        if _calls(problem, reply)
    ]
    if called:
        after = [[*said[place], *_result(problems[place])] for place in called]
        again = gemma.generate_many(after, seed=[seeds[place] for place in called], **asked)
        for place, reply in zip(called, again, strict=True):
            replies[place] = reply
    return replies


def _calls(problem: Problem, reply: Reply) -> bool:
    tool, calls = problem.tool, reply.tool_calls
    return (
        tool is not None
        and len(calls) == 1
        and calls[0].name == tool.name
        and calls[0].arguments == tool.arguments
    )


def _result(problem: Problem) -> list[dict[str, Any]]:
    """The call and what the tool said, as messages."""
    assert problem.tool is not None
    function = {"name": problem.tool.name, "arguments": dict(problem.tool.arguments)}
    call = {"type": "function", "function": function}
    return [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": problem.tool.name, "content": problem.tool.result},
    ]


def _record(task: Task, problem: Problem, reply: Reply) -> Record:
    return Record(
        task=task.name,
        shape=problem.shape,
        prompt=problem.prompt,
        expected=problem.answer,
        text=reply.text,
        right=task.right(problem, reply.text),
        steps=reply.stats.steps,
        new_tokens=reply.stats.new_tokens,
        loop=reply.stats.loop,
    )
