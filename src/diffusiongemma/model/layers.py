"""The small parts: RMS norm, embedding table, gated feed-forward."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffusiongemma.kernels.ops import Ops


class Linear(nn.Module):
    """A weight without bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x_SD: Float[Tensor, "S D"], ops: Ops) -> Float[Tensor, "S F"]:
        """x @ weight.T"""
        return ops.linear(x_SD, self.weight)

    @staticmethod
    def together(
        x_SD: Float[Tensor, "S D"], ops: Ops, parts: Sequence["Linear"]
    ) -> Sequence[Float[Tensor, "S _"]]:
        """Several products of the same rows."""
        return ops.linears(x_SD, [part.weight for part in parts])


@runtime_checkable
class Projection(Protocol):
    """A linear layer, however its weights are stored: `Linear`, or `quant.linear.Fp8Linear`."""

    def __call__(self, x_SD: Tensor, ops: Ops) -> Tensor:
        """The product with rows, (S, D) to (S, F)."""
        ...

    @staticmethod
    def together(x_SD: Tensor, ops: Ops, parts: Sequence[Any]) -> Sequence[Tensor]:
        """Several layers of this kind, and the same rows."""
        ...


def project(
    x_SD: Float[Tensor, "S D"], ops: Ops, parts: Sequence[Projection]
) -> Sequence[Float[Tensor, "S _"]]:
    """The same rows through several linear layers: together, if they are of one kind."""
    kind = type(parts[0])
    if all(type(part) is kind for part in parts):
        return kind.together(x_SD, ops, parts)
    return [part(x_SD, ops) for part in parts]


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_SD: Float[Tensor, "*axes D"], ops: Ops) -> Float[Tensor, "*axes D"]:
        """Norm over the last axis."""
        return ops.rms_norm(x_SD, self.weight, self.eps)


class Embedding(nn.Module):
    """The table that reads tokens in, and, tied, reads the vocabulary out."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, width))

    @property
    def scale(self) -> Tensor:
        """sqrt(D), rounded to the weights' dtype: 2816 channels in bfloat16 give 53, not 53.07."""
        # Filled, not copied from the host, which a captured step could not do.
        root = torch.full((), self.weight.shape[1] ** 0.5, device=self.weight.device)
        return root.to(self.weight.dtype)

    def forward(self, ids: Int[Tensor, "*axes"]) -> Float[Tensor, "*axes D"]:
        """Scaled embeddings of tokens."""
        return F.embedding(ids, self.weight) * self.scale


class FeedForward(nn.Module):
    """down(gelu_tanh(gate(x)) * up(x))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = Linear(width, hidden)
        self.up = Linear(width, hidden)
        self.down = Linear(hidden, width)

    def forward(self, x_SD: Float[Tensor, "S D"], ops: Ops) -> Float[Tensor, "S D"]:
        """Each row by itself."""
        gate, up = project(x_SD, ops, (self.gate, self.up))
        return self.down(ops.gated(gate, up), ops)
