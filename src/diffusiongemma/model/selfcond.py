"""Self-conditioning: what the last step expected, mixed into the canvas (denoiser only).

The signal is the expected embedding of the step before, (L, D); zeros at the first step. Zeros do
not switch the block off: the norm at its end still runs. Encoder passes never come here.
"""

from jaxtyping import Float
from torch import Tensor, nn

from diffusiongemma.kernels.ops import Ops
from diffusiongemma.model.layers import FeedForward, RMSNorm


class SelfConditioning(nn.Module):
    """norm(embedding + feed_forward(norm(soft)))."""

    def __init__(self, width: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(width, eps)
        self.feed_forward = FeedForward(width, hidden)

    def forward(
        self, embedded_SD: Float[Tensor, "S D"], soft_SD: Float[Tensor, "S D"], ops: Ops
    ) -> Float[Tensor, "S D"]:
        """Canvas embeddings, conditioned on the last step's expectation."""
        signal = self.feed_forward(self.norm(soft_SD, ops), ops)
        return ops.rms_norm(embedded_SD + signal, None, self.norm.eps)
