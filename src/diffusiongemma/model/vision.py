"""The vision tower: one image's patches to soft tokens in the language model's space.

Patches of one image attend to each other without mask or padding; images do not meet. Positions
are two-dimensional: a learned embedding per axis, and rotary angles with one half of each head for
x, the other for y. Pooling averages k x k patches into one soft token.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffusiongemma.core.errors import InputError
from diffusiongemma.core.patches import Patches
from diffusiongemma.kernels.attention import attend
from diffusiongemma.kernels.norm_rope import frequencies, rotation
from diffusiongemma.kernels.ops import Ops
from diffusiongemma.model.config import VisionConfig
from diffusiongemma.model.layers import FeedForward, Linear, RMSNorm


class VisionAttention(nn.Module):
    """Bidirectional attention among the patches of one image."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, head = config.hidden_size, config.head_dim
        self.head_dim = head
        self.q = Linear(width, config.num_attention_heads * head)
        self.k = Linear(width, config.num_key_value_heads * head)
        self.v = Linear(width, config.num_key_value_heads * head)
        self.o = Linear(config.num_attention_heads * head, width)
        self.q_norm = RMSNorm(head, config.rms_norm_eps)
        self.k_norm = RMSNorm(head, config.rms_norm_eps)

    def forward(
        self, x_PD: Float[Tensor, "P D"], ops: Ops, turns: list[tuple[Tensor, Tensor]]
    ) -> Float[Tensor, "P D"]:
        """Attend; `turns` holds the rotation along x and along y."""
        patches, eps = x_PD.shape[0], self.q_norm.eps

        def heads(projected: Tensor) -> Tensor:
            return projected.view(patches, -1, self.head_dim)

        q_PNH = _turn_both(heads(self.q(x_PD, ops)), ops, self.q_norm, turns)
        k_PKH = _turn_both(heads(self.k(x_PD, ops)), ops, self.k_norm, turns)
        v_PKH = ops.rms_norm(heads(self.v(x_PD, ops)), None, eps)
        out = attend(q_PNH, k_PKH.transpose(0, 1), v_PKH.transpose(0, 1))
        return self.o(out.reshape(patches, -1), ops)


def _turn_both(
    x_PNH: Float[Tensor, "P N H"], ops: Ops, norm: RMSNorm, turns: list[tuple[Tensor, Tensor]]
) -> Float[Tensor, "P N H"]:
    """Norm the whole head, then turn its first half by x and its second by y."""
    halves = ops.rms_norm(x_PNH.float(), norm.weight, norm.eps).chunk(2, dim=-1)
    both = [ops.turned(half, turn) for half, turn in zip(halves, turns, strict=True)]
    return torch.cat(both, dim=-1).to(x_PNH.dtype)


class VisionBlock(nn.Module):
    """One layer of the tower."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()

        def norm() -> RMSNorm:
            return RMSNorm(config.hidden_size, config.rms_norm_eps)

        self.attention = VisionAttention(config)
        self.before_attention, self.after_attention = norm(), norm()
        self.dense = FeedForward(config.hidden_size, config.intermediate_size)
        self.before_dense, self.after_dense = norm(), norm()

    def forward(
        self, x_PD: Float[Tensor, "P D"], ops: Ops, turns: list[tuple[Tensor, Tensor]]
    ) -> Float[Tensor, "P D"]:
        """Patches through the layer."""
        attended = self.attention(self.before_attention(x_PD, ops), ops, turns)
        x_PD = x_PD + self.after_attention(attended, ops)
        dense = self.dense(self.before_dense(x_PD, ops), ops)
        return x_PD + self.after_dense(dense, ops)


class Vision(nn.Module):
    """Tower, pooler and projector."""

    std_bias: Tensor | None
    std_scale: Tensor | None

    def __init__(self, config: VisionConfig, text_width: int) -> None:
        super().__init__()
        self.config = config
        self.patches = Linear(3 * config.patch_size**2, config.hidden_size)
        self.positions = nn.Parameter(
            torch.ones(2, config.position_embedding_size, config.hidden_size)
        )
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.num_hidden_layers))
        std = torch.zeros(config.hidden_size) if config.standardize else None
        self.register_buffer("std_bias", std)
        self.register_buffer("std_scale", None if std is None else torch.ones_like(std))
        self.project = Linear(config.hidden_size, text_width)

    def forward(self, image: Patches, ops: Ops) -> Float[Tensor, "S D"]:
        """Soft tokens of one image, row by row of the pooled grid, in the text model's width.

        Raises:
            InputError: the patches do not fit this tower.
        """
        self._check(image)
        x_PD = self._embed(image, ops)
        turns = self._turns(image.positions_P2)
        for block in self.blocks:
            x_PD = block(x_PD, ops, turns)
        pooled = self._pool(x_PD, image.positions_P2)
        if self.std_bias is not None and self.std_scale is not None:
            pooled = (pooled - self.std_bias.float()) * self.std_scale.float()
        pooled = ops.rms_norm(pooled.to(x_PD.dtype), None, self.config.rms_norm_eps)
        return self.project(pooled, ops)

    def _check(self, image: Patches) -> None:
        values, positions, config = image.values_PX, image.positions_P2, self.config
        expected = 3 * config.patch_size**2
        if values.ndim != 2 or values.shape[1] != expected:
            raise InputError(
                f"image patches must have shape (patches, {expected}) for patches of "
                f"{config.patch_size} pixels, got {tuple(values.shape)}"
            )
        if positions.shape != (values.shape[0], 2):
            raise InputError(
                f"patch positions must have shape ({values.shape[0]}, 2), got "
                f"{tuple(positions.shape)}"
            )
        columns, rows = (positions.max(0).values + 1).tolist()
        side, limit = config.pooling_kernel_size, config.position_embedding_size
        if columns * rows != values.shape[0] or columns % side or rows % side:
            raise InputError(
                f"{values.shape[0]} patches on a grid of {columns} x {rows} cannot be pooled "
                f"{side} x {side}; cut the image with dialog.images.patches"
            )
        if max(columns, rows) > limit:
            raise InputError(f"a grid of {columns} x {rows} patches is over {limit} on a side")

    def _embed(self, image: Patches, ops: Ops) -> Float[Tensor, "P D"]:
        positions = image.positions_P2
        pixels = (2 * (image.values_PX.float() - 0.5)).to(self.patches.weight.dtype)
        place = F.embedding(positions[:, 0], self.positions[0])
        return self.patches(pixels, ops) + (place + F.embedding(positions[:, 1], self.positions[1]))

    def _turns(self, positions_P2: Int[Tensor, "P 2"]) -> list[tuple[Tensor, Tensor]]:
        config = self.config
        pace = frequencies(config.head_dim // 2, config.rope_theta, 1.0, positions_P2.device)
        return [rotation(positions_P2[:, axis], pace) for axis in (0, 1)]

    def _pool(
        self, x_PD: Float[Tensor, "P D"], positions_P2: Int[Tensor, "P 2"]
    ) -> Float[Tensor, "S D"]:
        """Mean over k x k patches, times sqrt(D), in float32."""
        side, width = self.config.pooling_kernel_size, x_PD.shape[1]
        columns = int(positions_P2[:, 0].max()) // side + 1
        place = positions_P2 // side
        cell_P = place[:, 0] + columns * place[:, 1]
        pooled = x_PD.new_zeros(x_PD.shape[0] // side**2, width, dtype=torch.float32)
        # The reference averages in float32 but rounds the mean to the working dtype.
        pooled = pooled.index_add(0, cell_P, x_PD.float() / side**2).to(x_PD.dtype)
        return pooled.float() * width**0.5
