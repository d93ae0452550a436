"""Attention of one layer: queries, keys, values, and the way back. The pass decides who sees whom.

Sliding layers have value weights of their own; full layers use the raw key projection as value
(K = V). Queries and keys are normed per head with a weight and turned by position; values are
normed without weight, on every layer, and not turned.
"""

from jaxtyping import Float
from torch import Tensor, nn

from diffusiongemma.kernels.ops import Ops
from diffusiongemma.model.config import LayerConfig, ModelConfig
from diffusiongemma.model.layers import Linear, RMSNorm, project
from diffusiongemma.model.passes import Pass

Turn = tuple[Tensor, Tensor]
"""Cosine and sine of every packed token's rotation, (S, 1, H) each, float32."""


class Attention(nn.Module):
    """Grouped-query attention with scale 1."""

    def __init__(self, config: ModelConfig, layer: LayerConfig, number: int) -> None:
        super().__init__()
        width, head = config.hidden_size, layer.head_dim
        self.number, self.head_dim = number, head
        self.q = Linear(width, config.num_attention_heads * head)
        self.k = Linear(width, layer.num_key_value_heads * head)
        self.v = Linear(width, layer.num_key_value_heads * head) if layer.sliding else None
        self.o = Linear(config.num_attention_heads * head, width)
        self.q_norm = RMSNorm(head, config.rms_norm_eps)
        self.k_norm = RMSNorm(head, config.rms_norm_eps)

    def forward(
        self, x_SD: Float[Tensor, "S D"], ops: Ops, turn: Turn, through: Pass
    ) -> Float[Tensor, "S D"]:
        """Attend within the pass.

        Args:
            x_SD: packed tokens, normed.
            ops: the table.
            turn: the rotation of this layer's kind.
            through: the pass, which holds context and masks.
        """
        tokens, eps = x_SD.shape[0], self.q_norm.eps
        layers = [part for part in (self.q, self.k, self.v) if part is not None]
        parts = [out.unflatten(-1, (-1, self.head_dim)) for out in project(x_SD, ops, layers)]
        q_SNH, k_SKH, v_SKH = parts[0], parts[1], parts[-1]
        q_SNH = ops.norm_rope(q_SNH, self.q_norm.weight, eps, turn)
        k_SKH = ops.norm_rope(k_SKH, self.k_norm.weight, eps, turn)
        v_SKH = ops.rms_norm(v_SKH, None, eps)
        out_SNH = through.attend(self.number, q_SNH, k_SKH, v_SKH)
        return self.o(out_SNH.reshape(tokens, -1), ops)
