"""Statistics of every position in one pass over stored logits: `readout`'s twin, but for `soft`.

Contract: that of `kernels.readout` and `kernels.draw` on the same logits, except that a draw within
rounding of a border may fall to its other side. The first kernel reads each logit once and leaves
three numbers for each tile of the vocabulary; the second merges a row's tiles and reads two of them
again: the one that holds the maximum, and the one that the draw falls into. Inside, everything is
counted in bits, so that exponentials are powers of two:

    x     = (softcap(logit) + bias) / temperature / log 2
    tanh  = 1 - 2 / (2 ** (2 z / log 2) + 1)
    tile  = max x,  sum 2 ** (x - max),  sum (x - max) 2 ** (x - max)

A row's numbers depend on nothing but that row, and its tiles always stand in the same order.

Cost, a canvas of 256 over 262,144 tokens: 134 MB to read is 31 us at 4.3 TB/s; three of a
multiprocessor's special functions for each of 67 M logits are 54 us on 132 of them.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from diffusiongemma.kernels.triton.jit import jit

TILE = 4096
"""Tokens whose sums are kept together. 32 for each thread of four warps, so that reductions across
threads are a small part of the work, while 64 tiles still make a row of 262,144."""

TILE_WARPS = 4  # 8 KB of bfloat16 a block, and some eight blocks a multiprocessor: 64 KB under way
MERGE_WARPS = 8  # float64 running sums over a tile: 16 entries a thread
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
_ABSENT = tl.constexpr(-1.0e30)  # x of what lies beyond the vocabulary: below any ban, yet finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What a readout says of each position, but for the expected embedding.

    Attributes:
        token_S: sampled tokens.
        best_S: the most likely tokens, the first of equals.
        entropy_S: nats.
        peak_S: the largest x, in nats; `peak_S - log_total_S` is the best token's log-probability.
        log_total_S: log of the sum of exp(x): a token's probability is exp(x - log_total_S).
    """

    token_S: Int[Tensor, " S"]
    best_S: Int[Tensor, " S"]
    entropy_S: Float[Tensor, " S"]
    peak_S: Float[Tensor, " S"]
    log_total_S: Float[Tensor, " S"]


def read(
    logits_SV: Float[Tensor, "S V"],
    cap: float,
    temperature_S: Float[Tensor, " S"],
    uniform_S: Float[Tensor, " S"],
    bias_V: Float[Tensor, " V"] | None = None,
) -> Statistics:
    """Statistics of every position. The logits are left as they are.

    Args:
        logits_SV: the product with the embedding table, bfloat16 or float32, contiguous.
        cap: softcap of the logits.
        temperature_S: float32, above 0.
        uniform_S: one number in [0, 1) a position, float64, that decides the sampled token.
        bias_V: float32, added to the softcapped logits; `kernels.readout.BANNED` for a ban.
    """
    assert logits_SV.is_contiguous()
    positions, vocabulary = logits_SV.shape
    device, tiles = logits_SV.device, -(-vocabulary // TILE)
    parts = torch.empty(positions, 3, tiles, dtype=torch.float32, device=device)
    token_S, best_S = (torch.empty(positions, dtype=torch.int64, device=device) for _ in "tb")
    entropy_S, peak_S, log_total_S = (
        torch.empty(positions, dtype=torch.float32, device=device) for _ in "epl"
    )
    given = (logits_SV, temperature_S, temperature_S if bias_V is None else bias_V)
    biased = bias_V is not None
    if positions:
        _tiles[(positions * tiles,)](
            *given, parts, vocabulary, tiles, cap, BIASED=biased, TILE=TILE, num_warps=TILE_WARPS
        )
        _merge[(positions,)](
            *given, uniform_S, parts, token_S, best_S, entropy_S, peak_S, log_total_S,
            vocabulary, tiles, cap, BIASED=biased, TILE=TILE,
            TILES=triton.next_power_of_2(tiles), num_warps=MERGE_WARPS,
        )  # fmt: skip
    return Statistics(
        token_S=token_S, best_S=best_S, entropy_S=entropy_S, peak_S=peak_S, log_total_S=log_total_S
    )


@jit
def tempered(logit, bias, ids, within, cap, temperature, BIASED: tl.constexpr):
    """x of the tokens `ids`, in bits, where they are `within` the vocabulary."""
    scale = cap * (LOG2E / temperature)
    power = tl.exp2(logit.to(tl.float32) * (2.0 * LOG2E / cap))
    # A power beyond float32 is an infinity, and the quotient then is zero, as it should be.
    x = scale - (2.0 * scale) / (power + 1.0)
    if BIASED:
        x += tl.load(bias + ids, mask=within, other=0.0) * (LOG2E / temperature)
    return x


@jit
def _of_tile(
    logits, bias, row, tile, vocabulary, cap, temperature,
    BIASED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """x of a tile, in bits, and which tokens they are."""
    ids = tile * TILE + tl.arange(0, TILE)
    within = ids < vocabulary
    logit = tl.load(logits + row.to(tl.int64) * vocabulary + ids, mask=within, other=0.0)
    x = tempered(logit, bias, ids, within, cap, temperature, BIASED)
    return tl.where(within, x, _ABSENT), ids


@jit
def _tiles(
    logits, temperatures, bias, parts, vocabulary, tiles, cap,
    BIASED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile of one row: max, sum and slope; three rows of `parts`."""
    row, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    temperature = tl.load(temperatures + row)
    x, _ = _of_tile(logits, bias, row, tile, vocabulary, cap, temperature, BIASED, TILE)
    peak = tl.max(x, 0)
    below = x - peak
    power = tl.exp2(below)
    place = parts + row.to(tl.int64) * 3 * tiles + tile
    tl.store(place, peak)
    tl.store(place + tiles, tl.sum(power, 0))
    tl.store(place + 2 * tiles, tl.sum(power * below, 0))


@jit
def _first_above(mass, target, SIZE: tl.constexpr):
    """Where the running sum of `mass` first exceeds the target, the mass before it, and its own.

    Only entries that have mass count, and the last of them is meant where rounding puts the target
    at the very end: a running sum that is taken in parallel need not grow at every entry.
    """
    place = tl.arange(0, SIZE)
    total = tl.cumsum(mass, 0)
    first = tl.min(tl.where((total > target) & (mass > 0.0), place, SIZE), 0)
    last = tl.max(tl.where(mass > 0.0, place, 0), 0)
    found = tl.minimum(first, last)
    own = tl.sum(tl.where(place == found, mass, 0.0), 0)
    reached = tl.sum(tl.where(place == found, total, 0.0), 0)
    return found, reached - own, own


@jit
def _log2(total):
    """log2 of a float64 from 1 upwards, as precisely as float32 holds it."""
    near = total.to(tl.float32)
    rest = (total - near.to(tl.float64)).to(tl.float32)
    return tl.log2(near) + rest / near * LOG2E


@jit
def _merge(
    logits, temperatures, bias, uniforms, parts, token, best, entropy, peaks, log_totals,
    vocabulary, tiles, cap, BIASED: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """One row: its tiles become statistics, and two of them are read again."""
    row, place = tl.program_id(0), tl.arange(0, TILES)
    temperature = tl.load(temperatures + row)
    part = parts + row.to(tl.int64) * 3 * tiles + place
    here = place < tiles
    tops = tl.load(part, mask=here, other=_ABSENT)
    sums = tl.load(part + tiles, mask=here, other=0.0)
    slopes = tl.load(part + 2 * tiles, mask=here, other=0.0)

    top = tl.max(tops, 0)
    weight = tl.exp2(tops - top).to(tl.float64)
    mass = weight * sums.to(tl.float64)
    slope = tl.sum(weight * slopes.to(tl.float64) + mass * (tops - top).to(tl.float64), 0)
    total = tl.sum(mass, 0)
    bits = _log2(total)
    tl.store(entropy + row, (bits - (slope / total).to(tl.float32)) * LN2)
    tl.store(peaks + row, top * LN2)
    tl.store(log_totals + row, (top + bits) * LN2)

    # What is not a number is never equal; the places stay within bounds all the same.
    tile = tl.min(tl.where(tops == top, place, tiles - 1), 0)
    x, ids = _of_tile(logits, bias, row, tile, vocabulary, cap, temperature, BIASED, TILE)
    equal = tl.where(x == tl.max(x, 0), ids, vocabulary - 1)
    tl.store(best + row, tl.min(equal, 0).to(tl.int64))

    tile, before, own = _first_above(mass, tl.load(uniforms + row) * total, TILES)
    left = tl.load(uniforms + row) * total - before
    x, ids = _of_tile(logits, bias, row, tile, vocabulary, cap, temperature, BIASED, TILE)
    inside = tl.exp2(x - tl.max(x, 0)).to(tl.float64)
    # In units of the tile itself: its own mass was rounded differently in the first pass.
    drawn, _, _ = _first_above(inside, left / own * tl.sum(inside, 0), TILE)
    tl.store(token + row, tl.minimum(tile * TILE + drawn, vocabulary - 1).to(tl.int64))
