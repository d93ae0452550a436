"""Matrix product with a stored weight, in a form whose bits do not depend on the batch.

Contract: `linear(x, weight)` is `x @ weight.T` in the dtype of `x`; row s of the result depends on
row s of `x` alone, bit for bit, however many other rows there are.

Why this needs a file: CPU libraries choose kernels by shape, and two kernels sum in two orders.
A float32 product is shared out among threads by rows, and a thread left with one to three rows
takes another kernel (with 1 to 16 threads and up to 300 rows, the counts that differed were 1-3,
5-7, 9-11, 17-19 and 25-27: never a multiple of four). Fewer than sixteen outputs, as a router of
eight experts has, differ by more. A single bfloat16 row differs too, from 1,408 outputs on. With
rows padded to a multiple of four, and outputs to sixteen, nothing was seen to differ in any format.
On a GPU nothing of this is promised, and nothing padded: there `F.linear` is the product.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

ROWS, OUTPUTS = 4, 16
CHUNK = 1 << 16
"""Elements of a float32 scratch that a twin for CPUs works on at a time: a quarter megabyte, so
that it stays in a core's own cache and the allocator never has to ask the system for its pages."""

_SMALL = 100_000  # bytes of weights that are copied in less time than a call takes


def linear(x_SD: Float[Tensor, "S D"], weight_FD: Float[Tensor, "F D"]) -> Float[Tensor, "S F"]:
    """Multiply every row with the weight.

    Args:
        x_SD: rows, any number.
        weight_FD: one output channel a row, as `torch.nn.Linear` stores it.
    """
    rows, outputs = x_SD.shape[0], weight_FD.shape[0]
    if rows % ROWS == 0 and outputs >= OUTPUTS:
        return F.linear(x_SD, weight_FD)
    if rows % ROWS:
        x_SD = F.pad(x_SD, (0, 0, 0, -rows % ROWS))
    if outputs < OUTPUTS:
        weight_FD = F.pad(weight_FD, (0, 0, 0, OUTPUTS - outputs))
    return F.linear(x_SD, weight_FD)[:rows, :outputs]


def linears(
    x_SD: Float[Tensor, "S D"],
    weights: Sequence[Float[Tensor, "_ D"]],
    linear: Callable[[Tensor, Tensor], Tensor] = linear,
) -> Sequence[Float[Tensor, "S _"]]:
    """Multiply every row with several weights, one product each."""
    return [linear(x_SD, weight) for weight in weights]


def joined_linears(
    x_SD: Float[Tensor, "S D"], weights: Sequence[Float[Tensor, "_ D"]]
) -> Sequence[Float[Tensor, "S _"]]:
    """The same, with one product of small weights."""
    if sum(weight.nbytes for weight in weights) > _SMALL:
        return linears(x_SD, weights)
    return linear(x_SD, torch.cat(list(weights))).split([len(weight) for weight in weights], dim=-1)
