"""The vocabulary, read by two kernels: `readout.read` and `soften.soften` over the same logits."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffusiongemma.kernels.readout import Readout, by_rows
from diffusiongemma.kernels.triton.readout import read
from diffusiongemma.kernels.triton.soften import soften


def readout(
    hidden_BLD: Float[Tensor, "B L D"],
    embedding_VD: Float[Tensor, "V D"],
    *,
    cap: float,
    scale: Tensor,
    temperature_B: Float[Tensor, " B"],
    uniform_BL: Float[Tensor, "B L"],
    bias_V: Float[Tensor, " V"] | None = None,
) -> Readout:
    """As `kernels.readout.readout`; logits are written once, in the weights' format."""
    rows, length, _ = hidden_BLD.shape
    logits_SV = F.linear(hidden_BLD.flatten(0, 1), embedding_VD)
    heat_S = temperature_B.float().repeat_interleave(length, output_size=rows * length)
    seen = read(logits_SV, cap, heat_S, uniform_BL.flatten(), bias_V)
    soft_SD = soften(logits_SV, cap, heat_S, seen.log_total_S, bias_V, embedding_VD, scale)
    return by_rows(seen.token_S, seen.best_S, seen.entropy_S, soft_SD, hidden_BLD)
