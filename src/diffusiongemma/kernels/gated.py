"""The activation of every feed-forward block: gelu_tanh(gate) * up.

Contract: GELU in its tanh form (Hendrycks and Gimpel 2016), computed in float32 and rounded to the
dtype of the gate, then multiplied. Every element depends on its own place in gate and up alone.

Why not `F.gelu`: on the CPU it takes the last elements of each thread's share through another tanh,
so an element's bits depend on how many others there are, and on who is beside it. `torch.tanh`
does not.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

_ROOT = math.sqrt(2.0 / math.pi)


def gated(gate_SF: Float[Tensor, "S F"], up_SF: Float[Tensor, "S F"]) -> Float[Tensor, "S F"]:
    """gelu_tanh(gate) * up, element by element."""
    x = gate_SF.float()
    inner = torch.tanh(_ROOT * (x + 0.044715 * x * x * x))
    return (0.5 * x * (1.0 + inner)).to(gate_SF.dtype) * up_SF
