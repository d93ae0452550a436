"""Randomness as a pure function of its place, never the state of a generator.

Every number is a hash of (seed, canvas, step, position, purpose) by Philox 4x32-10 (Salmon et al.
2011, "Parallel random numbers: as easy as 1, 2, 3"): the seed is the key, the place is the counter.
So the same seed gives the same text alone, beside other rows, after a restart, and on every rank.
"""

import functools
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLY = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
INITIAL_STEP = 0  # refinement steps count from 1


class Purpose(IntEnum):
    """What a number decides; two purposes at the same place are independent."""

    DRAW = 0  # which token is sampled from the prediction
    NOISE = 1  # which random token replaces a rejected one
    CORRUPT = 2  # training: whether a clean token is replaced


def philox(counter: Sequence[Tensor], key: tuple[int | Tensor, int | Tensor]) -> list[Tensor]:
    """Philox 4x32-10.

    Args:
        counter: four int64 tensors that hold 32-bit words, of shapes that broadcast.
        key: two 32-bit words, or tensors of them.

    Returns:
        four int64 tensors of 32-bit words.
    """
    words = list(torch.broadcast_tensors(*counter))
    low, high = key
    for _ in range(_ROUNDS):
        first, second = (words[0] * _MULTIPLY[0], words[2] * _MULTIPLY[1])
        # Products wrap around at 64 bits, which leaves the two 32-bit halves intact.
        words = [
            ((second >> 32) & _WORD) ^ words[1] ^ low,
            second & _WORD,
            ((first >> 32) & _WORD) ^ words[3] ^ high,
            first & _WORD,
        ]
        low, high = (low + _WEYL[0]) & _WORD, (high + _WEYL[1]) & _WORD
    return words


def _philox_numpy(even: Any, odd: Any, key: tuple[int, int]) -> tuple[Any, Any]:
    """The same with uint64 arrays of numpy, for its smaller calls: a sixth of the time.

    Args:
        even: words 0 and 2 of the counter, in one array with three axes.
        odd: words 1 and 3, likewise.
        key: two 32-bit words.

    Returns:
        both, after the last round.
    """
    multiply, weyl, keys = (
        np.array(pair, np.uint64)[:, None, None] for pair in (_MULTIPLY, _WEYL, key)
    )
    word, half = np.uint64(_WORD), np.uint64(32)
    for _ in range(_ROUNDS):
        product = (even * multiply)[::-1]
        even, odd = (product >> half) ^ odd ^ keys, product & word
        keys = (keys + weyl) & word
    return even, odd


def uniform(
    seed: int, canvas: int, step: int, width: int, purpose: Purpose, device: torch.device
) -> Float[Tensor, " L"]:
    """Numbers in [0, 1) for every position of a canvas: float64, 53 random bits.

    Args:
        seed: any whole number; taken modulo 2**64.
        canvas: index of the canvas within its answer, from 0.
        step: refinement step, from 1; `INITIAL_STEP` for the starting canvas.
        width: L.
        purpose: what the numbers decide.
        device: where they are wanted.
    """
    low, high, step, canvas = seed & _WORD, (seed >> 32) & _WORD, step & _WORD, canvas & _WORD
    if device.type == "cpu":
        return torch.from_numpy(_of_all_purposes(low, high, step, canvas, width)[purpose].copy())
    place = torch.arange(width, dtype=torch.int64, device=device)
    rest = [torch.tensor(word, device=device) for word in (step, canvas, int(purpose))]
    first, second, *_ = philox([place, *rest], (low, high))
    return ((first >> 5).double() * 2.0**26 + (second >> 6).double()) * 2.0**-53


@functools.lru_cache(maxsize=64)
def _of_all_purposes(low: int, high: int, step: int, canvas: int, width: int) -> Any:
    """One row of numbers for each purpose, in one go: most of the time is that of numpy's calls."""
    purposes = len(Purpose)
    even, odd = np.empty((2, purposes, width), np.uint64), np.empty((2, purposes, 1), np.uint64)
    even[0], even[1] = np.arange(width), canvas
    odd[0], odd[1, :, 0] = step, np.arange(purposes)
    even, odd = _philox_numpy(even, odd, (low, high))
    return ((even[0] >> np.uint64(5)) * 2.0**26 + (odd[0] >> np.uint64(6))) * 2.0**-53


def uniforms(
    seeds: Int[Tensor, "B 2"],
    canvas_B: Int[Tensor, " B"],
    step_B: Int[Tensor, " B"],
    width: int,
    purpose: Purpose,
) -> Float[Tensor, "B L"]:
    """`uniform` for several rows whose seeds, canvases and steps are on the device; the same bits.

    Args:
        seeds: low and high 32 bits of each row's seed (`seed_words`).
        canvas_B: index of each row's canvas.
        step_B: number of each row's step.
        width: L.
        purpose: what the numbers decide.
    """
    place = torch.arange(width, device=seeds.device)[None]
    low, high = seeds[:, :1], seeds[:, 1:]
    counter = [place, step_B[:, None], canvas_B[:, None], torch.full_like(low, int(purpose))]
    first, second, *_ = philox(counter, (low, high))
    return ((first >> 5).double() * 2.0**26 + (second >> 6).double()) * 2.0**-53


def seed_words(seeds: Sequence[int], device: torch.device) -> Int[Tensor, "B 2"]:
    """Each seed modulo 2**64 as two 32-bit words, low and high."""
    words = [(seed & _WORD, (seed >> 32) & _WORD) for seed in seeds]
    return torch.tensor(words, dtype=torch.int64, device=device)


def random_tokens(
    seed: int, canvas: int, step: int, width: int, vocabulary: int, device: torch.device
) -> Int[Tensor, " L"]:
    """Uniform tokens from the full vocabulary, for the starting canvas and for re-noising."""
    drawn = uniform(seed, canvas, step, width, Purpose.NOISE, device)
    return (drawn * vocabulary).long()


def corrupt(
    clean: Int[Tensor, "*rows L"],
    level: Float[Tensor, "*rows"],
    vocabulary: int,
    dice: torch.Generator,
) -> tuple[Int[Tensor, "*rows L"], Bool[Tensor, "*rows L"]]:
    """Uniform corruption: each token becomes a random one with probability `level`.

    The forward process of uniform-state diffusion with a linear schedule, q(z | x) =
    (1 - t) [z = x] + t / V (Austin et al. 2021, D3PM; t is `level`). The trainer's counterpart of
    `random_tokens`: the same uniform noise over the full vocabulary that the sampler puts in.

    Args:
        clean: tokens.
        level: t of each canvas, 0 to 1.
        vocabulary: V.
        dice: the trainer's generator, saved with its checkpoints.

    Returns:
        the noised tokens, and where a token was resampled. Resampled is not the same as changed: a
        random token may be the clean one.
    """
    drawn = torch.rand(clean.shape, generator=dice, device=clean.device)
    random = torch.randint(0, vocabulary, clean.shape, generator=dice, device=clean.device)
    resampled = drawn < level[..., None]
    return torch.where(resampled, random, clean), resampled
