"""Matrix product with a stored weight, in a form whose bits do not depend on the batch.

Contract: `linear(x, weight)` is `x @ weight.T` in the dtype of `x`; row s of the result depends on
row s of `x` alone, bit for bit, however many other rows there are.

Why this needs a file: on CPU a float32 product is shared out among threads by rows, and a thread
left with one to three rows takes another kernel, which sums in another order. Measured with 1 to 16
threads and up to 300 rows, the counts that differ were 1-3, 5-7, 9-11, 17-19 and 25-27: never a
multiple of four. So rows are padded to one. bfloat16 products never differed.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

ROWS = 4


def linear(x_SD: Float[Tensor, "S D"], weight_FD: Float[Tensor, "F D"]) -> Float[Tensor, "S F"]:
    """Multiply every row with the weight.

    Args:
        x_SD: rows, any number.
        weight_FD: one output channel a row, as `torch.nn.Linear` stores it.
    """
    rows = x_SD.shape[0]
    if rows % ROWS == 0 or x_SD.device.type != "cpu" or x_SD.dtype is not torch.float32:
        return F.linear(x_SD, weight_FD)
    return F.linear(F.pad(x_SD, (0, 0, 0, -rows % ROWS)), weight_FD)[:rows]
