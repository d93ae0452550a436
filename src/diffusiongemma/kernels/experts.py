"""Routed experts: each token passes through the few experts it was sent to.

Contract: out[s] = sum over g of weight[s, g] * down[e] @ (gelu_tanh(gate) * up), where gate and up
are the halves of gate_up[e] @ x[s] and e = expert[s, g]. Sums run over a token's experts in the
order of their number, in float32, rounded once. Row s depends on row s of the input alone, bit for
bit, whoever else is in the batch.

Reference: tokens are sorted by expert and each expert multiplies its own group.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusiongemma.kernels.gated import gated
from diffusiongemma.kernels.linear import linear


def experts(
    x_SD: Float[Tensor, "S D"],
    expert_SG: Int[Tensor, "S G"],
    weight_SG: Float[Tensor, "S G"],
    gate_up: Float[Tensor, "E two_F D"],
    down_EDF: Float[Tensor, "E D F"],
) -> Float[Tensor, "S D"]:
    """Send every token through its experts and add up what comes back.

    Args:
        x_SD: tokens, normed for the experts.
        expert_SG: the G experts of each token.
        weight_SG: what each expert's answer counts, float32.
        gate_up: gate rows, then up rows, of each expert.
        down_EDF: the way back.
    """
    tokens, chosen = expert_SG.shape
    order = expert_SG.reshape(-1).argsort(stable=True)
    counts = torch.bincount(expert_SG.reshape(-1), minlength=gate_up.shape[0]).tolist()
    source = order // chosen
    answers, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            group = x_SD[source[start : start + count]]
            answers.append(_feed(group, gate_up[expert], down_EDF[expert]))
            start += count
    weighted = torch.cat(answers).float() * weight_SG.reshape(-1)[order, None]
    # Back to the token's own slots, ordered by expert number, so that the order in which a
    # token's answers are added is the same in every batch.
    slot = torch.empty_like(order)
    slot[order] = torch.arange(order.numel(), device=order.device)
    slot_SG = slot.view(tokens, chosen).sort(dim=1).values
    return weighted[slot_SG].sum(dim=1).to(x_SD.dtype)


def _feed(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = linear(x, gate_up).chunk(2, dim=-1)
    return linear(gated(gate, up), down)
