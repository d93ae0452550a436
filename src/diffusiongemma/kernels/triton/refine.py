"""The sampler's two small steps as one launch each: the random numbers, and the decision.

Contract: `draws` has the bits of `philox.draws`; `refine` decides what `kernels.refine` decides.
Sums of entropies are taken in float64 and rounded to float32 where the reference, on a CPU, rounds
its own: only a sum that lies on the bound within 1e-15 could fall to its other side.

A position's place in ascending entropy is never made: what its predecessors hold together is the
sum of all lower entropies, and of equal ones further left, which is one comparison for each pair.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffusiongemma.kernels.triton.jit import jit

WIDEST = 1024  # positions of a canvas, which one block holds at once
BESIDE = 8  # positions compared with all others together: 8 pairs a thread at 256, 32 at 1,024
DRAWN = 256  # positions a block draws for
WARPS = 8

DRAW = tl.constexpr(0)  # the purposes of `philox`
NOISE = tl.constexpr(1)
_WORD = tl.constexpr(0xFFFFFFFF)


def draws(
    seed_B2: Int[Tensor, "B 2"],
    canvas_B: Int[Tensor, " B"],
    step_B: Int[Tensor, " B"],
    width: int,
    vocabulary: int,
) -> tuple[Float[Tensor, "B L"], Int[Tensor, "B L"]]:
    """What decides a step's tokens, float64 in [0, 1), and the random tokens of its noise.

    Args:
        seed_B2: the seed modulo 2**64 as two words of 32 bits, the low one first; int64.
        canvas_B: index of the canvas within its answer, int64.
        step_B: refinement step, int64.
        width: L.
        vocabulary: V.
    """
    rows, device = len(seed_B2), seed_B2.device
    uniform_BL = torch.empty(rows, width, dtype=torch.float64, device=device)
    noise_BL = torch.empty(rows, width, dtype=torch.int64, device=device)
    if rows and width:
        _draws[(rows, -(-width // DRAWN))](
            seed_B2.contiguous(), canvas_B, step_B, uniform_BL, noise_BL, width, vocabulary,
            DRAWN=DRAWN,
        )  # fmt: skip
    return uniform_BL, noise_BL


def refine(
    token_BL: Int[Tensor, "B L"],
    best_BL: Int[Tensor, "B L"],
    entropy_BL: Float[Tensor, "B L"],
    noise_BL: Int[Tensor, "B L"],
    previous_best_BL: Int[Tensor, "B L"],
    repeats_B: Int[Tensor, " B"],
    bound_B: Float[Tensor, " B"],
    stable_B: Int[Tensor, " B"],
    sure_B: Float[Tensor, " B"],
) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"], Int[Tensor, " B"], Bool[Tensor, " B"]]:
    """Accept, re-noise the rest, decide whether to stop. All tensors are contiguous.

    Args:
        token_BL: sampled tokens.
        best_BL: the most likely tokens.
        entropy_BL: nats, float32.
        noise_BL: random tokens for every position; used where nothing is accepted.
        previous_best_BL: the most likely tokens of the step before, -1 before the first.
        repeats_B: for how many steps they have been the same.
        bound_B: nats that the accepted positions before a position may hold together, float32.
        stable_B: for how many steps the most likely canvas must have repeated, int64.
        sure_B: mean entropy below which the network is sure, float32.

    Returns:
        the next canvas; where the sample was kept; `repeats_B` of this step; stable and sure.
    """
    rows, width = token_BL.shape
    assert 0 < width <= WIDEST
    canvas_BL, after_B = torch.empty_like(token_BL), torch.empty_like(repeats_B)
    accepted_BL = torch.empty(rows, width, dtype=torch.uint8, device=token_BL.device)
    done_B = torch.empty(rows, dtype=torch.uint8, device=token_BL.device)
    if rows:
        _refine[(rows,)](
            token_BL, best_BL, entropy_BL, noise_BL, previous_best_BL, repeats_B,
            canvas_BL, accepted_BL, after_B, done_B, bound_B, stable_B, sure_B, width,
            WIDTH=max(BESIDE, triton.next_power_of_2(width)), BESIDE=BESIDE, num_warps=WARPS,
        )  # fmt: skip
    return canvas_BL, accepted_BL.view(torch.bool), after_B, done_B.view(torch.bool)


@jit
def philox(place, step, canvas, purpose, low, high):
    """The first two words of Philox 4x32-10. All are uint64 that hold 32-bit words."""
    first, second, third, fourth = place, step, canvas, purpose
    for _ in tl.static_range(10):  # pyright: ignore[reportGeneralTypeIssues]
        left, right = first * 0xD2511F53, third * 0xCD9E8D57
        first, second = (right >> 32) ^ second ^ low, right & _WORD
        third, fourth = (left >> 32) ^ fourth ^ high, left & _WORD
        low, high = (low + 0x9E3779B9) & _WORD, (high + 0xBB67AE85) & _WORD
    return first, second


@jit
def uniform(place, step, canvas, purpose: tl.constexpr, low, high):
    """`philox.uniforms` at some positions of a canvas; all are uint64, in 32 bits."""
    wanted = tl.zeros_like(place) + purpose
    first, second = philox(place, step, canvas, wanted, low, high)
    # Every number here has at most 53 bits, so nothing is rounded.
    high_part = (first >> 5).to(tl.float64) * 67108864.0
    return (high_part + (second >> 6).to(tl.float64)) * 1.1102230246251565e-16


@jit
def _word(pointer):
    return (tl.load(pointer) & _WORD).to(tl.uint64)


@jit
def _draws(seeds, canvases, steps, uniforms, noises, width, vocabulary, DRAWN: tl.constexpr):
    """A block of positions of one row, for both purposes."""
    row = tl.program_id(0)
    position = tl.program_id(1) * DRAWN + tl.arange(0, DRAWN)
    within, out = position < width, row.to(tl.int64) * width + position
    low, high = _word(seeds + 2 * row), _word(seeds + 2 * row + 1)
    step, canvas = _word(steps + row), _word(canvases + row)
    place = position.to(tl.uint64)
    tl.store(uniforms + out, uniform(place, step, canvas, DRAW, low, high), mask=within)
    noise = uniform(place, step, canvas, NOISE, low, high) * vocabulary
    tl.store(noises + out, noise.to(tl.int64), mask=within)


@jit
def _up_to(entropy, entropies, width, WIDTH: tl.constexpr, BESIDE: tl.constexpr):
    """What a position and those before it in ascending entropy hold together, in float64."""
    position = tl.arange(0, WIDTH)
    together = tl.zeros((WIDTH,), tl.float64)
    for start in range(0, width, BESIDE):
        other = start + tl.arange(0, BESIDE)
        beside = tl.load(entropies + other, mask=other < width, other=float("inf"))
        lower = beside[None, :] < entropy[:, None]
        equal = (beside[None, :] == entropy[:, None]) & (other[None, :] <= position[:, None])
        counted = (lower | equal) & (other[None, :] < width)
        together += tl.sum(tl.where(counted, beside[None, :].to(tl.float64), 0.0), 1)
    return together


@jit
def _refine(
    tokens, bests, entropies, noises, previous, repeats, canvases, accepted, after, done,
    bounds, stables, sures, width, WIDTH: tl.constexpr, BESIDE: tl.constexpr,
):  # fmt: skip
    """One row."""
    row, position = tl.program_id(0), tl.arange(0, WIDTH)
    within, start = position < width, row.to(tl.int64) * width
    at = start + position
    entropy = tl.load(entropies + at, mask=within, other=float("inf"))
    together = _up_to(entropy, entropies + start, width, WIDTH, BESIDE)
    # As the reference: the running sum is float32 before the position's own is taken off.
    inside = (together.to(tl.float32) - entropy <= tl.load(bounds + row)) & within
    token = tl.load(tokens + at, mask=within, other=0)
    noise = tl.load(noises + at, mask=within, other=0)
    tl.store(canvases + at, tl.where(inside, token, noise), mask=within)
    tl.store(accepted + at, inside.to(tl.uint8), mask=within)

    best = tl.load(bests + at, mask=within, other=0)
    changed = best != tl.load(previous + at, mask=within, other=0)
    again = tl.where(tl.sum(changed.to(tl.int32), 0) == 0, tl.load(repeats + row) + 1, 0)
    tl.store(after + row, again)
    held = tl.sum(tl.where(within, entropy, 0.0).to(tl.float64), 0)
    sure = (held / width).to(tl.float32) < tl.load(sures + row)
    tl.store(done + row, ((again >= tl.load(stables + row)) & sure).to(tl.uint8))
