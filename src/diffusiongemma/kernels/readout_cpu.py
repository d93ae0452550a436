"""The readout's fast twin: the vocabulary, a few positions at a time, in a core's cache.

Contract: that of `readout`. All statistics of some positions are taken from one float32 scratch,
and the probabilities are written over the logits, where the product with the embedding table finds
them. A position's bits are its own, whichever others are read with it.

    tanh(z) = 1 - 2 / (exp(2 z) + 1)                       half of tanh's time
    best    = first place of the maximum                   by blocks: argmax reads slowly, amax fast
    entropy = - log p[best] - sum p * (x - x[best])        no second exponential, no logarithms
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusiongemma.kernels.draw import draw_from
from diffusiongemma.kernels.linear import CHUNK

_BLOCK = 128  # entries whose maximum is taken together, and their mass, to draw from
_FEW = 16 * _BLOCK  # entries that are not worth blocks


def read_positions(
    logits_SV: Float[Tensor, "S V"],
    uniform_S: Float[Tensor, " S"],
    temperature_S: Float[Tensor, " S"],
    cap: float,
    bias_V: Float[Tensor, " V"] | None = None,
) -> tuple[Int[Tensor, " S"], Int[Tensor, " S"], Float[Tensor, " S"]]:
    """Statistics of every position; the logits become probabilities.

    Args:
        logits_SV: the product with the embedding table; written over.
        uniform_S: what decides the sampled tokens.
        temperature_S: above 0.
        cap: softcap of the logits.
        bias_V: added to the capped logits.

    Returns:
        sampled tokens, the most likely tokens, entropies in nats.
    """
    rows = max(1, 2 * CHUNK // logits_SV.shape[1])
    parts = []
    for start in range(0, logits_SV.shape[0], rows):
        part = slice(start, start + rows)
        x = softcapped_(logits_SV[part].float(), cap)
        x = x if bias_V is None else x.add_(bias_V)
        shifted, best_S = _shifted(x / temperature_S[part, None])
        p_SV = torch.softmax(shifted, dim=-1)
        first_S = p_SV.gather(-1, best_S[:, None]).log_()[:, 0]
        token_S = _drawn(p_SV, uniform_S[part])
        entropy_S = -(shifted.mul_(p_SV).sum(-1) + first_S)
        logits_SV[part].copy_(p_SV)
        parts.append((token_S, best_S, entropy_S))
    token_S, best_S, entropy_S = map(torch.cat, zip(*parts, strict=True))
    return token_S, best_S, entropy_S


def softcapped_(x_SV: Tensor, cap: float) -> Tensor:
    """tanh(x / cap) * cap, in place.

    torch's sigmoid and exp2 would be faster still, but the bits of the last elements of a thread's
    share depend on how many there are.
    """
    power = x_SV.mul_(2.0 / cap).exp_().add_(1.0)
    return power.reciprocal_().mul_(-2.0 * cap).add_(cap)


def _shifted(x_SV: Tensor) -> tuple[Tensor, Tensor]:
    """x less its maximum, in place; and where that is."""
    best_S = _first_best(x_SV)
    return x_SV.sub_(x_SV.gather(-1, best_S[:, None])), best_S


def _first_best(x_SV: Tensor) -> Tensor:
    vocabulary = x_SV.shape[1]
    if vocabulary < _FEW:
        return x_SV.argmax(-1)
    blocks = _by_block(x_SV, torch.amax)
    ids = blocks.argmax(-1, keepdim=True) * _BLOCK + torch.arange(_BLOCK)
    place = x_SV.gather(-1, ids.clamp_(max=vocabulary - 1)).argmax(-1, keepdim=True)
    return ids.gather(-1, place)[:, 0]


def _drawn(p_SV: Tensor, uniform_S: Tensor) -> Tensor:
    """A token each. Blocks are summed in float32, which moves a border by a ten-millionth."""
    if p_SV.shape[1] < _FEW:
        return draw_from(p_SV, p_SV.sum(-1, keepdim=True).double(), _FEW, uniform_S)
    return draw_from(p_SV, _by_block(p_SV, torch.sum).double(), _BLOCK, uniform_S)


def _by_block(x_SV: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    whole = x_SV.shape[1] // _BLOCK * _BLOCK
    blocks = reduce(x_SV[:, :whole].unflatten(-1, (-1, _BLOCK)), dim=-1)
    if whole == x_SV.shape[1]:
        return blocks
    return torch.cat([blocks, reduce(x_SV[:, whole:], dim=-1, keepdim=True)], dim=-1)
