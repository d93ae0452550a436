"""Which twin of an op runs: the plain one, or the one that is fast on a CPU.

Fast twins write in place and into buffers, so autograd cannot follow them: they are for inference.
"""

import torch
from torch import Tensor

CHUNK = 1 << 16
"""Elements of a float32 scratch that a twin works on at a time: a quarter megabyte, so that the
scratch stays in a core's own cache and the allocator never has to ask the system for its pages."""


def fast(x: Tensor) -> bool:
    """Whether the CPU's twin may run on x."""
    return x.device.type == "cpu" and not torch.is_grad_enabled()
