"""One layer: attention, then the dense and the routed branch side by side, then a scalar.

        x -- norm - attention - norm --(+)--+-- norm -- dense --- norm --(+)- norm --(+)-- * scalar
         \\____________________________/    |\\- norm_2 - experts - norm_2 -/          /
                                            | \\- router (raw residual) picks        /
                                             \\_____________________________________/

The scalar at the end comes in two sets, one for the encoder and one for the denoiser; everything
else is shared.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusiongemma.kernels.ops import Ops
from diffusiongemma.model.attention import Attention, Turn
from diffusiongemma.model.config import LayerConfig, ModelConfig
from diffusiongemma.model.experts import Experts, Router
from diffusiongemma.model.layers import FeedForward, RMSNorm
from diffusiongemma.model.passes import Pass


class Block(nn.Module):
    """A layer of the trunk."""

    encode_scalar: Tensor
    denoise_scalar: Tensor

    def __init__(self, config: ModelConfig, layer: LayerConfig, number: int) -> None:
        super().__init__()

        def norm() -> RMSNorm:
            return RMSNorm(config.hidden_size, config.rms_norm_eps)

        self.sliding = layer.sliding
        self.attention = Attention(config, layer, number)
        self.before_attention, self.after_attention = norm(), norm()
        self.dense = FeedForward(config.hidden_size, config.intermediate_size)
        self.before_dense, self.after_dense = norm(), norm()
        self.router, self.experts = Router(config), Experts(config)
        self.before_experts, self.after_experts = norm(), norm()
        self.after_branches = norm()
        self.register_buffer("encode_scalar", torch.ones(1))
        self.register_buffer("denoise_scalar", torch.ones(1))

    def forward(
        self, x_SD: Float[Tensor, "S D"], ops: Ops, turn: Turn, through: Pass
    ) -> Float[Tensor, "S D"]:
        """Packed tokens through the layer."""
        attended = self.attention(self.before_attention(x_SD, ops), ops, turn, through)
        x_SD = x_SD + self.after_attention(attended, ops)
        weights = (self.before_dense.weight, self.before_experts.weight)
        for_dense, for_experts = ops.rms_norms(x_SD, weights, self.before_dense.eps)
        dense = self.after_dense(self.dense(for_dense, ops), ops)
        route = self.router(x_SD, ops)
        routed = self.after_experts(self.experts(for_experts, ops, *route), ops)
        x_SD = x_SD + self.after_branches(dense + routed, ops)
        return through.scale(x_SD, self.encode_scalar, self.denoise_scalar)
