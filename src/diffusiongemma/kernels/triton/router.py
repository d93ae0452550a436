"""Which experts a token goes to, in two launches: scores in pieces, then their sum and the choice.

Contract: Router of model/experts.py behind its norm. A token's scores are rounded to the weights'
dtype, as a product there gives them; the best are chosen, of equal ones the lower number; their
weights are the softmax over all experts, in float32, renormed over the chosen ones, times a scale
per expert. A row depends on its own token alone.

Shares are exp(score) over the sum of the chosen ones: what the softmax divides by falls out.

In one launch the programs that have all scores of their tokens were 16, each of which read the
whole weight: 12.9 us of an H200 for 256 tokens. So channels are shared out too.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from diffusiongemma.kernels.triton.jit import jit

TOKENS = 16  # of a program of the first launch
STEP = 256  # bytes of a row that a step takes
PIECES = 11  # of a row at most; 2,816 channels of bfloat16 are 22 steps, two for each
STAGES = 3
CHOOSING = 4  # tokens of a program of the second launch
WARPS = 4


def route(
    normed_SD: Float[Tensor, "S D"],
    weight_ED: Float[Tensor, "E D"],
    expert_scale_E: Float[Tensor, " E"],
    top: int,
) -> tuple[Int64[Tensor, "S G"], Float32[Tensor, "S G"]]:
    """Numbers and weights of the experts of each token, the best first.

    Args:
        normed_SD: tokens, normed for the router and scaled.
        weight_ED: what the scores are made with.
        expert_scale_E: learned, per expert.
        top: G.
    """
    tokens, width = normed_SD.shape
    count, depth = len(weight_ED), STEP // weight_ED.itemsize
    expert_SG = normed_SD.new_empty(tokens, top, dtype=torch.int64)
    share_SG = normed_SD.new_empty(tokens, top, dtype=torch.float32)
    if not tokens:
        return expert_SG, share_SG
    steps, experts = -(-width // depth), max(64, 1 << (count - 1).bit_length())
    each = -(-steps // PIECES)
    pieces = -(-steps // each)
    scores = normed_SD.new_empty(pieces, tokens, experts, dtype=torch.float32)
    _score[(triton.cdiv(tokens, TOKENS), pieces)](
        normed_SD.contiguous(), weight_ED.contiguous(), scores, tokens, width, count,
        EACH=each, EVEN=width % (depth * each) == 0, EXPERTS=experts, DEPTH=depth, TOKENS=TOKENS,
        num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    _choose[(triton.cdiv(tokens, CHOOSING),)](
        scores, weight_ED, expert_scale_E.contiguous(), expert_SG, share_SG, tokens, count,
        PIECES=pieces, TOP=top, SLOTS=triton.next_power_of_2(top), EXPERTS=experts,
        TOKENS=CHOOSING, num_warps=WARPS,
    )  # fmt: skip
    return expert_SG, share_SG


@jit
def _turned(bits):
    """Of a float, as a whole number that is ordered as floats are; and back again."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@jit
def _score(
    x_ptr,
    weight_ptr,
    score_ptr,
    tokens,
    width,
    count,
    EACH: tl.constexpr,
    EVEN: tl.constexpr,
    EXPERTS: tl.constexpr,
    DEPTH: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """All experts' scores of some tokens, as far as one piece of the channels makes them."""
    t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    e = tl.arange(0, EXPERTS)
    k = tl.arange(0, DEPTH)
    begin = tl.program_id(1) * (EACH * DEPTH)
    x_at = x_ptr + t[:, None] * width + k[None, :]
    weight_at = weight_ptr + tl.minimum(e, count - 1)[:, None] * width + k[None, :]
    scores = tl.zeros([EXPERTS, TOKENS], tl.float32)
    for step in range(EACH):
        start = begin + step * DEPTH
        if EVEN:
            x = tl.load(x_at + start, mask=t[:, None] < tokens, other=0.0)
            w = tl.load(weight_at + start)
        else:
            inside = k[None, :] < width - start
            x = tl.load(x_at + start, mask=(t[:, None] < tokens) & inside, other=0.0)
            w = tl.load(weight_at + start, mask=inside, other=0.0)
        # For float32 weights; bfloat16 has one precision.
        scores = tl.dot(w, tl.trans(x), scores, input_precision="ieee")
    out = score_ptr + (tl.program_id(1) * tokens + t).to(tl.int64)[None, :] * EXPERTS + e[:, None]
    tl.store(out, scores, mask=t[None, :] < tokens)


@jit
def _choose(
    score_ptr,
    weight_ptr,
    scale_ptr,
    expert_ptr,
    share_ptr,
    tokens,
    count,
    PIECES: tl.constexpr,
    TOP: tl.constexpr,
    SLOTS: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Some tokens' experts. The weights are not read, but say what scores are rounded to."""
    t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    e = tl.arange(0, EXPERTS)
    at = score_ptr + t.to(tl.int64)[None, :] * EXPERTS + e[:, None]
    scores = tl.zeros([EXPERTS, TOKENS], tl.float32)
    for piece in tl.static_range(PIECES):
        offset = tokens.to(tl.int64) * (piece * EXPERTS)
        scores += tl.load(at + offset, mask=t[None, :] < tokens, other=0.0)
    scores = scores.to(weight_ptr.dtype.element_ty).to(tl.float32)

    # A score and its expert in one whole number, so that the largest is the one to take.
    key = _turned(scores.to(tl.int32, bitcast=True)).to(tl.int64) << 32
    key = key | (EXPERTS - 1 - e).to(tl.int64)[:, None]
    lowest = -0x7FFFFFFFFFFFFFFF
    key = tl.where(e[:, None] < count, key, lowest)

    g = tl.arange(0, SLOTS)
    chosen = tl.zeros([TOKENS, SLOTS], tl.int32)
    value = tl.full([TOKENS, SLOTS], float("-inf"), tl.float32)
    for slot in tl.static_range(TOP):
        best = tl.max(key, 0)
        key = tl.where(key == best[None, :], lowest, key)
        score = _turned((best >> 32).to(tl.int32)).to(tl.float32, bitcast=True)
        number = EXPERTS - 1 - (best & 0xFFFFFFFF).to(tl.int32)
        chosen = tl.where(g[None, :] == slot, number[:, None], chosen)
        value = tl.where(g[None, :] == slot, score[:, None], value)
    share = tl.exp(value - tl.max(value, 1)[:, None])
    share = share / tl.sum(share, 1)[:, None]
    share = share * tl.load(scale_ptr + chosen).to(tl.float32)
    at = t[:, None] * TOP + g[None, :]
    inside = (t[:, None] < tokens) & (g[None, :] < TOP)
    tl.store(expert_ptr + at, chosen.to(tl.int64), mask=inside)
    tl.store(share_ptr + at, share, mask=inside)
