"""The third pass: clean text and all its noised canvases together, for training.

One trunk pass instead of one encode and K denoises, with the same results and gradients from every
canvas into the clean text. Rows are padded to one length here, which generation never does.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffusiongemma.core.errors import InputError
from diffusiongemma.kernels.attention import attend_rows
from diffusiongemma.model import masks
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.model import DiffusionGemma


class Joint:
    """Positions, scalars and masks of [clean ; noised], B examples of S tokens each."""

    def __init__(
        self, config: ModelConfig, clean: int, starts: Sequence[int], width: int, canvases: int
    ) -> None:
        """Draw the masks.

        Args:
            config: the architecture.
            clean: T, tokens of each clean sequence, padded.
            starts: where the first canvas of each example begins.
            width: L.
            canvases: K, of each example.
        """
        self.config, self.rows = config, len(starts)
        across = torch.arange(canvases * width)
        self.positions_S = torch.cat([torch.cat([torch.arange(clean), n + across]) for n in starts])
        self._reads_S = torch.cat([torch.arange(clean) >= 0, across < 0]).repeat(self.rows)
        kinds = {layer.sliding for layer in config.layers}
        self._masks = {
            sliding: self._draw(clean, starts, width, canvases, sliding) for sliding in kinds
        }

    def scale(self, x_SD: Tensor, encode_scalar: Tensor, denoise_scalar: Tensor) -> Tensor:
        """Clean tokens take the encoder's scalar, noised ones the denoiser's."""
        return x_SD * torch.where(self._reads_S[:, None], encode_scalar, denoise_scalar)

    def attend(
        self,
        layer: int,
        q_SNH: Float[Tensor, "S N H"],
        k_SKH: Float[Tensor, "S K H"],
        v_SKH: Float[Tensor, "S K H"],
    ) -> Float[Tensor, "S N H"]:
        """All examples in one call."""
        q, k, v = (part.view(self.rows, -1, *part.shape[1:]) for part in (q_SNH, k_SKH, v_SKH))
        mask = self._masks[self.config.layers[layer].sliding]
        return attend_rows(q, k, v, mask).reshape(q_SNH.shape)

    def to(self, device: torch.device) -> "Joint":
        """Move positions and masks."""
        self.positions_S = self.positions_S.to(device)
        self._reads_S = self._reads_S.to(device)
        self._masks = {kind: mask.to(device) for kind, mask in self._masks.items()}
        return self

    def _draw(
        self, clean: int, starts: Sequence[int], width: int, canvases: int, sliding: bool
    ) -> Bool[Tensor, "B S S"]:
        size = self.config.sliding_window if sliding else None
        drawn = {n: masks.joint(clean, n, width, canvases, size) for n in set(starts)}
        return torch.stack([drawn[n] for n in starts])


def joint(
    model: DiffusionGemma,
    clean_BT: Int[Tensor, "B T"],
    noised_BKL: Int[Tensor, "B K L"],
    starts: Sequence[int],
    soft_BKLD: Float[Tensor, "B K L D"] | None = None,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B K L D"]]:
    """Encode clean texts and denoise all their canvases, in one pass.

    Equal to `encode` of each text up to a canvas and `denoise` of that canvas over it, for every
    canvas; a test holds that, for values and gradients.

    Args:
        model: the network.
        clean_BT: prompt, then canvases, then padding. Text only.
        noised_BKL: the canvases, corrupted.
        starts: where each example's first canvas begins in its clean text: the prompt's length.
        soft_BKLD: expected embeddings of a step before; None is all zeros.

    Returns:
        hidden states after the final norm: of the clean text, of the canvases.

    Raises:
        InputError: shapes do not fit each other.
    """
    (rows, clean), (batch, canvases, width) = clean_BT.shape, noised_BKL.shape
    if len(starts) != rows or batch != rows or max(starts) + (canvases - 1) * width > clean:
        raise InputError(
            f"{rows} clean texts of {clean} tokens, {batch} rows of {canvases} canvases of {width} "
            f"and starts {list(starts)} do not fit each other"
        )
    read = model.embedding(clean_BT)
    drafts = model.embedding(noised_BKL).view(rows * canvases * width, -1)
    soft = torch.zeros_like(drafts) if soft_BKLD is None else soft_BKLD.reshape(drafts.shape)
    ops = model.running.ops
    drafts = model.self_conditioning(drafts, soft.to(drafts.dtype), ops)
    drafts = drafts.view(rows, -1, read.shape[-1])
    through = Joint(model.config, clean, starts, width, canvases).to(model.device)
    packed = torch.cat([read, drafts], dim=1).flatten(0, 1)
    hidden = model.trunk(packed, ops, through).view(rows, clean + canvases * width, -1)
    return hidden[:, :clean], hidden[:, clean:].reshape(rows, canvases, width, -1)
