"""Queries, keys and values of one projection: normed, turned, and keys and values put in place.

One kernel for what model/attention.py asks kernels/norm_rope.py three times, and a store for the
rest. All is computed in float32 and rounded once, where it is written.
"""

import math

import torch
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from diffusiongemma.kernels.triton.jit import jit

CHANNELS = 2048
"""Channels that one program takes, whole heads of one kind: 16 for each of its 128 threads, so that
a thread loads 16 bytes from either half of a head, and a canvas of 256 makes 1024 programs."""


@jit
def _norm_rope_write(
    qkv,
    q_weight,
    k_weight,
    cos,
    sin,
    at,
    q,
    k,
    v,
    tokens,
    capacity,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    H: tl.constexpr,
    OWN_VALUES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Some heads of one kind of one token."""
    token, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    head = chunk * BLOCK + tl.arange(0, BLOCK)[:, None]
    HALF: tl.constexpr = H // 2
    lane = tl.arange(0, HALF)[None, :]
    COLUMNS: tl.constexpr = (N + K * (2 if OWN_VALUES else 1)) * H
    source = qkv + token * COLUMNS + head * H + lane
    low, high = tl.load(source).to(tl.float32), tl.load(source + HALF).to(tl.float32)
    square = tl.sum(low * low, 1) + tl.sum(high * high, 1)
    scale = tl.rsqrt(square / H + eps)[:, None]
    low, high = low * scale, high * scale
    row = token // tokens
    index = tl.load(at + row) + token % tokens
    real = (index >= 0) & (index < capacity)  # nothing is ever written outside of the buffers
    if chunk * BLOCK < N + K:
        is_query = chunk * BLOCK < N
        weight = (q_weight if is_query else k_weight) + lane
        c, s = tl.load(cos + token * H + lane), tl.load(sin + token * H + HALF + lane)
        left = low * tl.load(weight).to(tl.float32)
        right = high * tl.load(weight + HALF).to(tl.float32)
        turned_left, turned_right = left * c - right * s, right * c + left * s
        if is_query:
            target = q + token * (N * H) + head * H + lane
            tl.store(target, turned_left)
            tl.store(target + HALF, turned_right)
        else:
            place = ((row * K + head - N) * capacity + index) * H + lane
            tl.store(k + place, turned_left, mask=real)
            tl.store(k + place + HALF, turned_right, mask=real)
    if (chunk * BLOCK >= N + K) if OWN_VALUES else (chunk * BLOCK >= N):
        first = N + K if OWN_VALUES else N
        place = ((row * K + head - first) * capacity + index) * H + lane
        tl.store(v + place, low, mask=real)
        tl.store(v + place + HALF, high, mask=real)


def norm_rope_write(
    qkv_SF: Float[Tensor, "S F"],
    q_weight_H: Float[Tensor, " H"],
    k_weight_H: Float[Tensor, " H"],
    eps: float,
    turn: tuple[Float[Tensor, "S 1 H"], Float[Tensor, "S 1 H"]],
    k_BKCH: Float[Tensor, "B K C H"],
    v_BKCH: Float[Tensor, "B K C H"],
    at_B: Int[Tensor, " B"],
    heads: int,
) -> Float[Tensor, "S N H"]:
    """Queries, normed and turned; keys and values go to their places in the buffers.

    Args:
        qkv_SF: equally many tokens of each row, row by row; columns are the heads of queries, then
            of keys, then of values. Without columns for values the raw keys are the values.
        q_weight_H: of the queries' norm.
        k_weight_H: of the keys' norm; values are normed without weight.
        eps: of the norms.
        turn: cosine and sine of every token's rotation, as `rotation` makes them.
        k_BKCH: the buffer of all rows' keys.
        v_BKCH: the same for values.
        at_B: index, on the device, where each row's first token goes.
        heads: N.
    """
    shared, capacity, width = k_BKCH.shape[1:]
    count, columns = qkv_SF.shape
    tokens = count // at_B.shape[0]
    own_values = columns == (heads + 2 * shared) * width
    assert own_values or columns == (heads + shared) * width
    assert count == tokens * at_B.shape[0]
    cos, sin = turn
    for part in (qkv_SF, cos, sin, k_BKCH, v_BKCH):
        assert part.is_contiguous()
    q_SNH = torch.empty(count, heads, width, dtype=qkv_SF.dtype, device=qkv_SF.device)
    block = _block(heads, shared, width)
    _norm_rope_write[(count, columns // width // block)](
        qkv_SF, q_weight_H, k_weight_H, cos, sin, at_B, q_SNH, k_BKCH, v_BKCH,
        tokens, capacity, eps,
        N=heads, K=shared, H=width, OWN_VALUES=own_values, BLOCK=block,
    )  # fmt: skip
    return q_SNH


def _block(heads: int, shared: int, width: int) -> int:
    """Heads of a program: a power of two that divides the heads of each kind."""
    common = math.gcd(heads, shared)
    return min(common & -common, max(1, CHANNELS // width))
