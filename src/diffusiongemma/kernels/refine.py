"""Which sampled tokens stay by the entropy bound, what the canvas is next, and whether it is done.

Contract: positions are accepted in ascending entropy while those before each hold at most `bound`
nats together, the first always; equal ones from left to right. The rest becomes noise. A canvas is
done when its most likely tokens have repeated for `stable` steps and its mean entropy is below
`sure`. Every row by itself, with options of its own.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def within_bound(
    entropy_BL: Float[Tensor, "B L"], bound: float | Float[Tensor, "B 1"]
) -> Bool[Tensor, "B L"]:
    """True for positions whose predecessors in ascending entropy sum to at most `bound`."""
    ascending_BL, order_BL = entropy_BL.float().sort(dim=-1, stable=True)
    before_BL = ascending_BL.cumsum(-1) - ascending_BL
    inside_BL = before_BL <= bound
    return torch.zeros_like(inside_BL).scatter(-1, order_BL, inside_BL)


def refine(
    token_BL: Int[Tensor, "B L"],
    best_BL: Int[Tensor, "B L"],
    entropy_BL: Float[Tensor, "B L"],
    noise_BL: Int[Tensor, "B L"],
    previous_best_BL: Int[Tensor, "B L"],
    repeats_B: Int[Tensor, " B"],
    bound_B: Float[Tensor, " B"],
    stable_B: Int[Tensor, " B"],
    sure_B: Float[Tensor, " B"],
    accepted_BL: Bool[Tensor, "B L"] | None = None,
) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"], Int[Tensor, " B"], Bool[Tensor, " B"]]:
    """The reference.

    Args:
        token_BL: sampled tokens.
        best_BL: the most likely tokens.
        entropy_BL: nats.
        noise_BL: random tokens for every position; used where nothing is accepted.
        previous_best_BL: the most likely tokens of the step before, -1 before the first.
        repeats_B: for how many steps they have been the same.
        bound_B: nats that the accepted positions before a position may hold together.
        stable_B: for how many steps the most likely canvas must have repeated.
        sure_B: mean entropy below which the network is sure.
        accepted_BL: what another rule accepts, if not the bound.

    Returns:
        the next canvas; where the sample was kept; `repeats_B` of this step; stable and sure.
    """
    if accepted_BL is None:
        accepted_BL = within_bound(entropy_BL, bound_B[:, None])
    canvas_BL = torch.where(accepted_BL, token_BL, noise_BL)
    same_B = (best_BL == previous_best_BL).all(-1)
    repeats_B = torch.where(same_B, repeats_B + 1, 0)
    # The mean over the whole canvas, tokens after the end of an answer included.
    done_B = (repeats_B >= stable_B) & (entropy_BL.float().mean(-1) < sure_B)
    return canvas_BL, accepted_BL, repeats_B, done_B
