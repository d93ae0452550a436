"""Products with weights in e4m3, floats of eight bits; their rows too do not depend on the batch.

Contract: `fp8_linear(x, weight, scale)` is `(xq @ wq.T) * sx * sw`, rounded once to the dtype of x.
wq is the stored weight with sw, one scale an output channel; xq is x in e4m3 with sx, one scale a
row: the row's largest number over 448, the largest of e4m3, and at least 1e-12. Quantising divides
in float32, clamps to plus and minus 448, and rounds to the nearest, ties to even. On the CPU the
product of two e4m3 is exact in float32, sums are float32 in an order that the batch has no part
in, so row s depends on row s of x alone, bit for bit.

The reference runs on the CPU and wherever the twin for GPUs cannot. That twin is
`torch._scaled_mm` with a scale for each row and each channel, on GPUs of capability 8.9 and up; one
small product tells whether it may run at all (`multiplies`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffusiongemma.kernels.linear import OUTPUTS, linear

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest number of e4m3; there is no infinity beyond it."""
SMALLEST = 1e-12
"""The least scale, for rows of zeros."""
CAPABILITY = (8, 9)
"""What a GPU needs at least to multiply e4m3."""

_TOGETHER = 1 << 20  # weights that are widened at a time, into memory that is at hand
_MULTIPLE = 16  # of both widths, which torch's product with scales asks for


class Rows(NamedTuple):
    """Rows in e4m3, and the scale of each, float32, which gives the row back as a factor."""

    q: Float[Tensor, "*rows D"]
    scale: Float[Tensor, "*rows"]


def quantise_rows(x: Float[Tensor, "*rows D"]) -> Rows:
    """Each row in e4m3, and its scale."""
    wide = x.float()
    scale = (wide.abs().amax(-1) / LARGEST).clamp(min=SMALLEST)
    return Rows(_rounded(wide, scale), scale)


def quantise_weight(
    weight: Float[Tensor, "*rows D"],
) -> tuple[Float[Tensor, "*rows D"], Float[Tensor, "*rows"]]:
    """A weight in e4m3, and a scale for each output channel.

    The scale is bfloat16 if the weight is, as compressed-tensors stores it, and float32 otherwise;
    the weight is divided by the scale as it is stored. A channel of zeros has scale 1.

    Args:
        weight: one output channel a row, of one matrix or of several.
    """
    wide = weight.float()
    stored = torch.bfloat16 if weight.dtype == torch.bfloat16 else torch.float32
    scale = (wide.abs().amax(-1) / LARGEST).to(stored)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return _rounded(wide, scale.float()), scale


def _rounded(wide: Tensor, scale: Tensor) -> Tensor:
    return (wide / scale[..., None]).clamp(-LARGEST, LARGEST).to(E4M3)


def widen(q: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """e4m3 as float32, exactly.

    By way of float16, whose layout differs by one bit of exponent and a factor of 256: on a CPU
    several times as fast as torch's own conversion. A code that is no number becomes 480; no
    quantised weight holds one, and a row that is no number has such a scale.
    """
    bits = q.view(torch.int8).to(torch.int16).mul_(128).bitwise_and_(~0x4000)
    return bits.view(torch.float16).float().mul_(256.0)


def product(
    rows: Rows,
    weight_FD: Float[Tensor, "F D"],
    scale_F: Float[Tensor, " F"],
    dtype: torch.dtype,
    linear: Callable[[Tensor, Tensor], Tensor] = linear,
    widen: Callable[[Tensor], Tensor] = widen,
) -> Float[Tensor, "S F"]:
    """Rows that are quantised already, times a weight in e4m3: the reference, of widened numbers.

    Args:
        rows: q (S, D) and scale (S,).
        weight_FD: one output channel a row.
        scale_F: of each output channel, float32.
        dtype: of the result.
        linear: the product of what is widened.
        widen: exactly, to float32.
    """
    q_SD = widen(rows.q)
    some = max(OUTPUTS, _TOGETHER // weight_FD.shape[1])
    parts = [linear(q_SD, widen(part)) for part in weight_FD.split(some)]
    product_SF = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return product_SF.mul_(rows.scale[:, None]).mul_(scale_F).to(dtype)


def widened_product(
    rows: Rows, weight_FD: Float[Tensor, "F D"], scale_F: Float[Tensor, " F"], dtype: torch.dtype
) -> Float[Tensor, "S F"]:
    """For GPUs that do not multiply e4m3."""
    return product(rows, weight_FD, scale_F, dtype, F.linear, Tensor.float)


def scaled_product(
    rows: Rows, weight_FD: Float[Tensor, "F D"], scale_F: Float[Tensor, " F"], dtype: torch.dtype
) -> Float[Tensor, "S F"]:
    """For GPUs that do, where the widths fit: sums in full float32."""
    if dtype != torch.bfloat16 or any(width % _MULTIPLE for width in weight_FD.shape):
        return widened_product(rows, weight_FD, scale_F, dtype)
    return _scaled(*rows, weight_FD, scale_F, dtype)


def fp8_linears(
    x_SD: Float[Tensor, "S D"],
    weights: Sequence[tuple[Tensor, Tensor]],
    product: Callable[[Rows, Tensor, Tensor, torch.dtype], Tensor] = product,
) -> list[Float[Tensor, "S _"]]:
    """Multiply every row with several weights in e4m3; the rows are quantised once.

    Args:
        x_SD: rows, any number, in the format of the activations.
        weights: pairs of weight, one output channel a row, and scale of each, float32.
        product: of quantised rows with one weight.
    """
    rows = quantise_rows(x_SD)
    return [product(rows, weight_FD, scale_F, x_SD.dtype) for weight_FD, scale_F in weights]


def _scaled(
    q_SD: Tensor, scale_S: Tensor, weight_FD: Tensor, scale_F: Tensor, dtype: torch.dtype
) -> Tensor:
    """torch's product with scales."""
    scaled = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]
    across, down = scale_S[:, None], scale_F[None]
    return scaled(q_SD, weight_FD.t(), scale_a=across, scale_b=down, out_dtype=dtype)


@functools.cache
def multiplies(index: int) -> bool:
    """Whether this GPU takes a product with scales of rows and channels."""
    if torch.cuda.get_device_capability(index) < CAPABILITY:
        return False
    with torch.cuda.device(index):
        q = torch.ones(_MULTIPLE, _MULTIPLE, device="cuda").to(E4M3)
        one = torch.ones(_MULTIPLE, device="cuda")
        try:
            out = _scaled(q, one, q, one, torch.bfloat16)
        except RuntimeError:  # torch has no kernel for it
            return False
    return bool((out == _MULTIPLE).all())
