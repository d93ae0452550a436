"""Routed experts on a Hopper GPU, in bfloat16; the dense branch can ride in the same launches.

Contract: kernels/experts.py, but for the places where numbers are rounded: here gate, up and
gelu_tanh(gate) * up stay in float32, and the hidden vector is rounded once. Each expert's answer is
rounded to bfloat16 as there; answers are summed in float32, in the order of the experts' numbers,
and rounded once. Nothing is added with atomics, so a call repeats bit for bit. A row's bits do not
depend on where in a tile it lies, nor on who is beside it.

A canvas sends some sixteen tokens to each of 128 experts: the weights are read once, and reading
them is all the time there is. So weights are the first operand of every product, 128 rows of them,
and tokens the second: matrix instructions of Hopper (wgmma) take no fewer than 64 rows of the first
and as few as 8 of the second. Rows of x are gathered where they are loaded; the first kernel ends
with the activation; a third adds up each token's answers.
"""

from dataclasses import dataclass

import torch
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from diffusiongemma.kernels.triton.experts_parts import (
    ceil,
    combine,
    gate_and_up,
    gelu_tanh,
    tile_of,
)
from diffusiongemma.kernels.triton.jit import jit
from diffusiongemma.kernels.triton.plan import FIELDS, plan

UP_ROWS = 64  # hidden channels of a program: 64 rows of gate and 64 of up, two wgmma of 64 rows
DOWN_ROWS = 128  # outputs of a program: 2,816 is 22 times 128


@dataclass(frozen=True)
class Recipe:
    """How a product is launched.

    Attributes:
        depth: channels of a step. 64 of bfloat16 are 128 bytes, the widest swizzle.
        warps: four are one group, which a wgmma takes.
        stages: steps in flight, plus one. A block of the recipes below takes at most 113 KiB of
            shared memory, so that two run on a multiprocessor and load while the other begins or
            ends; what they have in flight (over 100 KiB) covers 33 KiB, the bandwidth of an H200
            times a microsecond, three times over.
    """

    depth: int = 64
    warps: int = 4
    stages: int = 4


# By tokens of a tile.
UP = {16: Recipe(stages=6), 32: Recipe(stages=5), 64: Recipe(stages=4)}
DOWN = {16: Recipe(stages=5), 32: Recipe(stages=4), 64: Recipe(stages=4)}


def tokens_of_a_tile(routes: int, experts: int) -> int:
    """Twice an expert's mean share, so that most experts need one tile: 32 for a canvas.

    It depends on the number of tokens alone, never on where they are sent.
    """
    return min(64, max(16, 1 << (2 * routes // experts - 1).bit_length()))


def experts(
    x_SD: Float[Tensor, "S D"],
    expert_SG: Int[Tensor, "S G"],
    weight_SG: Float[Tensor, "S G"],
    gate_up: Float[Tensor, "E two_F D"],
    down_EDF: Float[Tensor, "E D F"],
) -> Float[Tensor, "S D"]:
    """Send every token through its experts and add up what comes back.

    Args:
        x_SD: tokens, normed for the experts.
        expert_SG: the G experts of each token.
        weight_SG: what each expert's answer counts, float32.
        gate_up: gate rows, then up rows, of each expert.
        down_EDF: the way back.
    """
    return _run(x_SD, expert_SG, weight_SG, gate_up, down_EDF, None)[1]


def branches(
    dense_SD: Float[Tensor, "S D"],
    routed_SD: Float[Tensor, "S D"],
    expert_SG: Int[Tensor, "S G"],
    weight_SG: Float[Tensor, "S G"],
    dense_gate: Float[Tensor, "dense_F D"],
    dense_up: Float[Tensor, "dense_F D"],
    dense_down: Float[Tensor, "D dense_F"],
    gate_up: Float[Tensor, "E two_F D"],
    down_EDF: Float[Tensor, "E D F"],
) -> tuple[Float[Tensor, "S D"], Float[Tensor, "S D"]]:
    """Both feed-forward branches of a layer in the launches of one.

    Programs of the dense branch find their weights in the cache, all but the first that reads them,
    and those of the experts do not. They are dealt out evenly over the first half of a launch, so
    that each kind runs while the other waits, and none of the dense ones, with their longer sums,
    comes last.

    Args:
        dense_SD: tokens, normed for the dense branch.
        routed_SD: tokens, normed for the experts.
        expert_SG: the G experts of each token.
        weight_SG: what each expert's answer counts, float32.
        dense_gate: of the dense branch.
        dense_up: of the dense branch.
        dense_down: of the dense branch.
        gate_up: gate rows, then up rows, of each expert.
        down_EDF: the way back.

    Returns:
        what the dense branch answers, and what the experts do.
    """
    assert fits(dense_gate, down_EDF), "ask fits() before branches()"
    dense = (dense_SD, dense_gate, dense_up, dense_down)
    return _run(routed_SD, expert_SG, weight_SG, gate_up, down_EDF, dense)


def fits(dense_gate: Float[Tensor, "dense_F D"], down_EDF: Float[Tensor, "E D F"]) -> bool:
    """Whether both branches are whole tiles (the dense branch of 26B is as wide as three experts).

    Other widths would come out right too, but half-empty tiles and masks in the sums cost more
    than a launch of its own.
    """
    return dense_gate.shape[0] % UP_ROWS == 0 and down_EDF.shape[2] % UP_ROWS == 0


def _run(
    x: Tensor, expert_SG: Tensor, weight_SG: Tensor, gate_up: Tensor, down: Tensor,
    dense: tuple[Tensor, Tensor, Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Plan, product, product, sum: what the dense branch (if any) and the experts answer."""
    tokens, chosen = expert_SG.shape
    count, width, hidden = down.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dense_out = torch.empty_like(out) if dense else out
    if tokens == 0:
        return dense_out, out
    x, (dense_x, dense_gate, dense_up, dense_down) = x.contiguous(), dense or (x, *[down] * 3)
    dense_x, wide = dense_x.contiguous(), dense_gate.shape[0] if dense else 0
    weights = (gate_up, down, dense_gate, dense_up, dense_down)
    assert all(t.is_contiguous() and t.dtype == x.dtype == torch.bfloat16 for t in weights)
    block = tokens_of_a_tile(tokens * chosen, count)
    route, tile, _ = plan(expert_SG, count, block)
    tiles = ceil(tokens, block) if dense else 0
    middle, dense_middle = x.new_empty(tokens * chosen, hidden), x.new_empty(tokens, wide)
    recipe, blocks = UP[block], ceil(hidden, UP_ROWS)
    first = tiles * ceil(wide, UP_ROWS)
    programs = first + blocks * len(tile)
    _gate_up[(programs,)](
        x, gate_up, middle, dense_x, dense_gate, dense_up, dense_middle, route, tile,
        tokens, width, hidden, wide, first, stride(first, programs), CHOSEN=chosen,
        DENSE=dense is not None, EVEN=width % recipe.depth == 0, ROWS=UP_ROWS,
        DEPTH=recipe.depth, BLOCK_T=block, FIELDS=FIELDS,
        num_warps=recipe.warps, num_stages=recipe.stages,
    )  # fmt: skip
    answers = x.new_empty(tokens * chosen, width)
    recipe, blocks = DOWN[block], ceil(width, DOWN_ROWS)
    first = tiles * blocks
    programs = first + blocks * len(tile)
    _down[(programs,)](
        middle, down, answers, dense_middle, dense_down, dense_out, route, tile,
        tokens, width, hidden, wide, first, stride(first, programs), DENSE=dense is not None,
        EVEN=hidden % recipe.depth == 0 and wide % recipe.depth == 0, ROWS=DOWN_ROWS,
        DEPTH=recipe.depth, BLOCK_T=block, FIELDS=FIELDS,
        num_warps=recipe.warps, num_stages=recipe.stages,
    )  # fmt: skip
    combine(answers, expert_SG, weight_SG, out)
    return dense_out, out


def stride(dense: int, programs: int) -> int:
    """Every how many programs one is of the dense branch, so that they fill half a launch."""
    return max(1, programs // (2 * max(1, dense)))


@jit
def dealt(dense_programs, stride):
    """Whether this program is of the dense branch, and its number among its kind."""
    pid = tl.program_id(0)
    turn = pid // stride
    dense = (turn < dense_programs) & (turn * stride == pid)
    before = tl.minimum(tl.cdiv(pid, stride), dense_programs)
    return dense, tl.where(dense, turn, pid - before)


@jit
def _gate_up(
    x_ptr,
    gate_up_ptr,
    hidden_ptr,
    dense_x_ptr,
    dense_gate_ptr,
    dense_up_ptr,
    dense_hidden_ptr,
    route_ptr,
    tile_ptr,
    tokens,
    width,
    hidden,
    wide,
    dense_programs,
    stride,
    CHOSEN: tl.constexpr,
    DENSE: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    FIELDS: tl.constexpr,
):
    # hidden[place, f] = gelu_tanh(gate[f] @ x) * (up[f] @ x), for ROWS channels of a tile's tokens.
    t = tl.arange(0, BLOCK_T)
    dense, number = dealt(dense_programs, stride)
    blocks = tl.cdiv(hidden, ROWS)
    block = number % blocks
    expert, first, rows = tile_of(tile_ptr, number // blocks, not dense, FIELDS)
    source = tl.load(route_ptr + first + t, mask=t < rows, other=0) // CHOSEN
    gate = gate_up_ptr + expert.to(tl.int64) * 2 * hidden * width
    up = gate + hidden.to(tl.int64) * width
    x, out, channels = x_ptr, hidden_ptr, hidden
    if DENSE:
        tiles = tl.cdiv(tokens, BLOCK_T)  # those that share a weight are neighbours
        if dense:
            block = number // tiles
            first = number % tiles * BLOCK_T
            rows = tl.minimum(BLOCK_T, tokens - first)
            source = first + t
            gate, up = dense_gate_ptr, dense_up_ptr
            x, out, channels = dense_x_ptr, dense_hidden_ptr, wide
    if rows == 0:
        return

    f = block * ROWS + tl.arange(0, ROWS)
    # Channels behind the last are computed from the last one's weights, and not stored.
    weight = tl.minimum(f, channels - 1)[:, None] * width
    token = source.to(tl.int64)[:, None] * width
    live = t[:, None] < rows
    gates, ups = gate_and_up(
        x + token, gate + weight, up + weight, live, width, EVEN, ROWS, DEPTH, BLOCK_T
    )
    value = (gelu_tanh(gates) * ups).to(out.dtype.element_ty)
    out_at = (first + t).to(tl.int64)[None, :] * channels + f[:, None]
    tl.store(out + out_at, value, mask=tl.trans(live) & (f[:, None] < channels))


@jit
def _down(
    hidden_ptr,
    down_ptr,
    answer_ptr,
    dense_hidden_ptr,
    dense_down_ptr,
    dense_out_ptr,
    route_ptr,
    tile_ptr,
    tokens,
    width,
    hidden,
    wide,
    dense_programs,
    stride,
    DENSE: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    FIELDS: tl.constexpr,
):
    # answer[route, d] = down[d] @ hidden[place], for ROWS outputs of a tile's tokens.
    t = tl.arange(0, BLOCK_T)
    blocks = tl.cdiv(width, ROWS)
    dense, number = dealt(dense_programs, stride)
    block = number % blocks
    expert, first, rows = tile_of(tile_ptr, number // blocks, not dense, FIELDS)
    target = tl.load(route_ptr + first + t, mask=t < rows, other=0)
    down = down_ptr + expert.to(tl.int64) * width * hidden
    x, out, channels = hidden_ptr, answer_ptr, hidden
    if DENSE:
        tiles = tl.cdiv(tokens, BLOCK_T)
        if dense:
            block = number // tiles
            first = number % tiles * BLOCK_T
            rows = tl.minimum(BLOCK_T, tokens - first)
            target = first + t
            down, x, out, channels = dense_down_ptr, dense_hidden_ptr, dense_out_ptr, wide
    if rows == 0:
        return

    d = block * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, DEPTH)
    weight = tl.minimum(d, width - 1)[:, None] * channels + k[None, :]
    x_at = (first + t).to(tl.int64)[:, None] * channels + k[None, :]
    total = tl.zeros([ROWS, BLOCK_T], tl.float32)
    for start in range(0, channels, DEPTH):
        if EVEN:
            token = tl.load(x + x_at + start, mask=t[:, None] < rows, other=0.0)
            w = tl.load(down + weight + start)
        else:
            inside = k[None, :] < channels - start
            token = tl.load(x + x_at + start, mask=(t[:, None] < rows) & inside, other=0.0)
            w = tl.load(down + weight + start, mask=inside, other=0.0)
        total = tl.dot(w, tl.trans(token), total)
    out_at = target.to(tl.int64)[None, :] * width + d[:, None]
    value = total.to(out.dtype.element_ty)
    tl.store(out + out_at, value, mask=(t[None, :] < rows) & (d[:, None] < width))
