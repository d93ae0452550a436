"""The routed branch: which experts a token goes to, and the experts themselves."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffusiongemma.kernels.ops import Ops
from diffusiongemma.model.config import ModelConfig


class Router(nn.Module):
    """Reads the raw residual through a norm of its own and picks the top experts.

    Weights are the softmax over all experts, renormed over the chosen ones, times a learned scale
    per expert.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top, self.eps = config.top_k_experts, config.rms_norm_eps
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.scale = nn.Parameter(torch.ones(config.hidden_size))
        self.expert_scale = nn.Parameter(torch.ones(config.num_experts))

    def forward(
        self, residual_SD: Float[Tensor, "S D"], ops: Ops
    ) -> tuple[Int[Tensor, "S G"], Float[Tensor, "S G"]]:
        """Numbers and weights (float32) of the experts of each token."""
        normed = ops.rms_norm(residual_SD, None, self.eps) * self.scale
        scores_SE = ops.linear(normed * self.scale.shape[0] ** -0.5, self.weight)
        share_SG, expert_SG = scores_SE.softmax(-1, dtype=torch.float32).topk(self.top, dim=-1)
        share_SG = share_SG / share_SG.sum(-1, keepdim=True)
        # Gathered from a row for each token: the gradient is a plain sum, where that of an index is
        # added up one by one.
        scale_SE = self.expert_scale.expand(len(expert_SG), -1)
        return expert_SG, share_SG * scale_SE.gather(1, expert_SG)


class Experts(nn.Module):
    """E gated feed-forward blocks, stored as two tensors."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        count, hidden = config.num_experts, config.moe_intermediate_size
        self.gate_up = nn.Parameter(torch.empty(count, 2 * hidden, config.hidden_size))
        self.down = nn.Parameter(torch.empty(count, config.hidden_size, hidden))

    def forward(
        self,
        x_SD: Float[Tensor, "S D"],
        ops: Ops,
        expert_SG: Int[Tensor, "S G"],
        share_SG: Float[Tensor, "S G"],
    ) -> Float[Tensor, "S D"]:
        """The weighted answers of each token's experts."""
        return ops.experts(x_SD, expert_SG, share_SG, self.gate_up, self.down)
