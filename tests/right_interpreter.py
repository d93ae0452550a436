"""Triton's interpreter, put right where it computes another thing than a GPU does.

As it comes (3.6 and 3.7) it multiplies the bit patterns of bfloat16 matrices as if they were whole
numbers, cuts where a cast to a smaller format has to round to nearest even, and rounds with a
carry that is lost. With `right()` around them, kernels need nothing of their own for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

# How torch calls Triton's formats, and the numpy type that holds their bits.
_KINDS = {
    tl.float8e4nv: (torch.float8_e4m3fn, np.uint8),
    tl.bfloat16: (torch.bfloat16, np.uint16),
    tl.float16: (torch.float16, np.float16),
    tl.float32: (torch.float32, np.float32),
    tl.float64: (torch.float64, np.float64),
}


def _convert(data, source, target, rounding=None):
    """In place of `_convert_float`: torch's own casts, which round to nearest even."""
    kind, bits = _KINDS[source]
    other, other_bits = _KINDS[target]
    value = torch.from_numpy(np.ascontiguousarray(data).view(bits).copy()).view(kind)
    whole = torch.uint8 if other_bits == np.uint8 else torch.uint16
    out = value.to(other)
    if other in (torch.bfloat16, torch.float8_e4m3fn):
        out = out.view(whole)
    return out.numpy().reshape(data.shape)


def _dot(self, a, b, d, input_precision, max_num_imprecise_acc):
    """In place of `create_dot`: operands of any format, multiplied in the accumulator's."""
    wide = d.data.dtype
    left, right = (_convert(x.data, x.dtype.scalar, tl.float32).astype(wide) for x in (a, b))
    # One column at a time, as a GPU does: how a library sums must not depend on who else is there.
    columns = np.ascontiguousarray(right.T)[:, :, None]
    product = np.matmul(left[None], columns)[:, :, 0].T
    return interpreter.TensorHandle(product + d.data, d.dtype.scalar)


@contextmanager
def right() -> Iterator[None]:
    """While this lasts, the interpreter computes as a GPU does."""
    before = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot
    interpreter._convert_float = _convert
    interpreter.InterpreterBuilder.create_dot = _dot
    try:
        with np.errstate(all="ignore"):  # a GPU does not warn of infinities
            yield
    finally:
        interpreter._convert_float, interpreter.InterpreterBuilder.create_dot = before
