"""The activation of every feed-forward block: gelu_tanh(gate) * up.

Contract: GELU in its tanh form (Hendrycks and Gimpel 2016), computed in float32 and rounded to the
dtype of the gate, then multiplied. Every element depends on its own place in gate and up alone.

`F.gelu` does not keep this by itself: on the CPU it takes the last elements of each thread's share
through another tanh, so an element's bits depend on how many others there are, and on who is beside
it. `torch.tanh` does not. Where no share has such an end, `F.gelu` may be used: that is the fast
twin.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffusiongemma.kernels.fast import fast

_ROOT = math.sqrt(2.0 / math.pi)
_STRIDE = 64  # elements that the widest vector code takes at a time, in any format
_SHARE = 1 << 14  # elements, for which torch never calls a second thread


def gated(gate_SF: Float[Tensor, "S F"], up_SF: Float[Tensor, "S F"]) -> Float[Tensor, "S F"]:
    """gelu_tanh(gate) * up, element by element."""
    if gate_SF.device.type != "cpu" and gate_SF.dtype == torch.float32:
        return F.gelu(gate_SF, approximate="tanh") * up_SF  # there no element has a neighbour
    whole = gate_SF.shape[1] % _STRIDE == 0
    return (_lean if whole and fast(gate_SF) else plain)(gate_SF, up_SF)


def plain(gate_SF: Float[Tensor, "S F"], up_SF: Float[Tensor, "S F"]) -> Float[Tensor, "S F"]:
    """The formula as it is written."""
    x = gate_SF.float()
    inner = torch.tanh(_ROOT * (x + 0.044715 * x * x * x))
    return (0.5 * x * (1.0 + inner)).to(gate_SF.dtype) * up_SF


def _lean(gate_SF: Tensor, up_SF: Tensor) -> Tensor:
    """One call for as many rows as stay on one thread; every row is whole vectors long."""
    rows = max(1, _SHARE // gate_SF.shape[1])
    if len(gate_SF) <= rows:
        return F.gelu(gate_SF, approximate="tanh").mul_(up_SF)
    out = torch.empty(gate_SF.shape, dtype=gate_SF.dtype)
    for gate, up, part in zip(gate_SF.split(rows), up_SF.split(rows), out.split(rows), strict=True):
        torch.mul(F.gelu(gate, approximate="tanh"), up, out=part)
    return out
