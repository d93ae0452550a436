"""Records -> a row a task or a shape: how many right, how sure that is, in how many steps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from diffusiongemma.evals.run import Record


def interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    z, share = 1.96, right / count
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """How one task went, or one of its shapes.

    Attributes:
        task: its name.
        shape: the shape's; empty for the whole task.
        problems: that were asked.
        right: that were answered rightly.
        interval: the 95 % interval of that share.
        steps_per_canvas: denoising steps, mean.
        tokens_per_forward: tokens of answers over passes of the network.
        empty: answers without a letter.
        loops: answers that repeat themselves.
    """

    task: str
    problems: int
    right: int
    interval: tuple[float, float]
    steps_per_canvas: float
    tokens_per_forward: float
    empty: int
    loops: int
    shape: str = ""

    @property
    def name(self) -> str:
        """Of the task, and of the shape if it is one."""
        return f"{self.task}: {self.shape}" if self.shape else self.task


def rows(records: Sequence[Record]) -> list[Row]:
    """One a task, in the order in which they were asked."""
    return [_row(own) for own in _groups(records, lambda record: record.task)]


def shapes(records: Sequence[Record]) -> list[Row]:
    """One a shape, the worst first."""
    groups = _groups(records, lambda record: f"{record.task}: {record.shape}")
    found = [replace(_row(own), shape=own[0].shape) for own in groups]
    return sorted(found, key=lambda row: row.right / row.problems)


def _groups(records: Sequence[Record], name: Callable[[Record], str]) -> list[list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(name(record), []).append(record)
    return list(found.values())


def _row(own: Sequence[Record]) -> Row:
    right = sum(record.right for record in own)
    canvases = [steps for record in own for steps in record.steps]
    forwards = sum(sum(r.steps) + len(r.steps) - 1 for r in own)
    return Row(
        task=own[0].task,
        problems=len(own),
        right=right,
        interval=interval(right, len(own)),
        steps_per_canvas=sum(canvases) / len(canvases),
        tokens_per_forward=sum(record.new_tokens for record in own) / forwards,
        empty=sum(not record.text.strip() for record in own),
        loops=sum(record.loop for record in own),
    )


def table(given: Sequence[Row]) -> str:
    """One line a row, in Markdown."""
    first = "shape" if given and given[0].shape else "task"
    heads = (first, "problems", "right", "95 % interval", "steps per canvas")
    heads += ("tokens per forward", "empty", "loops")
    lines = [f"| {' | '.join(heads)} |", "|---|" + "--:|" * (len(heads) - 1)]
    for row in given:
        low, high = row.interval
        lines.append(
            f"| {row.name} | {row.problems} | {100 * row.right / row.problems:.1f} % | "
            f"{100 * low:.1f} to {100 * high:.1f} | {row.steps_per_canvas:.1f} | "
            f"{row.tokens_per_forward:.1f} | {row.empty} | {row.loops} |"
        )
    return "\n".join(lines)
