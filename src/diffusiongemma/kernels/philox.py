"""Randomness as a pure function of its place, never the state of a generator.

Every number is a hash of (seed, canvas, step, position, purpose) by Philox 4x32-10 (Salmon et al.
2011, "Parallel random numbers: as easy as 1, 2, 3"): the seed is the key, the place is the counter.
So the same seed gives the same text alone, beside other rows, after a restart, and on every rank.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
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


def _philox_numpy(even: Any, odd: Any, keys: Any) -> tuple[Any, Any]:
    """The same with uint64 arrays of numpy, for its smaller calls: a sixth of the time.

    Args:
        even: words 0 and 2 of the counter, in one array with four axes.
        odd: words 1 and 3, likewise.
        keys: the two words of each key, likewise.

    Returns:
        both, after the last round.
    """
    multiply, weyl = (np.array(pair, np.uint64)[:, None, None, None] for pair in (_MULTIPLY, _WEYL))
    word, half = np.uint64(_WORD), np.uint64(32)
    for key in (keys + weyl * np.arange(_ROUNDS, dtype=np.uint64).reshape(-1, 1, 1, 1, 1)) & word:
        product = (even * multiply)[::-1]
        even = product >> half
        even ^= odd
        even ^= key
        odd = product & word
    return even, odd


def uniforms(
    seeds: Int[Tensor, "B 2"],
    canvas_B: Int[Tensor, " B"],
    step_B: Int[Tensor, " B"],
    width: int,
    purpose: Purpose,
) -> Float[Tensor, "B L"]:
    """Numbers in [0, 1) for every position of each row's canvas: float64, 53 random bits.

    Args:
        seeds: low and high 32 bits of each row's seed (`seed_words`).
        canvas_B: index of each row's canvas within its answer, from 0.
        step_B: each row's refinement step, from 1; `INITIAL_STEP` for the starting canvas.
        width: L.
        purpose: what the numbers decide.
    """
    place = torch.arange(width, device=seeds.device)[None]
    low, high = seeds[:, :1], seeds[:, 1:]
    counter = [place, step_B[:, None], canvas_B[:, None], torch.full_like(low, int(purpose))]
    first, second, *_ = philox(counter, (low, high))
    return ((first >> 5).double() * 2.0**26 + (second >> 6).double()) * 2.0**-53


def draws(
    seed_B2: Int[Tensor, "B 2"],
    canvas_B: Int[Tensor, " B"],
    step_B: Int[Tensor, " B"],
    width: int,
    vocabulary: int,
) -> tuple[Float[Tensor, "B L"], Int[Tensor, "B L"]]:
    """What decides a step's tokens, float64 in [0, 1), and the random tokens of its noise.

    Noise is drawn from the full vocabulary: uniform tokens, for the starting canvas and for what is
    rejected later. The bits are those of `uniforms`.

    Args:
        seed_B2: low and high 32 bits of each row's seed (`seed_words`).
        canvas_B: index of each row's canvas.
        step_B: number of each row's step.
        width: L.
        vocabulary: V.
    """
    place = (seed_B2, canvas_B, step_B, width)
    uniform_BL, drawn_BL = (uniforms(*place, one) for one in (Purpose.DRAW, Purpose.NOISE))
    return uniform_BL, (drawn_BL * vocabulary).long()


def draws_of_numpy(
    seed_B2: Int[Tensor, "B 2"],
    canvas_B: Int[Tensor, " B"],
    step_B: Int[Tensor, " B"],
    width: int,
    vocabulary: int,
) -> tuple[Float[Tensor, "B L"], Int[Tensor, "B L"]]:
    """The CPU's twin of `draws`."""
    uniform_BL, drawn_BL = _of_rows(seed_B2, canvas_B, step_B, width)
    return uniform_BL, (drawn_BL * vocabulary).long()


def _of_rows(
    seed_B2: Tensor, canvas_B: Tensor, step_B: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """Numbers of both purposes, in one go."""
    rows, word = len(seed_B2), np.uint64(_WORD)
    even, odd = np.empty((2, 2, rows, width), np.uint64), np.empty((2, 2, rows, 1), np.uint64)
    even[0], even[1] = np.arange(width), canvas_B.numpy()[:, None]
    odd[0], odd[1, 0], odd[1, 1] = step_B.numpy()[:, None], Purpose.DRAW, Purpose.NOISE
    even[1] &= word
    odd[0] &= word
    key = seed_B2.numpy().astype(np.uint64).T[:, None, :, None]
    even, odd = _philox_numpy(even, odd, key)
    drawn = ((even[0] >> np.uint64(5)) * 2.0**26 + (odd[0] >> np.uint64(6))) * 2.0**-53
    return torch.from_numpy(drawn[0]), torch.from_numpy(drawn[1])


def seed_words(seeds: Sequence[int], device: torch.device) -> Int[Tensor, "B 2"]:
    """Each seed modulo 2**64 as two 32-bit words, low and high."""
    words = [(seed & _WORD, (seed >> 32) & _WORD) for seed in seeds]
    return torch.tensor(words, dtype=torch.int64, device=device)
