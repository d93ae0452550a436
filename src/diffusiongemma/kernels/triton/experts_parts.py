"""What the experts' kernels share, whatever the format of their weights."""

import triton
import triton.language as tl
from torch import Tensor

from diffusiongemma.kernels.triton.jit import jit

COLUMNS = 1024  # of a program that adds up answers: eight numbers a thread


def ceil(number: int, size: int) -> int:
    """How many of a size a number needs."""
    return -(-number // size)


def combine(answers: Tensor, expert_SG: Tensor, weight_SG: Tensor, out: Tensor) -> None:
    """Write each token's weighted sum of its answers, which stand in the order of routes."""
    tokens, chosen = expert_SG.shape
    columns = min(COLUMNS, 1 << (out.shape[1] - 1).bit_length())
    _combine[(tokens, ceil(out.shape[1], columns))](
        answers, expert_SG.contiguous(), weight_SG.contiguous(), out, out.shape[1],
        CHOSEN=chosen, SLOTS=triton.next_power_of_2(chosen), COLUMNS=columns,
    )  # fmt: skip


@jit
def gelu_tanh(x):
    """GELU in its tanh form; 1 + tanh(y) is twice the sigmoid of 2 y."""
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@jit
def tile_of(tile_ptr, number, exists, FIELDS: tl.constexpr):
    """Expert, first place and routes of a tile; zeros if it does not exist."""
    at = tile_ptr + number * FIELDS
    expert = tl.load(at, mask=exists, other=0)
    first = tl.load(at + 1, mask=exists, other=0)
    return expert, first, tl.load(at + 2, mask=exists, other=0)


@jit
def gate_and_up(
    x,
    gate,
    up,
    live,
    width,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Both products of ROWS channels and a tile's tokens, float32.

    Args:
        x: where each token begins, a column.
        gate: where each row of the weight begins, a column.
        up: likewise.
        live: which tokens there are, a column.
        width: numbers of a row.
        EVEN: whether these are whole steps.
        ROWS: channels.
        DEPTH: numbers of a step, and of e4m3 those that are added up in few bits.
        BLOCK_T: tokens.
    """
    k = tl.arange(0, DEPTH)[None, :]
    gates = tl.zeros([ROWS, BLOCK_T], tl.float32)
    ups = tl.zeros([ROWS, BLOCK_T], tl.float32)
    for start in range(0, width, DEPTH):
        if EVEN:
            token = tl.load(x + k + start, mask=live, other=0.0)
            g = tl.load(gate + k + start)
            u = tl.load(up + k + start)
        else:
            inside = k < width - start
            token = tl.load(x + k + start, mask=live & inside, other=0.0)
            g = tl.load(gate + k + start, mask=inside, other=0.0)
            u = tl.load(up + k + start, mask=inside, other=0.0)
        gates = tl.dot(g, tl.trans(token), gates, max_num_imprecise_acc=DEPTH)
        ups = tl.dot(u, tl.trans(token), ups, max_num_imprecise_acc=DEPTH)
    return gates, ups


@jit
def _combine(
    answer_ptr,
    expert_ptr,
    weight_ptr,
    out_ptr,
    width,
    CHOSEN: tl.constexpr,
    SLOTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    token = tl.program_id(0)
    g = tl.arange(0, SLOTS)
    left = tl.load(expert_ptr + token * CHOSEN + g, mask=g < CHOSEN, other=1 << 30).to(tl.int32)
    d = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    answer = answer_ptr + token.to(tl.int64) * CHOSEN * width + d
    total = tl.zeros([COLUMNS], tl.float32)
    for _ in tl.static_range(CHOSEN):
        slot = tl.argmin(left, 0)
        left = tl.where(g == slot, 1 << 30, left)
        weight = tl.load(weight_ptr + token * CHOSEN + slot)
        total += tl.load(answer + slot * width, mask=d < width, other=0.0).to(tl.float32) * weight
    tl.store(
        out_ptr + token.to(tl.int64) * width + d, total.to(out_ptr.dtype.element_ty), d < width
    )
