"""Rows rounded to e4m3 on a GPU: by themselves, and what kernels that end in such rows share.

Contract: `kernels.quantised.quantise_rows`, bit for bit.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from diffusiongemma.kernels import quantised
from diffusiongemma.kernels.quantised import E4M3, Rows
from diffusiongemma.kernels.triton.jit import jit

LARGEST = tl.constexpr(quantised.LARGEST)
SMALLEST = tl.constexpr(quantised.SMALLEST)


@jit
def scale_of(largest):
    """The scale of numbers of which the largest is so large."""
    # Divisions are the exact ones: they decide which way a number is rounded.
    return tl.maximum(tl.math.div_rn(largest, LARGEST), SMALLEST)


@jit
def e4m3(x, scale):
    """Float32 numbers over their scale, rounded."""
    x = tl.math.div_rn(x, scale)
    return tl.minimum(tl.maximum(x, -LARGEST), LARGEST).to(tl.float8e4nv)


def empty(rows: int, width: int, like: Tensor) -> Rows:
    """Room for rows, and for their scales."""
    return Rows(
        torch.empty(rows, width, dtype=E4M3, device=like.device),
        torch.empty(rows, dtype=torch.float32, device=like.device),
    )


def quantise(x_SD: Float[Tensor, "S D"]) -> Rows:
    """Rows as e4m3 numbers, and the scale of each."""
    x_SD = x_SD.contiguous()
    tokens, width = x_SD.shape
    out = empty(tokens, width, x_SD)
    if tokens:
        _quantise[(tokens,)](x_SD, *out, width, COLUMNS=triton.next_power_of_2(width), num_warps=8)
    return out


@jit
def _quantise(x_ptr, out_ptr, scale_ptr, width, COLUMNS: tl.constexpr):
    d = tl.arange(0, COLUMNS)
    at = tl.program_id(0).to(tl.int64) * width + d
    x = tl.load(x_ptr + at, mask=d < width, other=0.0).to(tl.float32)
    scale = scale_of(tl.max(tl.abs(x), 0))
    tl.store(scale_ptr + tl.program_id(0), scale)
    tl.store(out_ptr + at, e4m3(x, scale), mask=d < width)
