"""Records -> a table: how many right, how sure that figure is, how many steps it took."""

import math
from collections.abc import Sequence

from diffusiongemma.evals.run import Record


def interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    z, share = 1.96, right / count
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def table(records: Sequence[Record]) -> str:
    """One line a task, in Markdown."""
    heads = (
        *("task", "problems", "right", "95 % interval", "steps per canvas"),
        *("tokens per forward", "empty", "loops"),
    )
    lines = [f"| {' | '.join(heads)} |", "|---|" + "--:|" * (len(heads) - 1)]
    for name in dict.fromkeys(record.task for record in records):
        own = [record for record in records if record.task == name]
        right = sum(record.right for record in own)
        low, high = interval(right, len(own))
        canvases = [steps for record in own for steps in record.steps]
        forwards = sum(sum(r.steps) + len(r.steps) - 1 for r in own)
        tokens = sum(record.new_tokens for record in own)
        empty = sum(not record.text.strip() for record in own)
        loops = sum(record.loop for record in own)
        lines.append(
            f"| {name} | {len(own)} | {100 * right / len(own):.1f} % | {100 * low:.1f} to "
            f"{100 * high:.1f} | {sum(canvases) / len(canvases):.1f} | {tokens / forwards:.1f} | "
            f"{empty} | {loops} |"
        )
    return "\n".join(lines)
