"""When a canvas is done: its most likely tokens repeat, and the model is sure of them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Progress:
    """What the stop rule remembers of a canvas.

    Attributes:
        best_BL: the most likely tokens of the last step, -1 before the first.
        repeats_B: for how many steps they have been the same.
    """

    best_BL: Int[Tensor, "B L"]
    repeats_B: Int[Tensor, " B"]

    @classmethod
    def start(cls, rows: int, width: int, device: torch.device) -> "Progress":
        """Before the first step."""
        return cls(
            torch.full((rows, width), -1, device=device),
            torch.zeros(rows, dtype=torch.int64, device=device),
        )

    def advance(self, best_BL: Int[Tensor, "B L"]) -> "Progress":
        """Take a step's most likely tokens in."""
        same_B = (best_BL == self.best_BL).all(-1)
        return Progress(best_BL, torch.where(same_B, self.repeats_B + 1, 0))


def stable(progress: Progress, threshold: int) -> Bool[Tensor, " B"]:
    """The most likely canvas has repeated for at least `threshold` steps."""
    return progress.repeats_B >= threshold


def sure(entropy_BL: Float[Tensor, "B L"], threshold: float) -> Bool[Tensor, " B"]:
    """Mean entropy over the whole canvas, tokens after the end included, is below the threshold."""
    return entropy_BL.float().mean(-1) < threshold
