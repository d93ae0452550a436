"""Attention straight from the buffers that keys and values live in.

The same contract as kernels/attention.py: softmax(q @ k.T) @ v with scale 1, softmax in float32,
query heads shared evenly among key heads. Where a row's keys begin and end is read on the device,
launches depend on shapes alone, and nothing is copied or masked in memory, so a call can be part
of a CUDA graph. A row's bits depend on its own queries, keys and number of keys, neither on its
neighbours nor on where in the buffer its keys are.

Written after FlashAttention-2 (Dao 2023) and Flash-Decoding (Dao et al. 2023): the query heads that
share a key head are the rows of one tile, position by position; keys are split among programs,
whose shares a second kernel puts together.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from diffusiongemma.kernels.quantised import Rows
from diffusiongemma.kernels.triton.eight import e4m3, empty, quantise, scale_of
from diffusiongemma.kernels.triton.jit import jit


class Tile(NamedTuple):
    """What one program works on.

    Attributes:
        rows: queries, the heads of a group counted each.
        keys: keys at a time.
        halves: programs that share the channels of the values; each makes all scores.
        warps: of a program.
        stages: keys and values under way, in tiles.
    """

    rows: int
    keys: int
    halves: int
    warps: int
    stages: int


# Measured on an H200, 256 queries over 1,280 keys, microseconds a layer with the second kernel.
# 256 channels: 22.1 so, 23.6 with (128, 64, 1, 8, 2), 24.8 with (128, 32, 1, 8, 4), 27.6 with two
# stages. 512 channels: 54.8 so, 55.4 with (64, 32, 2, 4, 2), 64.0 with (128, 16, 2, 8, 3): there
# the accumulators of a tile are too many registers for one program, so two make all scores and half
# of the values each. With a causal mask the first of these would spill registers.
NARROW = Tile(rows=64, keys=64, halves=1, warps=4, stages=3)
TEXT = Tile(rows=128, keys=32, halves=1, warps=8, stages=4)
WIDE = Tile(rows=128, keys=32, halves=2, warps=8, stages=2)
NARROW_CHANNELS = 256

PROGRAMS = 132
"""Multiprocessors of an H100 or H200. A program fills one, so keys are split among as many programs
as there is room for, and no more: one above would wait until another ends."""

SHARE = 256
"""Keys that are worth a program of their own."""

COMBINED = 2048
"""Channels that one program of the second kernel writes: 16 for each of its 128 threads."""


@jit
def _share(
    begin, stop, tile, split, splits, tokens,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Which of a row's keys one program takes: its share of those that its queries see."""
    if CAUSAL:
        start = stop - tokens
        last = tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // GROUP, tokens - 1)
        stop = start + last + 1
        if WINDOW > 0:
            begin = tl.maximum(begin, start + tile * BLOCK_M // GROUP - WINDOW + 1)
    share = tl.cdiv(tl.cdiv(tl.maximum(stop - begin, 0), BLOCK_N), splits) * BLOCK_N
    begin += split * share
    return begin, tl.minimum(begin + share, stop)


@jit
def _attend(
    q, k, v, first, end, out, peak, mass, tokens, capacity,
    HEADS: tl.constexpr, GROUP: tl.constexpr, H: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, WHOLE: tl.constexpr, HALVES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one row and key head, over one share of the keys."""
    tile, part, pair = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    split, half, splits = part // HALVES, part % HALVES, tl.num_programs(1) // HALVES
    row, head = pair // HEADS, pair % HEADS
    place = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    real = place < tokens * GROUP
    query = place // GROUP
    line = (row * tokens + query).to(tl.int64) * (HEADS * GROUP) + head * GROUP + place % GROUP
    lane = tl.arange(0, H)
    WIDTH: tl.constexpr = H // HALVES
    value_lane = half * WIDTH + tl.arange(0, WIDTH)
    begin, stop = tl.load(first + row).to(tl.int32), tl.load(end + row).to(tl.int32)
    index = stop - tokens + query
    begin, stop = _share(
        begin, stop, tile, split, splits, tokens, GROUP, CAUSAL, WINDOW, BLOCK_M, BLOCK_N
    )
    keys = k + pair.to(tl.int64) * capacity * H
    values = v + pair.to(tl.int64) * capacity * H
    x = tl.load(q + line[:, None] * H + lane[None, :], mask=real[:, None], other=0.0)
    high = tl.full([BLOCK_M], -1e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    for at in tl.range(begin, stop, BLOCK_N):
        c = at + tl.arange(0, BLOCK_N)
        there = c < stop
        kk = tl.load(keys + c[:, None] * H + lane[None, :], mask=there[:, None], other=0.0)
        score = tl.dot(x, tl.trans(kk), input_precision="ieee") * 1.4426950408889634
        sees = there[None, :]
        if CAUSAL:
            sees = sees & (c[None, :] <= index[:, None])
            if WINDOW > 0:
                sees = sees & (c[None, :] > index[:, None] - WINDOW)
        score = tl.where(sees, score, float("-inf"))
        higher = tl.maximum(high, tl.max(score, 1))
        shrink = tl.exp2(high - higher)
        p = tl.exp2(score - higher[:, None])
        total = total * shrink + tl.sum(p, 1)
        high = higher
        vv = tl.load(values + c[:, None] * H + value_lane[None, :], mask=there[:, None], other=0.0)
        acc = tl.dot(p.to(vv.dtype), vv, acc * shrink[:, None], input_precision="ieee")
    if WHOLE:
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]
        spot = line
    else:
        lines = (tl.num_programs(2) // HEADS).to(tl.int64) * tokens * (HEADS * GROUP)
        spot = line + split * lines
        tl.store(peak + spot, high, mask=real)
        tl.store(mass + spot, total, mask=real)
    tl.store(out + spot[:, None] * H + value_lane[None, :], acc, mask=real[:, None])


@jit
def _combine(
    part,
    peak,
    mass,
    out,
    scales,
    lines,
    H: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    EIGHT: tl.constexpr,
):
    """Some heads of some queries, from what each share of their keys came to; in e4m3 the heads of
    one query, which have one scale.
    """
    line = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = line < lines
    lane = tl.arange(0, H)
    high = tl.load(peak + line, mask=real, other=0.0)
    for split in tl.static_range(1, SPLITS):  # pyright: ignore[reportGeneralTypeIssues]
        high = tl.maximum(high, tl.load(peak + line + split * lines, mask=real, other=0.0))
    total = tl.zeros([BLOCK], tl.float32)
    acc = tl.zeros([BLOCK, H], tl.float32)
    for split in tl.static_range(SPLITS):
        spot = line + split * lines
        shrink = tl.exp2(tl.load(peak + spot, mask=real, other=0.0) - high)
        total += shrink * tl.load(mass + spot, mask=real, other=0.0)
        x = tl.load(part + spot[:, None] * H + lane[None, :], mask=real[:, None], other=0.0)
        acc += shrink[:, None] * x
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    at = out + line[:, None] * H + lane[None, :]
    if EIGHT:
        acc = acc.to(tl.bfloat16).to(tl.float32)
        scale = scale_of(tl.max(tl.max(tl.abs(acc), 1), 0))
        tl.store(scales + tl.program_id(0), scale)
        tl.store(at, e4m3(acc, scale))
    else:
        tl.store(at, acc, mask=real[:, None])


def attend_canvas(
    q_BLNH: Float[Tensor, "B L N H"],
    k_BKCH: Float[Tensor, "B K C H"],
    v_BKCH: Float[Tensor, "B K C H"],
    first_B: Int[Tensor, " B"],
    end_B: Int[Tensor, " B"],
) -> Float[Tensor, "B L N H"]:
    """Every query of a row sees all of the row's keys from `first` up to `end`.

    Args:
        q_BLNH: queries of the canvases.
        k_BKCH: the buffers of all rows' keys; what lies outside a row's range is not read.
        v_BKCH: the same for values.
        first_B: index of the first key that is seen, on the device, for each row.
        end_B: index after the last one.
    """
    call = _Call(q_BLNH, k_BKCH, v_BKCH, first_B, end_B, causal=False, window=None)
    return call.whole()


def canvas_rows(
    q_BLNH: Float[Tensor, "B L N H"],
    k_BKCH: Float[Tensor, "B K C H"],
    v_BKCH: Float[Tensor, "B K C H"],
    first_B: Int[Tensor, " B"],
    end_B: Int[Tensor, " B"],
) -> Rows:
    """`attend_canvas`, its heads side by side in e4m3: q (B * L, N * H), scale (B * L,)."""
    call = _Call(q_BLNH, k_BKCH, v_BKCH, first_B, end_B, causal=False, window=None)
    return call.rows()


def attend_causal(
    q_BTNH: Float[Tensor, "B T N H"],
    k_BKCH: Float[Tensor, "B K C H"],
    v_BKCH: Float[Tensor, "B K C H"],
    first_B: Int[Tensor, " B"],
    end_B: Int[Tensor, " B"],
    window: int | None,
) -> Float[Tensor, "B T N H"]:
    """The last T tokens of each row see themselves and what lies before them.

    Args:
        q_BTNH: queries of the tokens whose keys are at indices `end` - T to `end` - 1.
        k_BKCH: the buffers of all rows' keys; what lies outside a row's range is not read.
        v_BKCH: the same for values.
        first_B: index of the first key that may be seen, on the device, for each row.
        end_B: index after the last one.
        window: how many keys a query sees at most, its own included; None for all.
    """
    call = _Call(q_BTNH, k_BKCH, v_BKCH, first_B, end_B, causal=True, window=window)
    return call.whole()


def causal_rows(
    q_BTNH: Float[Tensor, "B T N H"],
    k_BKCH: Float[Tensor, "B K C H"],
    v_BKCH: Float[Tensor, "B K C H"],
    first_B: Int[Tensor, " B"],
    end_B: Int[Tensor, " B"],
    window: int | None,
) -> Rows:
    """`attend_causal`, its heads side by side in e4m3: q (B * T, N * H), scale (B * T,)."""
    call = _Call(q_BTNH, k_BKCH, v_BKCH, first_B, end_B, causal=True, window=window)
    return call.rows()


def splits(tokens: int, heads: int, group: int, capacity: int, tile: Tile) -> int:
    """Programs among which the keys of a tile are shared: by shapes alone, whatever the batch.

    Args:
        tokens: queries of a row.
        heads: K.
        group: query heads that share a key head.
        capacity: C.
        tile: the program's tile.
    """
    tiles = -(-tokens * group // tile.rows) * heads * tile.halves
    return max(1, min(PROGRAMS // tiles, -(-capacity // SHARE)))


class _Call:
    """One attention: the products when it is made, then what its shares come to."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, first: Tensor, end: Tensor, *,
        causal: bool, window: int | None,
    ) -> None:  # fmt: skip
        rows, tokens, heads, width = q.shape
        shared, capacity = k.shape[1:3]
        assert heads % shared == 0 and width >= 16 and width & (width - 1) == 0
        assert q.is_contiguous() and k.is_contiguous() and v.is_contiguous()
        tile = WIDE if width > NARROW_CHANNELS else TEXT if causal else NARROW
        group, lines = heads // shared, rows * tokens * heads
        parts = splits(tokens, shared, group, capacity, tile)
        self.q, self.lines, self.parts = q, lines, parts
        # Where one program sees all keys, peak and mass are of no use.
        part, peak, mass = torch.empty_like(q), first, first
        if parts > 1:
            part = q.new_empty(parts, lines, width, dtype=torch.float32)
            peak, mass = q.new_empty(2, parts, lines, dtype=torch.float32)
        grid = (triton.cdiv(tokens * group, tile.rows), parts * tile.halves, rows * shared)
        _attend[grid](
            q, k, v, first, end, part, peak, mass, tokens, capacity, HEADS=shared, GROUP=group,
            H=width, CAUSAL=causal, WINDOW=window or 0, WHOLE=parts == 1,
            HALVES=tile.halves, BLOCK_M=tile.rows, BLOCK_N=tile.keys,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        self.shares = part, peak, mass

    def whole(self) -> Tensor:
        """In the format of the queries."""
        if self.parts == 1:
            return self.shares[0]
        out, width = torch.empty_like(self.q), self.q.shape[-1]
        block = max(1, COMBINED // width)
        _combine[(triton.cdiv(self.lines, block),)](
            *self.shares, out, out, self.lines, H=width, SPLITS=self.parts, BLOCK=block, EIGHT=False
        )
        return out

    def rows(self) -> Rows:
        """In e4m3, all heads of a query with one scale."""
        heads, width = self.q.shape[2:]
        if self.parts == 1 or heads & (heads - 1):
            return quantise(self.whole().flatten(0, 1).flatten(1))
        out = empty(self.lines // heads, heads * width, self.q)
        _combine[(self.lines // heads,)](
            *self.shares, *out, self.lines, H=width, SPLITS=self.parts, BLOCK=heads, EIGHT=True,
            num_warps=8,
        )  # fmt: skip
        return out
