"""Routed experts on a Hopper GPU, in eight bits: half the bytes of kernels/triton/experts.py.

Contract: kernels/experts_fp8.py. The launches are those of the kernels in bfloat16; the hidden
vector is quantised where it is made, 64 channels at a time, which are a program's own. The dense
branch can ride along as it does there. Its hidden vector then has a scale for 64 channels too, and
was never rounded to bfloat16, which is closer to the unquantised branch than its reference is.

Hopper adds up products of e4m3 numbers in an accumulator of some 14 bits. So a sum is taken out of
it after 128 products at most, and added to one in float32.
"""

import torch
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from diffusiongemma.kernels.experts_fp8 import GROUP
from diffusiongemma.kernels.quantised import E4M3, Rows
from diffusiongemma.kernels.triton.eight import e4m3, quantise, scale_of
from diffusiongemma.kernels.triton.experts import (
    DOWN_ROWS,
    Recipe,
    dealt,
    stride,
    tokens_of_a_tile,
)
from diffusiongemma.kernels.triton.experts_parts import (
    ceil,
    combine,
    gate_and_up,
    gelu_tanh,
    tile_of,
)
from diffusiongemma.kernels.triton.jit import jit
from diffusiongemma.kernels.triton.plan import FIELDS, plan

UP_ROWS = 64  # hidden channels of a program, whole groups
# By tokens of a tile. 128 numbers of a row are 128 bytes; on the way back they are two groups with
# a scale each. Its blocks are short, so more of them side by side count for more than steps in
# flight. Measured on an H200, all launches of a layer with 256 tokens spread evenly take 229 us so;
# with 64 numbers a step 237 with 4 stages, 240 with 6, 254 with 8.
UP = {
    16: Recipe(depth=128, stages=6),
    32: Recipe(depth=128, stages=5),
    64: Recipe(depth=128, stages=4),
}
DOWN = {
    16: Recipe(depth=2 * GROUP, stages=3),
    32: Recipe(depth=2 * GROUP, stages=3),
    64: Recipe(depth=2 * GROUP, stages=3),
}

Weight = tuple[Tensor, Tensor]
"""Numbers in e4m3, and a float32 scale for each of their rows."""


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
    up, down = (gate_up_q, gate_up_scale), (down_q, down_scale)
    return _run(quantise(x_SD), expert_SG, weight_SG, up, down, None, x_SD.dtype)[1]


def branches(
    dense: Rows,
    routed: Rows,
    expert_SG: Int[Tensor, "S G"],
    weight_SG: Float[Tensor, "S G"],
    dense_gate: Weight,
    dense_up: Weight,
    dense_down: Weight,
    gate_up: Weight,
    down: Weight,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "S D"], Float[Tensor, "S D"]]:
    """Both feed-forward branches of a layer in the launches of one.

    Args:
        dense: tokens, normed for the dense branch.
        routed: tokens, normed for the experts.
        expert_SG: the G experts of each token.
        weight_SG: what each expert's answer counts, float32.
        dense_gate: of the dense branch, (dense_F, D).
        dense_up: of the dense branch.
        dense_down: of the dense branch, (D, dense_F).
        gate_up: gate rows, then up rows, of each expert, (E, 2 F, D).
        down: the way back, (E, D, F).
        dtype: of the answers.

    Returns:
        what the dense branch answers, and what the experts do.
    """
    assert fits(dense_gate[0], down[0]), "ask fits() before branches()"
    beside = (dense, dense_gate, dense_up, dense_down)
    return _run(routed, expert_SG, weight_SG, gate_up, down, beside, dtype)


def fits(dense_gate: Float[Tensor, "dense_F D"], down_EDF: Float[Tensor, "E D F"]) -> bool:
    """Whether hidden vectors of both branches are whole groups of channels."""
    return dense_gate.shape[0] % GROUP == 0 and down_EDF.shape[2] % GROUP == 0


def _run(
    x: Rows, expert_SG: Tensor, weight_SG: Tensor, gate_up: Weight, down: Weight,
    dense: tuple[Rows, Weight, Weight, Weight] | None, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Plan, product, product, sum: what the dense branch (if any) and the experts answer."""
    tokens, chosen = expert_SG.shape
    count, width, hidden = down[0].shape
    routes, device = tokens * chosen, x.q.device
    out = torch.empty(tokens, width, dtype=dtype, device=device)
    dense_out = torch.empty_like(out) if dense else out
    if tokens == 0:
        return dense_out, out
    dense_x, dense_gate, dense_up, dense_down = dense or (x, *[down] * 3)
    wide = dense_gate[0].shape[0] if dense else 0
    weights = (gate_up, down, dense_gate, dense_up, dense_down)
    assert all(q.is_contiguous() and s.is_contiguous() and q.dtype == E4M3 for q, s in weights)
    assert hidden % GROUP == 0 and wide % GROUP == 0, "hidden vectors are whole groups of channels"
    block = tokens_of_a_tile(routes, count)
    route, tile, _ = plan(expert_SG, count, block)
    middle, dense_middle = _grouped(routes, hidden, x.q), _grouped(tokens, wide, x.q)
    tiles, recipe = ceil(tokens, block) if dense else 0, UP[block]
    first = tiles * ceil(wide, UP_ROWS)
    programs = first + ceil(hidden, UP_ROWS) * len(tile)
    _gate_up_fp8[(programs,)](
        *x, *gate_up, *middle, *dense_x, *dense_gate, *dense_up, *dense_middle, route, tile,
        tokens, routes, width, hidden, wide, first, stride(first, programs), CHOSEN=chosen,
        DENSE=dense is not None, EVEN=width % recipe.depth == 0, ROWS=UP_ROWS,
        GROUP=GROUP, DEPTH=recipe.depth, BLOCK_T=block, FIELDS=FIELDS,
        num_warps=recipe.warps, num_stages=recipe.stages,
    )  # fmt: skip
    answers, recipe = out.new_empty(routes, width), DOWN[block]
    first = tiles * ceil(width, DOWN_ROWS)
    programs = first + ceil(width, DOWN_ROWS) * len(tile)
    _down_fp8[(programs,)](
        *middle, *down, answers, *dense_middle, *dense_down, dense_out, route, tile,
        tokens, routes, width, hidden, wide, first, stride(first, programs),
        DENSE=dense is not None, PAIRS=recipe.depth > GROUP, ROWS=DOWN_ROWS, GROUP=GROUP,
        BLOCK_T=block,
        FIELDS=FIELDS, num_warps=recipe.warps, num_stages=recipe.stages,
    )  # fmt: skip
    combine(answers, expert_SG, weight_SG, out)
    return dense_out, out


def _grouped(rows: int, width: int, like: Tensor) -> Rows:
    """Room for hidden vectors, whose scales stand group by group: the way back reads one a step."""
    scale = like.new_empty(width // GROUP, rows, dtype=torch.float32)
    return Rows(like.new_empty(rows, width), scale)


@jit
def _gate_up_fp8(
    x_ptr, x_scale_ptr, gate_up_ptr, gate_up_scale_ptr, hidden_ptr, hidden_scale_ptr,
    dense_x_ptr, dense_x_scale_ptr, dense_gate_ptr, dense_gate_scale_ptr, dense_up_ptr,
    dense_up_scale_ptr, dense_hidden_ptr, dense_hidden_scale_ptr, route_ptr, tile_ptr,
    tokens, routes, width, hidden, wide, dense_programs, stride,
    CHOSEN: tl.constexpr, DENSE: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr,
    GROUP: tl.constexpr, DEPTH: tl.constexpr, BLOCK_T: tl.constexpr, FIELDS: tl.constexpr,
):  # fmt: skip
    # As _gate_up of experts.py; a program's channels are whole groups, and so are hidden vectors.
    t = tl.arange(0, BLOCK_T)
    dense, number = dealt(dense_programs, stride)
    blocks = tl.cdiv(hidden, ROWS)
    block = number % blocks
    expert, first, rows = tile_of(tile_ptr, number // blocks, not dense, FIELDS)
    source = tl.load(route_ptr + first + t, mask=t < rows, other=0) // CHOSEN
    gate = gate_up_ptr + expert.to(tl.int64) * 2 * hidden * width
    up = gate + hidden.to(tl.int64) * width
    gate_scale = gate_up_scale_ptr + expert * 2 * hidden
    up_scale = gate_scale + hidden
    x, x_scale, channels, places = x_ptr, x_scale_ptr, hidden, routes
    out, out_scale = hidden_ptr, hidden_scale_ptr
    if DENSE:
        tiles = tl.cdiv(tokens, BLOCK_T)  # those that share a weight are neighbours
        if dense:
            block = number // tiles
            first = number % tiles * BLOCK_T
            rows = tl.minimum(BLOCK_T, tokens - first)
            source = first + t
            gate, up = dense_gate_ptr, dense_up_ptr
            gate_scale, up_scale = dense_gate_scale_ptr, dense_up_scale_ptr
            x, x_scale, channels, places = dense_x_ptr, dense_x_scale_ptr, wide, tokens
            out, out_scale = dense_hidden_ptr, dense_hidden_scale_ptr
    if rows == 0:
        return

    f = block * ROWS + tl.arange(0, ROWS)
    row = tl.minimum(f, channels - 1)
    weight = row[:, None] * width
    token = source.to(tl.int64)[:, None] * width
    live = t[:, None] < rows
    gates, ups = gate_and_up(
        x + token, gate + weight, up + weight, live, width, EVEN, ROWS, DEPTH, BLOCK_T
    )
    of_token = tl.load(x_scale + source, mask=t < rows, other=0.0)
    gates = gates * tl.load(gate_scale + row)[:, None] * of_token[None, :]
    ups = ups * tl.load(up_scale + row)[:, None] * of_token[None, :]
    value = gelu_tanh(gates) * ups
    _store(value, out, out_scale, block, first, rows, channels, places, ROWS, GROUP, BLOCK_T)


@jit
def _store(
    value, out, scales, block, first, rows, channels, places,
    ROWS: tl.constexpr, GROUP: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """A program's channels of a tile's hidden vectors, rounded group by group."""
    GROUPS: tl.constexpr = ROWS // GROUP
    t, f = tl.arange(0, BLOCK_T), block * ROWS + tl.arange(0, ROWS)
    grouped = tl.reshape(value, (GROUPS, GROUP, BLOCK_T))
    scale = scale_of(tl.max(tl.abs(grouped), 1))
    group = block * GROUPS + tl.arange(0, GROUPS)
    real = (group[:, None] * GROUP < channels) & (t[None, :] < rows)
    tl.store(scales + group[:, None] * places + first + t[None, :], scale, mask=real)
    rounded = tl.reshape(e4m3(grouped, scale[:, None, :]), (ROWS, BLOCK_T))
    out_at = (first + t).to(tl.int64)[None, :] * channels + f[:, None]
    tl.store(out + out_at, rounded, mask=(t[None, :] < rows) & (f[:, None] < channels))


@jit
def _down_fp8(
    hidden_ptr, hidden_scale_ptr, down_ptr, down_scale_ptr, answer_ptr,
    dense_hidden_ptr, dense_hidden_scale_ptr, dense_down_ptr, dense_down_scale_ptr, dense_out_ptr,
    route_ptr, tile_ptr, tokens, routes, width, hidden, wide, dense_programs, stride,
    DENSE: tl.constexpr, PAIRS: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_T: tl.constexpr, FIELDS: tl.constexpr,
):  # fmt: skip
    # As _down of experts.py; hidden vectors are whole groups, of which a step takes one or two.
    t = tl.arange(0, BLOCK_T)
    dense, number = dealt(dense_programs, stride)
    blocks = tl.cdiv(width, ROWS)
    block = number % blocks
    expert, first, rows = tile_of(tile_ptr, number // blocks, not dense, FIELDS)
    target = tl.load(route_ptr + first + t, mask=t < rows, other=0)
    down = down_ptr + expert.to(tl.int64) * width * hidden
    down_scale = down_scale_ptr + expert * width
    x, scales, out, channels, places = hidden_ptr, hidden_scale_ptr, answer_ptr, hidden, routes
    if DENSE:
        tiles = tl.cdiv(tokens, BLOCK_T)
        if dense:
            block = number // tiles
            first = number % tiles * BLOCK_T
            rows = tl.minimum(BLOCK_T, tokens - first)
            target = first + t
            down, down_scale = dense_down_ptr, dense_down_scale_ptr
            x, scales, out = dense_hidden_ptr, dense_hidden_scale_ptr, dense_out_ptr
            channels, places = wide, tokens
    if rows == 0:
        return

    d = block * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, GROUP)
    row = tl.minimum(d, width - 1)
    weight = down + row[:, None] * channels + k[None, :]
    token = x + (first + t).to(tl.int64)[:, None] * channels + k[None, :]
    scales += first + t
    if PAIRS:
        total = _two_by_two(token, weight, scales, t < rows, channels, places, ROWS, GROUP, BLOCK_T)
    else:
        total = _one_by_one(token, weight, scales, t < rows, channels, places, ROWS, GROUP, BLOCK_T)
    total *= tl.load(down_scale + row)[:, None]
    out_at = target.to(tl.int64)[None, :] * width + d[:, None]
    value = total.to(out.dtype.element_ty)
    tl.store(out + out_at, value, mask=(t[None, :] < rows) & (d[:, None] < width))


@jit
def _one_by_one(
    token, weight, scales, live, channels, places,
    ROWS: tl.constexpr, GROUP: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """The product of ROWS outputs and a tile's hidden vectors, float32, a group a step."""
    total = tl.zeros([ROWS, BLOCK_T], tl.float32)
    scale = tl.load(scales, mask=live, other=0.0)
    for start in range(0, channels, GROUP):
        # Asked for a step ahead: the compiler keeps only operands of products in flight.
        scales += places
        ahead = tl.load(scales, mask=live & (start + GROUP < channels), other=0.0)
        x = tl.load(token + start, mask=live[:, None], other=0.0)
        w = tl.load(weight + start)
        part = tl.dot(w, tl.trans(x), max_num_imprecise_acc=GROUP)
        total += part * scale[None, :]
        scale = ahead
    return total


@jit
def _two_by_two(
    token, weight, scales, live, channels, places,
    ROWS: tl.constexpr, GROUP: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """`_one_by_one`, two groups a step, added in the same order."""
    total = tl.zeros([ROWS, BLOCK_T], tl.float32)
    one = tl.load(scales, mask=live, other=0.0)
    two = tl.load(scales + places, mask=live & (channels > GROUP), other=0.0)
    for start in range(0, channels, 2 * GROUP):
        scales += 2 * places
        left = channels - start
        next_one = tl.load(scales, mask=live & (left > 2 * GROUP), other=0.0)
        next_two = tl.load(scales + places, mask=live & (left > 3 * GROUP), other=0.0)
        x = tl.load(token + start, mask=live[:, None], other=0.0)
        w = tl.load(weight + start)
        at = start + GROUP
        beside = tl.load(token + at, mask=live[:, None] & (left > GROUP), other=0.0)
        v = tl.load(weight + at, mask=left > GROUP, other=0.0)
        part = tl.dot(w, tl.trans(x), max_num_imprecise_acc=GROUP)
        total += part * one[None, :]
        part = tl.dot(v, tl.trans(beside), max_num_imprecise_acc=GROUP)
        total += part * two[None, :]
        one, two = next_one, next_two
    return total
