"""RMS norm and rotary positions.

Both are computed in float32 and rounded once. Formulas: RMS norm, Zhang and Sennrich 2019;
rotary embedding, Su et al. 2021, in the half-split layout: channel h turns together with channel
h + H/2. "Proportional" partial rotation (Gemma's full layers): the frequencies are spaced over the
whole head, but only the first `partial` share of the H/2 pairs turns; the rest have frequency 0.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def rms_norm(
    x: Float[Tensor, "*axes D"], weight_D: Float[Tensor, " D"] | None, eps: float
) -> Float[Tensor, "*axes D"]:
    """x / sqrt(mean(x^2) + eps), times the weight where there is one, in the dtype of x."""
    wide = x.float()
    normed = wide * torch.pow(wide.pow(2).mean(-1, keepdim=True) + eps, -0.5)
    if weight_D is not None:
        normed = normed * weight_D.float()
    return normed.to(x.dtype)


def frequencies(width: int, theta: float, partial: float, device: torch.device) -> Tensor:
    """Angle per position of each of the width/2 channel pairs, in radians, float32.

    Args:
        width: H, channels of one head.
        theta: base of the geometric series.
        partial: share of the pairs that turn at all.
        device: where the result lives.
    """
    turning = int(partial * width // 2)
    exponent = torch.arange(0, 2 * turning, 2, dtype=torch.float32, device=device) / width
    still = torch.zeros(width // 2 - turning, device=device)
    return torch.cat([1.0 / (theta**exponent), still])


def rotation(
    positions_S: Int[Tensor, " S"], frequency: Float[Tensor, " pairs"]
) -> tuple[Float[Tensor, "S pairs"], Float[Tensor, "S pairs"]]:
    """Cosine and sine of every position's angles, float32."""
    angle = positions_S[:, None].float() * frequency
    return angle.cos(), angle.sin()


def norm_rope(
    x_SNH: Float[Tensor, "S N H"],
    weight_H: Float[Tensor, " H"] | None,
    eps: float,
    turn: tuple[Float[Tensor, "S pairs"], Float[Tensor, "S pairs"]],
) -> Float[Tensor, "S N H"]:
    """RMS norm of each head, then rotation by position; rounded once, at the end."""
    normed = rms_norm(x_SNH.float(), weight_H, eps)
    cos, sin = (part[:, None, :] for part in turn)
    low, high = normed.chunk(2, dim=-1)
    turned = torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)
    return turned.to(x_SNH.dtype)
