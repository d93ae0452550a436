"""Routed experts in eight bits (e4m3): what a number is rounded to, in plain torch.

Contract: kernels/experts.py, with weights as e4m3 numbers and a float32 scale per output channel.
A token is quantised with one scale of its own, and the hidden vector, gelu_tanh(gate) * up in
float32, with one per 64 channels. Sums are float32; each expert's answer is rounded to the dtype of
x; answers are added as there. A row depends on its own token alone.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from diffusiongemma.kernels.quantised import quantise_rows

GROUP = 64
"""Hidden channels of one scale."""


def reference_fp8(
    x_SD: Float[Tensor, "S D"],
    expert_SG: Int[Tensor, "S G"],
    weight_SG: Float[Tensor, "S G"],
    gate_up_q: Float[Tensor, "E two_F D"],
    gate_up_scale: Float[Tensor, "E two_F"],
    down_q: Float[Tensor, "E D F"],
    down_scale: Float[Tensor, "E D"],
) -> Float[Tensor, "S D"]:
    """Every expert multiplies its own tokens, in float32 and with numbers rounded to e4m3.

    Args:
        x_SD: tokens, normed for the experts.
        expert_SG: the G experts of each token.
        weight_SG: what each expert's answer counts, float32.
        gate_up_q: gate rows, then up rows, of each expert, e4m3.
        gate_up_scale: of each of these rows.
        down_q: the way back, e4m3.
        down_scale: of each output.
    """
    token_q, token_scale = quantise_rows(x_SD)
    tokens, chosen = expert_SG.shape
    answers = x_SD.new_zeros(tokens * chosen, x_SD.shape[1])
    flat = expert_SG.reshape(-1)
    for expert in range(len(gate_up_q)):
        route = (flat == expert).nonzero()[:, 0]
        token = token_q[route // chosen].float() * token_scale[route // chosen, None]
        gate_up = gate_up_q[expert].float() * gate_up_scale[expert, :, None]
        gate, up = (token @ gate_up.T).chunk(2, dim=-1)
        hidden = F.gelu(gate, approximate="tanh") * up
        hidden_q, hidden_scale = quantise_rows(hidden.unflatten(1, (-1, GROUP)))
        hidden = (hidden_q.float() * hidden_scale[..., None]).flatten(1)
        down = down_q[expert].float() * down_scale[expert, :, None]
        answers[route] = (hidden @ down.T).to(x_SD.dtype)
    order = expert_SG.argsort(dim=1, stable=True)
    weighted = answers.view(tokens, chosen, -1).float() * weight_SG[:, :, None]
    total = torch.zeros_like(weighted[:, 0])
    for g in range(chosen):
        total += weighted[torch.arange(tokens, device=order.device), order[:, g]]
    return total.to(x_SD.dtype)
