"""Routed experts in e4m3 without kernels of our own.

Contract: that of `experts_fp8`, whose reference says what is rounded to what. Here a row's bits do
not depend on the batch, which the reference does not promise on a CPU, and a last group of hidden
channels may be shorter than 64. Tokens are sorted by expert, and each multiplies its own group.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusiongemma.kernels.experts import Op
from diffusiongemma.kernels.experts_fp8 import GROUP
from diffusiongemma.kernels.gated import gated
from diffusiongemma.kernels.linear import linear
from diffusiongemma.kernels.quantised import quantise_rows, widen


def experts_fp8(
    x_SD: Float[Tensor, "S D"],
    expert_SG: Int[Tensor, "S G"],
    weight_SG: Float[Tensor, "S G"],
    gate_up_q: Float[Tensor, "E two_F D"],
    gate_up_scale: Float[Tensor, "E two_F"],
    down_q: Float[Tensor, "E D F"],
    down_scale: Float[Tensor, "E D"],
    linear: Op = linear,
    gated: Op = gated,
    widen: Callable[[Tensor], Tensor] = widen,
) -> Float[Tensor, "S D"]:
    """Send every token through its experts and add up what comes back.

    Args:
        x_SD: tokens, normed for the experts.
        expert_SG: the G experts of each token.
        weight_SG: what each expert's answer counts, float32.
        gate_up_q: gate rows, then up rows, of each expert, float8_e4m3fn.
        gate_up_scale: of each of these rows, float32.
        down_q: the way back, float8_e4m3fn.
        down_scale: of each of its rows, float32.
        linear: the product of what is widened.
        gated: the activation, float32.
        widen: exactly, to float32.
    """
    tokens, chosen = expert_SG.shape
    q_SD, scale_S = quantise_rows(x_SD)
    q_SD = widen(q_SD)
    order = expert_SG.reshape(-1).argsort(stable=True)
    counts = torch.bincount(expert_SG.reshape(-1), minlength=len(gate_up_q)).tolist()
    source = order // chosen
    answers, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            rows = source[start : start + count]
            both = linear(q_SD[rows], widen(gate_up_q[expert])).mul_(scale_S[rows, None])
            gate, up = both.mul_(gate_up_scale[expert]).chunk(2, dim=-1)
            answer = _down(gated(gate, up), down_q[expert], linear, widen).mul_(down_scale[expert])
            answers.append(answer.to(x_SD.dtype))
            start += count
    weighted = torch.cat(answers).float() * weight_SG.reshape(-1)[order, None]
    slot = torch.empty_like(order)
    slot[order] = torch.arange(order.numel(), device=order.device)
    slot_SG = slot.view(tokens, chosen).sort(dim=1).values
    return weighted[slot_SG].sum(dim=1).to(x_SD.dtype)


def _down(
    hidden_SF: Tensor, down_q: Tensor, linear: Op, widen: Callable[[Tensor], Tensor]
) -> Tensor:
    """The way back, group by group, float32."""
    parts = zip(hidden_SF.split(GROUP, dim=1), widen(down_q).split(GROUP, dim=1), strict=True)
    total = None
    for group, weight in parts:
        q, scale_S = quantise_rows(group)
        part = linear(widen(q), weight).mul_(scale_S[:, None])
        total = part if total is None else total.add_(part)
    assert total is not None
    return total
