"""A kernel that only reads, to know how fast memory can be read."""

import torch
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from diffusiongemma.kernels.triton.jit import jit

_BLOCK, _TURNS = 4096, 16  # numbers that a program takes at a time, and how often


@jit
def _read(data_ptr, out_ptr, TURNS: tl.constexpr, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for turn in range(TURNS):
        place = (program * TURNS + turn) * BLOCK + tl.arange(0, BLOCK)
        total += tl.load(data_ptr + place)
    tl.store(out_ptr + program, tl.sum(total, 0))


def read(data: Float[Tensor, " S"]) -> Float[Tensor, " programs"]:
    """Sums of pieces; what is left over at the end, less than a piece, is not read."""
    programs = data.numel() // (_BLOCK * _TURNS)
    out = torch.empty(programs, dtype=torch.float32, device=data.device)
    _read[(programs,)](data, out, TURNS=_TURNS, BLOCK=_BLOCK, num_warps=8)
    return out
