"""RMS norm and rotary positions.

Both are computed in float32 and rounded once. Formulas: RMS norm, Zhang and Sennrich 2019;
rotary embedding, Su et al. 2021, in the half-split layout: channel h turns together with channel
h + H/2. "Proportional" partial rotation (Gemma's full layers): the frequencies are spaced over the
whole head, but only the first `partial` share of the H/2 pairs turns; the rest have frequency 0.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

Norm = Callable[[Tensor, Tensor | None, float], Tensor]
Turn = tuple[Float[Tensor, "S 1 H"], Float[Tensor, "S 1 H"]]
"""Cosine and sine of every token's rotation, float32; see `rotation`."""


def rms_norm(
    x: Float[Tensor, "*axes D"], weight_D: Float[Tensor, " D"] | None, eps: float
) -> Float[Tensor, "*axes D"]:
    """x / sqrt(mean(x^2) + eps), times the weight where there is one, in the dtype of x."""
    wide = x.float()
    normed = wide * torch.pow(wide.pow(2).mean(-1, keepdim=True) + eps, -0.5)
    return (normed if weight_D is None else normed * weight_D.float()).to(x.dtype)


def rms_norm_at_once(
    x: Float[Tensor, "*axes D"], weight_D: Float[Tensor, " D"] | None, eps: float
) -> Float[Tensor, "*axes D"]:
    """The same formula in one call of torch; it warns of a weight in another format."""
    weight_D = None if weight_D is None else weight_D.to(x.dtype)
    return torch.rms_norm(x, x.shape[-1:], weight_D, eps)


def rms_norms(
    x: Float[Tensor, "*axes D"],
    weights: Sequence[Float[Tensor, " D"]],
    eps: float,
    norm: Norm = rms_norm,
) -> list[Float[Tensor, "*axes D"]]:
    """`rms_norm` with each of several weights; x is normed once."""
    normed = norm(x.float(), None, eps)
    return [(normed * weight_D.float()).to(x.dtype) for weight_D in weights]


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
) -> tuple[Float[Tensor, "S 1 H"], Float[Tensor, "S 1 H"]]:
    """Cosine and sine of every position's angles, float32, as `turned` takes them.

    Each stands there for both channels of a pair; the sine has its sign for the first.
    """
    angle = positions_S[:, None, None].float() * frequency
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def turned(x_SNH: Float[Tensor, "S N H"], turn: Turn) -> Float[Tensor, "S N H"]:
    """Rotate every head of each token by the token's position, in float32."""
    cos, sin = turn
    return x_SNH * cos + _crossed(x_SNH) * sin


def turned_in_place(x_SNH: Float[Tensor, "S N H"], turn: Turn) -> Float[Tensor, "S N H"]:
    """The same in fewer tensors, which autograd cannot follow; x stays as it is."""
    cos, sin = turn
    return _crossed(x_SNH).mul_(sin).add_(x_SNH * cos)


def _crossed(x_SNH: Tensor) -> Tensor:
    low, high = x_SNH.chunk(2, dim=-1)
    return torch.cat([high, low], dim=-1)


def norm_rope(
    x_SNH: Float[Tensor, "S N H"],
    weight_H: Float[Tensor, " H"] | None,
    eps: float,
    turn: Turn,
    norm: Norm = rms_norm,
    turned: Callable[[Tensor, Turn], Tensor] = turned,
) -> Float[Tensor, "S N H"]:
    """RMS norm of each head, then rotation by position; rounded once, at the end."""
    return turned(norm(x_SNH.float(), weight_H, eps), turn).to(x_SNH.dtype)
