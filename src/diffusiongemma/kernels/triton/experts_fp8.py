"""Routed experts on a Hopper GPU, in eight bits: half the bytes of kernels/triton/experts.py.

Contract: kernels/experts_fp8.py. The launches are those of the kernels in bfloat16, with one more
before them that quantises the tokens; the hidden vector is quantised where it is made, 64 channels
at a time, which are a program's own.

Hopper adds up products of e4m3 numbers in an accumulator of some 14 bits. So a sum is taken out of
it after 128 products at most, and added to one in float32.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32, Int
from torch import Tensor

from diffusiongemma.kernels.experts_fp8 import GROUP
from diffusiongemma.kernels.quantised import E4M3, LARGEST, SMALLEST
from diffusiongemma.kernels.triton.experts import DOWN_ROWS, UP_ROWS, Recipe, tokens_of_a_tile
from diffusiongemma.kernels.triton.experts_parts import (
    ceil,
    combine,
    gate_and_up,
    gelu_tanh,
    tile_of,
)
from diffusiongemma.kernels.triton.jit import jit
from diffusiongemma.kernels.triton.plan import FIELDS, plan

assert UP_ROWS == GROUP  # a program's hidden channels have one scale

# By tokens of a tile. 128 numbers of a row are 128 bytes; the way back has a scale every 64.
UP = {
    16: Recipe(depth=128, stages=6),
    32: Recipe(depth=128, stages=5),
    64: Recipe(depth=128, stages=4),
}
DOWN = {
    16: Recipe(depth=GROUP, stages=8),
    32: Recipe(depth=GROUP, stages=8),
    64: Recipe(depth=GROUP, stages=6),
}


def experts_fp8(
    x_SD: Float[Tensor, "S D"],
    expert_SG: Int[Tensor, "S G"],
    weight_SG: Float[Tensor, "S G"],
    gate_up_q: Float[Tensor, "E two_F D"],
    gate_up_scale: Float[Tensor, "E two_F"],
    down_q: Float[Tensor, "E D F"],
    down_scale: Float[Tensor, "E D"],
) -> Float[Tensor, "S D"]:
    """Send every token through its experts and add up what comes back.

    Args:
        x_SD: tokens, normed for the experts.
        expert_SG: the G experts of each token.
        weight_SG: what each expert's answer counts, float32.
        gate_up_q: gate rows, then up rows, of each expert, e4m3.
        gate_up_scale: of each of these rows.
        down_q: the way back, e4m3.
        down_scale: of each output.
    """
    tokens, chosen = expert_SG.shape
    count, width, hidden = down_q.shape
    weights = (gate_up_q, gate_up_scale, down_q, down_scale)
    assert all(t.is_contiguous() for t in weights) and gate_up_q.dtype == down_q.dtype == E4M3
    assert hidden % GROUP == 0, "a hidden vector is whole groups of channels"
    out = torch.empty(x_SD.shape, dtype=x_SD.dtype, device=x_SD.device)
    if tokens == 0:
        return out
    block = tokens_of_a_tile(tokens * chosen, count)
    route, tile, _ = plan(expert_SG, count, block)
    token_q, token_scale = quantise(x_SD)
    hidden_q = token_q.new_empty(tokens * chosen, hidden)
    hidden_scale = token_scale.new_empty(hidden // GROUP, tokens * chosen)
    recipe = UP[block]
    _gate_up_fp8[(hidden // UP_ROWS * len(tile),)](
        token_q, token_scale, gate_up_q, gate_up_scale, hidden_q, hidden_scale, route, tile,
        tokens * chosen, width, hidden, CHOSEN=chosen, EVEN=width % recipe.depth == 0,
        ROWS=UP_ROWS, DEPTH=recipe.depth, BLOCK_T=block, FIELDS=FIELDS, LARGEST=LARGEST,
        SMALLEST=SMALLEST, num_warps=recipe.warps, num_stages=recipe.stages,
    )  # fmt: skip
    answers = x_SD.new_empty(tokens * chosen, width)
    recipe = DOWN[block]
    _down_fp8[(ceil(width, DOWN_ROWS) * len(tile),)](
        hidden_q, hidden_scale, down_q, down_scale, answers, route, tile,
        tokens * chosen, width, hidden, ROWS=DOWN_ROWS, DEPTH=recipe.depth, BLOCK_T=block,
        FIELDS=FIELDS, num_warps=recipe.warps, num_stages=recipe.stages,
    )  # fmt: skip
    combine(answers, expert_SG, weight_SG, out)
    return out


def quantise(
    x_SD: Float[Tensor, "S D"],
) -> tuple[Float[Tensor, "S D"], Float32[Tensor, " S"]]:
    """Tokens as e4m3 numbers and the scale of each, as `quantise` of the contract has them."""
    x_SD = x_SD.contiguous()
    tokens, width = x_SD.shape
    out, scale = torch.empty_like(x_SD, dtype=E4M3), x_SD.new_empty(tokens, dtype=torch.float32)
    if tokens:
        _quantise[(tokens,)](
            x_SD, out, scale, width,
            COLUMNS=triton.next_power_of_2(width), LARGEST=LARGEST, SMALLEST=SMALLEST,
        )  # fmt: skip
    return out, scale


@jit
def _quantise(
    x_ptr,
    out_ptr,
    scale_ptr,
    width,
    COLUMNS: tl.constexpr,
    LARGEST: tl.constexpr,
    SMALLEST: tl.constexpr,
):
    d = tl.arange(0, COLUMNS)
    at = tl.program_id(0).to(tl.int64) * width + d
    x = tl.load(x_ptr + at, mask=d < width, other=0.0).to(tl.float32)
    # Divisions are the exact ones: they decide which way a number is rounded.
    scale = tl.maximum(tl.math.div_rn(tl.max(tl.abs(x), 0), LARGEST), SMALLEST)
    tl.store(scale_ptr + tl.program_id(0), scale)
    tl.store(out_ptr + at, _e4m3(tl.math.div_rn(x, scale), LARGEST), mask=d < width)


@jit
def _e4m3(x, LARGEST: tl.constexpr):
    return tl.minimum(tl.maximum(x, -LARGEST), LARGEST).to(tl.float8e4nv)


@jit
def _gate_up_fp8(
    x_ptr,
    x_scale_ptr,
    gate_up_ptr,
    gate_up_scale_ptr,
    hidden_ptr,
    hidden_scale_ptr,
    route_ptr,
    tile_ptr,
    routes,
    width,
    hidden,
    CHOSEN: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    FIELDS: tl.constexpr,
    LARGEST: tl.constexpr,
    SMALLEST: tl.constexpr,
):
    # As _gate_up of experts.py; `hidden` is a multiple of ROWS.
    t = tl.arange(0, BLOCK_T)
    blocks = hidden // ROWS
    block = tl.program_id(0) % blocks
    expert, first, rows = tile_of(tile_ptr, tl.program_id(0) // blocks, True, FIELDS)
    if rows == 0:
        return
    source = tl.load(route_ptr + first + t, mask=t < rows, other=0) // CHOSEN
    f = block * ROWS + tl.arange(0, ROWS)
    gate = gate_up_ptr + expert.to(tl.int64) * 2 * hidden * width + f[:, None] * width
    up = gate + hidden.to(tl.int64) * width
    token = x_ptr + source.to(tl.int64)[:, None] * width
    live = t[:, None] < rows
    gates, ups = gate_and_up(token, gate, up, live, width, EVEN, ROWS, DEPTH, BLOCK_T)

    scales = gate_up_scale_ptr + expert * 2 * hidden + f
    x_scale = tl.load(x_scale_ptr + source, mask=t < rows, other=0.0)
    gates = gates * tl.load(scales)[:, None] * x_scale[None, :]
    ups = ups * tl.load(scales + hidden)[:, None] * x_scale[None, :]
    value = gelu_tanh(gates) * ups
    scale = tl.maximum(tl.math.div_rn(tl.max(tl.abs(value), 0), LARGEST), SMALLEST)
    # Groups are the rows of the scales: the way back reads one row at a step.
    tl.store(hidden_scale_ptr + block * routes + first + t, scale, mask=t < rows)
    out = hidden_ptr + (first + t).to(tl.int64)[None, :] * hidden + f[:, None]
    tl.store(out, _e4m3(tl.math.div_rn(value, scale[None, :]), LARGEST), mask=t[None, :] < rows)


@jit
def _down_fp8(
    hidden_ptr,
    hidden_scale_ptr,
    down_ptr,
    down_scale_ptr,
    answer_ptr,
    route_ptr,
    tile_ptr,
    routes,
    width,
    hidden,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    FIELDS: tl.constexpr,
):
    # As _down of experts.py; `hidden` is a multiple of DEPTH, the channels of a scale.
    t = tl.arange(0, BLOCK_T)
    blocks = tl.cdiv(width, ROWS)
    block = tl.program_id(0) % blocks
    expert, first, rows = tile_of(tile_ptr, tl.program_id(0) // blocks, True, FIELDS)
    if rows == 0:
        return
    target = tl.load(route_ptr + first + t, mask=t < rows, other=0)
    d = block * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, DEPTH)
    row = tl.minimum(d, width - 1)
    down = down_ptr + expert.to(tl.int64) * width * hidden
    weight = row[:, None] * hidden + k[None, :]
    x_at = (first + t).to(tl.int64)[:, None] * hidden + k[None, :]
    scales = hidden_scale_ptr + first + t
    total = tl.zeros([ROWS, BLOCK_T], tl.float32)
    scale = tl.load(scales, mask=t < rows, other=0.0)
    for start in range(0, hidden, DEPTH):
        # Asked for a step ahead: the compiler keeps only operands of products in flight.
        scales += routes
        ahead = tl.load(scales, mask=(t < rows) & (start + DEPTH < hidden), other=0.0)
        token = tl.load(hidden_ptr + x_at + start, mask=t[:, None] < rows, other=0.0)
        w = tl.load(down + weight + start)
        part = tl.dot(w, tl.trans(token), max_num_imprecise_acc=DEPTH)
        total += part * scale[None, :]
        scale = ahead
    total *= tl.load(down_scale_ptr + expert * width + row)[:, None]
    out = answer_ptr + target.to(tl.int64)[None, :] * width + d[:, None]
    value = total.to(answer_ptr.dtype.element_ty)
    tl.store(out, value, mask=(t[None, :] < rows) & (d[:, None] < width))
