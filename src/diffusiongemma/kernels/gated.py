"""The activation of every feed-forward block: gelu_tanh(gate) * up.

Contract: GELU in its tanh form (Hendrycks and Gimpel 2016), computed in float32 and rounded to the
dtype of the gate, then multiplied. Every element depends on its own place in gate and up alone.

`F.gelu` does not keep this by itself: on the CPU it takes the last elements of each thread's share
through another tanh, so an element's bits depend on how many others there are, and on who is beside
it. `torch.tanh` does not. Where no share has such an end, `F.gelu` may be used: that is the twin
for CPUs. On a GPU no element has a neighbour.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_ROOT = math.sqrt(2.0 / math.pi)
_STRIDE = 64  # elements that the widest vector code takes at a time, in any format
_SHARE = 1 << 14  # elements, for which torch never calls a second thread


def gated(gate_SF: Float[Tensor, "S F"], up_SF: Float[Tensor, "S F"]) -> Float[Tensor, "S F"]:
    """gelu_tanh(gate) * up, element by element: the formula as it is written."""
    x = gate_SF.float()
    inner = torch.tanh(_ROOT * (x + 0.044715 * x * x * x))
    return (0.5 * x * (1.0 + inner)).to(gate_SF.dtype) * up_SF


def gated_by_shares(
    gate_SF: Float[Tensor, "S F"], up_SF: Float[Tensor, "S F"]
) -> Float[Tensor, "S F"]:
    """One call for as many rows as stay on one thread, if every row is whole vectors long."""
    if gate_SF.shape[1] % _STRIDE:
        return gated(gate_SF, up_SF)
    rows = max(1, _SHARE // gate_SF.shape[1])
    if len(gate_SF) <= rows:
        return F.gelu(gate_SF, approximate="tanh").mul_(up_SF)
    out = torch.empty(gate_SF.shape, dtype=gate_SF.dtype)
    for gate, up, part in zip(gate_SF.split(rows), up_SF.split(rows), out.split(rows), strict=True):
        torch.mul(F.gelu(gate, approximate="tanh"), up, out=part)
    return out


def gated_at_once(
    gate_SF: Float[Tensor, "S F"], up_SF: Float[Tensor, "S F"]
) -> Float[Tensor, "S F"]:
    """torch's own, in float32 on a GPU."""
    return F.gelu(gate_SF, approximate="tanh") * up_SF
