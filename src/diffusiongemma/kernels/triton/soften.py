"""The expected embedding from stored logits: probabilities once, then a product split over tokens.

Contract: `kernels.readout.expected_embedding` of exp(x - log_total), where x is what `readout.read`
saw of the same logits and log_total what it said of them. The probabilities are rounded to the
table's dtype, summed in float32, rounded as a product's result is, and only then scaled.

Why not in the product's own loop: a block of 256 columns would make every probability anew for each
of 11 column blocks. For a canvas of 256 over 262,144 tokens and a table 2,816 wide, on 132
multiprocessors at 1.755 GHz with 16 special functions and 128 other operations a clock:

    in the loop   3 x 67.1 M x 11 special functions: 0.60 ms; some 15 x 67.1 M x 11 others: 0.34 ms
    written once  134 MB in, 134 MB out at 4.3 TB/s: 0.062 ms; 3 x 67.1 M special functions: 0.054
    the product   378 GFLOP at 790 TFLOP/s: 0.48 ms

The first would at best hide the product behind 0.6 ms; the second costs 0.54 to 0.56 in all.

A row's bits do not depend on the other rows, since the vocabulary is always cut into as many parts;
with `skip` they do, because every row decides which tokens are worth a look.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from diffusiongemma.kernels.triton.jit import jit
from diffusiongemma.kernels.triton.readout import LOG2E, tempered

ROWS = 128  # of a block of the product: the largest accumulator that two warpgroups hold
COLUMNS = 256  # 11 blocks of them make 2,816
DEPTH = 64  # tokens a step of the product's loop: 48 KB of both operands
STAGES = 4  # 192 KB of a multiprocessor's 227
SKIP_STAGES = 7  # makes as many buffers where a tile's number is fetched ahead of the tile
WARPS = 8  # two warpgroups of 64 rows: 128 accumulators a thread

SPLITS = 6
"""Parts of the vocabulary. Two blocks of rows, 11 of columns and 6 parts are 132 blocks, one for
each multiprocessor; larger batches of whole canvases make whole waves of them as well."""

TOGETHER = 16  # positions of a block that makes probabilities, 32 entries a thread of four warps
WIDE = 256  # tokens of it: 512 bytes of bfloat16, one load of a warp
FLAT = 1024  # entries of the result that a block sums

NEGLIGIBLE = 2.0**-20
"""A mass for `skip`: if all 4,096 tiles of 262,144 tokens were dropped, and all they hold were in
one row, that row would lose 2**-8, which is what rounding to bfloat16 may take from each of its
probabilities. At 2**-12 a row could lose all it has."""


def soften(
    logits_SV: Float[Tensor, "S V"],
    cap: float,
    temperature_S: Float[Tensor, " S"],
    log_total_S: Float[Tensor, " S"],
    bias_V: Float[Tensor, " V"] | None,
    embedding_VD: Float[Tensor, "V D"],
    scale: Float[Tensor, ""],
    skip: float | None = None,
) -> Float[Tensor, "S D"]:
    """The expected embedding of every position, scaled.

    Args:
        logits_SV: bfloat16 or float32, contiguous. Those in the table's dtype become probabilities.
        cap: softcap of the logits.
        temperature_S: float32, above 0.
        log_total_S: `readout.Statistics.log_total_S`.
        bias_V: float32, added to the softcapped logits.
        embedding_VD: the tied embedding table, bfloat16 or float16, contiguous.
        scale: sqrt(D) in the table's dtype.
        skip: tiles of `DEPTH` tokens whose probabilities, over all rows together, sum to less are
            left out, without a look from the host. A row may lose `skip` for each tile.
    """
    assert logits_SV.is_contiguous() and embedding_VD.is_contiguous()
    positions, vocabulary = logits_SV.shape
    width, device, dtype = embedding_VD.shape[1], logits_SV.device, embedding_VD.dtype
    assert dtype.itemsize == 2 and scale.dtype == dtype and positions * vocabulary < 1 << 31
    soft_SD = torch.empty(positions, width, dtype=dtype, device=device)
    if not positions:
        return soft_SD
    p_SV = logits_SV if logits_SV.dtype == dtype else torch.empty_like(logits_SV, dtype=dtype)
    masses = _write(p_SV, logits_SV, cap, temperature_S, log_total_S, bias_V, skip is not None)
    tiles = -(-vocabulary // DEPTH)
    kept = torch.empty(1 + tiles, dtype=torch.int32, device=device)
    if skip is not None:
        _kept[(1,)](
            masses, kept, tiles, *masses.shape, skip,
            TILES=triton.next_power_of_2(tiles), num_warps=WARPS,
        )  # fmt: skip
    parts = torch.empty(SPLITS, positions, width, dtype=torch.float32, device=device)
    down, across = -(-positions // ROWS), -(-width // COLUMNS)
    _product[(down * across * SPLITS,)](
        p_SV, embedding_VD, kept, parts, positions, vocabulary, width, tiles, down, across,
        SKIP=skip is not None, WHOLE=vocabulary % DEPTH == 0 and width % COLUMNS == 0,
        ROWS=ROWS, COLUMNS=COLUMNS, DEPTH=DEPTH, SPLITS=SPLITS,
        num_warps=WARPS, num_stages=STAGES if skip is None else SKIP_STAGES,
    )  # fmt: skip
    count = positions * width
    _sum[(-(-count // FLAT),)](parts, scale, soft_SD, count, SPLITS=SPLITS, FLAT=FLAT)
    return soft_SD


def probabilities_(
    logits_SV: Float[Tensor, "S V"],
    cap: float,
    temperature_S: Float[Tensor, " S"],
    log_total_S: Float[Tensor, " S"],
    bias_V: Float[Tensor, " V"] | None = None,
) -> Float[Tensor, "S V"]:
    """Logits become probabilities where they stand, in their own dtype."""
    assert logits_SV.is_contiguous()
    if len(logits_SV):
        _write(logits_SV, logits_SV, cap, temperature_S, log_total_S, bias_V, weigh=False)
    return logits_SV


def _write(
    p_SV: Tensor,
    logits_SV: Tensor,
    cap: float,
    temperature_S: Tensor,
    log_total_S: Tensor,
    bias_V: Tensor | None,
    weigh: bool,
) -> Tensor:
    """Write probabilities. If asked for, the mass of each tile in each `TOGETHER` positions."""
    positions, vocabulary = logits_SV.shape
    groups, strips = -(-positions // TOGETHER), -(-vocabulary // WIDE)
    shape = (groups, strips * (WIDE // DEPTH)) if weigh else (1, 1)
    masses = torch.empty(shape, dtype=torch.float32, device=logits_SV.device)
    biased = bias_V is not None
    _probabilities[(groups * strips,)](
        logits_SV, p_SV, temperature_S, log_total_S, bias_V if biased else temperature_S, masses,
        positions, vocabulary, strips, cap,
        BIASED=biased, WEIGH=weigh, TOGETHER=TOGETHER, WIDE=WIDE, DEPTH=DEPTH,
    )  # fmt: skip
    return masses


@jit
def _probabilities(
    logits, out, temperatures, log_totals, bias, masses, positions, vocabulary, strips, cap,
    BIASED: tl.constexpr, WEIGH: tl.constexpr,
    TOGETHER: tl.constexpr, WIDE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A strip of the vocabulary for some positions."""
    group, strip = tl.program_id(0) // strips, tl.program_id(0) % strips
    row = group * TOGETHER + tl.arange(0, TOGETHER)
    ids = strip * WIDE + tl.arange(0, WIDE)
    there, known = row < positions, ids[None, :] < vocabulary
    within = there[:, None] & known
    temperature = tl.load(temperatures + row, mask=there, other=1.0)[:, None]
    total = tl.load(log_totals + row, mask=there, other=0.0)[:, None] * LOG2E
    at = row.to(tl.int64)[:, None] * vocabulary + ids[None, :]
    logit = tl.load(logits + at, mask=within, other=0.0)
    x = tempered(logit, bias, ids[None, :], known, cap, temperature, BIASED)
    p = tl.exp2(x - total).to(out.dtype.element_ty)
    tl.store(out + at, p, mask=within)
    if WEIGH:
        mass = tl.sum(tl.where(within, p.to(tl.float32), 0.0), 0)
        mass = tl.sum(tl.reshape(mass, (WIDE // DEPTH, DEPTH)), 1)
        tile = tl.arange(0, WIDE // DEPTH)
        tl.store(masses + (group * strips + strip) * (WIDE // DEPTH) + tile, mass)


@jit
def _kept(masses, kept, tiles, groups, line, skip, TILES: tl.constexpr):
    """How many tiles are worth a look, then which, in ascending order."""
    tile = tl.arange(0, TILES)
    there = tile < tiles
    mass = tl.zeros((TILES,), tl.float32)
    for group in range(groups):
        mass += tl.load(masses + group * line + tile, mask=there, other=0.0)
    # What is not a number is kept, so that it is seen.
    worth = there & ((mass < skip) == 0)
    place = tl.cumsum(worth.to(tl.int32), 0)
    tl.store(kept + place, tile, mask=worth)
    tl.store(kept, tl.sum(worth.to(tl.int32), 0))


@jit
def _product(
    p, table, kept, parts, positions, vocabulary, width, tiles, down, across,
    SKIP: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """One block of the result over one part of the vocabulary's tiles, in float32."""
    program = tl.program_id(0)
    # Blocks that stand side by side read the same part of the table.
    row = (program % down) * ROWS + tl.arange(0, ROWS)
    column = (program // down % across) * COLUMNS + tl.arange(0, COLUMNS)
    split = program // (down * across)
    deep = tl.arange(0, DEPTH)
    left = tl.minimum(row, positions - 1)[:, None] * vocabulary + deep[None, :]
    right = deep[:, None] * width + column[None, :]
    count = tl.load(kept) if SKIP else tiles
    each = tl.cdiv(count, SPLITS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(split * each, tl.minimum(split * each + each, count)):
        tile = tl.load(kept + 1 + step) if SKIP else step
        first = (tile * DEPTH).to(tl.int64)
        if WHOLE:
            a = tl.load(p + first + left)
            b = tl.load(table + first * width + right)
        else:
            inside = tile * DEPTH + deep < vocabulary
            a = tl.load(p + first + left, mask=inside[None, :], other=0.0)
            known = inside[:, None] & (column < width)[None, :]
            b = tl.load(table + first * width + right, mask=known, other=0.0)
        total = tl.dot(a, b, total)
    out = (split * positions + row[:, None]).to(tl.int64) * width + column[None, :]
    within = (row < positions)[:, None] & (column < width)[None, :]
    tl.store(parts + out, total, mask=within)


@jit
def _sum(parts, scale, out, count, SPLITS: tl.constexpr, FLAT: tl.constexpr):
    """The parts in their order, rounded, then scaled, then rounded again."""
    at = tl.program_id(0) * FLAT + tl.arange(0, FLAT)
    within = at < count
    part = parts + at
    total = tl.load(part, mask=within, other=0.0)
    for _ in tl.static_range(1, SPLITS):  # pyright: ignore[reportGeneralTypeIssues]
        part += count
        total += tl.load(part, mask=within, other=0.0)
    rounded = total.to(out.dtype.element_ty).to(tl.float32)
    scaled = rounded * tl.load(scale).to(tl.float32)
    tl.store(out + at, scaled.to(out.dtype.element_ty), mask=within)
