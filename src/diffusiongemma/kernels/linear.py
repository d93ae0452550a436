"""Matrix product with a stored weight, in a form whose bits do not depend on the batch.

Contract: `linear(x, weight)` is `x @ weight.T` in the dtype of `x`; row s of the result depends on
row s of `x` alone, bit for bit, however many other rows there are.

Why this needs a file: on CPU a float32 product with one to three rows takes another kernel than
one with four or more, and sums in another order. A prompt's last token alone would then differ
from the same token beside others. Padding to `FEWEST_ROWS` costs nothing that matters.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

FEWEST_ROWS = 4


def linear(x_SD: Float[Tensor, "S D"], weight_FD: Float[Tensor, "F D"]) -> Float[Tensor, "S F"]:
    """Multiply every row with the weight.

    Args:
        x_SD: rows, any number.
        weight_FD: one output channel a row, as `torch.nn.Linear` stores it.
    """
    rows = x_SD.shape[0]
    if rows >= FEWEST_ROWS or x_SD.device.type != "cpu":
        return F.linear(x_SD, weight_FD)
    padding = x_SD.new_zeros(FEWEST_ROWS - rows, x_SD.shape[1])
    return F.linear(torch.cat([x_SD, padding]), weight_FD)[:rows]
