"""The two kinds of layer that can have weights in e4m3, called as the plain ones are.

They know how weights are held and which kernel multiplies them; which layers become such, `apply`
knows, and what the files look like, `checkpoint.fp8`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffusiongemma.kernels.ops import Ops
from diffusiongemma.kernels.quantised import E4M3, fp8_linears, quantise_weight
from diffusiongemma.model.experts import Experts
from diffusiongemma.model.layers import Linear


class Fp8Linear(nn.Module):
    """A weight in e4m3 with a float32 scale for each output channel, without bias."""

    scale: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        empty = torch.empty(outputs, inputs, dtype=E4M3)
        self.weight = nn.Parameter(empty, requires_grad=False)
        self.register_buffer("scale", torch.empty(outputs, dtype=torch.float32))

    @classmethod
    def like(cls, plain: Linear) -> "Fp8Linear":
        """One of the same shape and on the same device, without values."""
        outputs, inputs = plain.weight.shape
        with plain.weight.device:
            return cls(inputs, outputs)

    @classmethod
    def of(cls, plain: Linear) -> "Fp8Linear":
        """One with the values of a plain layer, quantised."""
        made = cls.like(plain)
        made.weight.data, scale = quantise_weight(plain.weight.detach())
        made.scale = scale.float()
        return made

    def forward(self, x_SD: Float[Tensor, "S D"], ops: Ops) -> Float[Tensor, "S F"]:
        """x, quantised row by row, times weight.T"""
        return self.together(x_SD, ops, [self])[0]

    @staticmethod
    def together(
        x_SD: Float[Tensor, "S D"], ops: Ops, parts: Sequence["Fp8Linear"]
    ) -> Sequence[Float[Tensor, "S _"]]:
        """Several products of the same rows, which are quantised once."""
        weights = [(part.weight, part.scale) for part in parts]
        return fp8_linears(x_SD, weights, ops.fp8_product)


class Fp8Experts(nn.Module):
    """E gated feed-forward blocks in e4m3, with a float32 scale for each output channel of each."""

    gate_up_scale: Tensor
    down_scale: Tensor

    def __init__(self, count: int, width: int, hidden: int) -> None:
        super().__init__()
        gate_up = torch.empty(count, 2 * hidden, width, dtype=E4M3)
        down = torch.empty(count, width, hidden, dtype=E4M3)
        self.gate_up = nn.Parameter(gate_up, requires_grad=False)
        self.down = nn.Parameter(down, requires_grad=False)
        self.register_buffer("gate_up_scale", torch.empty(gate_up.shape[:2]))
        self.register_buffer("down_scale", torch.empty(down.shape[:2]))

    @classmethod
    def like(cls, plain: Experts) -> "Fp8Experts":
        """One of the same shape and on the same device, without values."""
        with plain.down.device:
            return cls(*plain.down.shape)

    @classmethod
    def of(cls, plain: Experts) -> "Fp8Experts":
        """One with the values of plain experts, quantised."""
        made = cls.like(plain)
        for name in ("gate_up", "down"):
            weight, scale = quantise_weight(getattr(plain, name).detach())
            getattr(made, name).data = weight
            setattr(made, f"{name}_scale", scale.float())
        return made

    def forward(
        self,
        x_SD: Float[Tensor, "S D"],
        ops: Ops,
        expert_SG: Int[Tensor, "S G"],
        share_SG: Float[Tensor, "S G"],
    ) -> Float[Tensor, "S D"]:
        """The weighted answers of each token's experts."""
        gate_up, down = (self.gate_up, self.gate_up_scale), (self.down, self.down_scale)
        return ops.experts_fp8(x_SD, expert_SG, share_SG, *gate_up, *down)
