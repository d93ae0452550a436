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
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffusiongemma.kernels.draw import draw_from
from diffusiongemma.kernels.fast import CHUNK

_BLOCK = 128  # entries whose maximum is taken together, and their mass, to draw from
_FEW = 16 * _BLOCK  # entries that are not worth blocks


def read_positions(
    logits_SV: Float[Tensor, "S V"],
    uniform_S: Float[Tensor, " S"],
    temperature_S: Float[Tensor, " S"],
    *,
    cap: float | None,
    shaper: Callable[[Tensor], Tensor] | None,
    top: int,
    ids_S: Int[Tensor, " S"] | None,
    members_V: Bool[Tensor, " V"] | None,
) -> dict[str, Tensor]:
    """Statistics of every position; the logits become probabilities.

    Args:
        logits_SV: the product with the embedding table; written over.
        uniform_S: what decides the sampled tokens.
        temperature_S: above 0.
        cap: softcap of the logits; None if they are capped.
        shaper: a change of the capped logits that looks at each position by itself.
        top: how many of the most likely tokens to report, 0 for none.
        ids_S: one token a position, whose log-probability is wanted.
        members_V: True for the tokens whose probability mass is wanted.

    Returns:
        what `Readout` calls by these names, but for `soft_BLD`; positions first.
    """
    rows = max(1, 2 * CHUNK // logits_SV.shape[1])
    parts = []
    for start in range(0, logits_SV.shape[0], rows):
        part = slice(start, start + rows)
        x = logits_SV[part].float()
        x = x if cap is None else softcapped_(x, cap)
        x = x if shaper is None else shaper(x)
        shifted, best_S = _shifted(x / temperature_S[part, None])
        p_SV = torch.softmax(shifted, dim=-1)
        first_S = p_SV.gather(-1, best_S[:, None]).log_()
        report = {"best_BL": best_S, "token_BL": _drawn(p_SV, uniform_S[part])}
        if top:
            value, report["top_BLG"] = shifted.topk(top, dim=-1)
            report["top_logprob_BLG"] = value + first_S
        if ids_S is not None:
            report["logprob_BL"] = (shifted.gather(-1, ids_S[part, None]) + first_S)[:, 0]
        if members_V is not None:
            report["mass_BL"] = p_SV[:, members_V].sum(-1)
        report["entropy_BL"] = -(shifted.mul_(p_SV).sum(-1) + first_S[:, 0])
        logits_SV[part].copy_(p_SV)
        parts.append(report)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


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
