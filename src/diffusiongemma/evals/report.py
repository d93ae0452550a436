"""Records -> a row a task: how many right, how sure that figure is, how many steps it took."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
    """How one task went.

    Attributes:
        task: its name.
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


def rows(records: Sequence[Record]) -> list[Row]:
    """One a task, in the order in which they were asked."""
    found = []
    for name in dict.fromkeys(record.task for record in records):
        own = [record for record in records if record.task == name]
        right = sum(record.right for record in own)
        canvases = [steps for record in own for steps in record.steps]
        forwards = sum(sum(r.steps) + len(r.steps) - 1 for r in own)
        row = Row(
            task=name,
            problems=len(own),
            right=right,
            interval=interval(right, len(own)),
            steps_per_canvas=sum(canvases) / len(canvases),
            tokens_per_forward=sum(record.new_tokens for record in own) / forwards,
            empty=sum(not record.text.strip() for record in own),
            loops=sum(record.loop for record in own),
        )
        found.append(row)
    return found


def table(given: Sequence[Row]) -> str:
    """One line a task, in Markdown."""
    heads = (
        *("task", "problems", "right", "95 % interval", "steps per canvas"),
        *("tokens per forward", "empty", "loops"),
    )
    lines = [f"| {' | '.join(heads)} |", "|---|" + "--:|" * (len(heads) - 1)]
    for row in given:
        low, high = row.interval
        lines.append(
            f"| {row.task} | {row.problems} | {100 * row.right / row.problems:.1f} % | "
            f"{100 * low:.1f} to {100 * high:.1f} | {row.steps_per_canvas:.1f} | "
            f"{row.tokens_per_forward:.1f} | {row.empty} | {row.loops} |"
        )
    return "\n".join(lines)
