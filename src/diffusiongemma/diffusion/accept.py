"""Which positions of a canvas keep what was sampled; all others become noise again.

A rule is any callable from (entropy, readout) to a mask; `EntropyBound` is the model's own.
Acceptance is decided anew at every step: a position accepted earlier is not kept for that.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusiongemma.kernels.readout import Readout


@runtime_checkable
class AcceptRule(Protocol):
    """Decides which sampled tokens stay."""

    def __call__(self, readout: Readout) -> Bool[Tensor, "B L"]:
        """True where the sampled token is kept."""
        ...


@dataclass(frozen=True, slots=True)
class EntropyBound:
    """The lowest-entropy positions, while those before each hold at most `bound` nats together.

    The sum of the entropies bounds the mutual information that is lost when tokens are sampled
    independently (Ben-Hamu et al. 2025, arXiv 2505.24857). The first position always passes.
    """

    bound: float

    def __call__(self, readout: Readout) -> Bool[Tensor, "B L"]:
        """Apply the bound to every row by itself."""
        return within_bound(readout.entropy_BL, self.bound)


def within_bound(entropy_BL: Float[Tensor, "B L"], bound: float) -> Bool[Tensor, "B L"]:
    """True for positions whose predecessors in ascending entropy sum to at most `bound`."""
    ascending_BL, order_BL = entropy_BL.float().sort(dim=-1, stable=True)
    before_BL = ascending_BL.cumsum(-1) - ascending_BL
    inside_BL = before_BL <= bound
    return torch.zeros_like(inside_BL).scatter(-1, order_BL, inside_BL)
