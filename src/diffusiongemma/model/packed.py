"""The third pass for many short texts: several in a row, each with its noised canvases.

What `joint` computes of each text, in rows of one length whatever the texts' own are. So little is
padded, and every step has the same shapes, which a captured one needs.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusiongemma.kernels.attention import attend_rows
from diffusiongemma.model import masks
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.model import DiffusionGemma


@dataclass(frozen=True, slots=True)
class Layout:
    """What lies where in the rows; see `masks.packed`."""

    place_BS: Int[Tensor, "B S"]
    upto_BS: Int[Tensor, "B S"]
    text_BS: Int[Tensor, "B S"]
    canvas_BS: Int[Tensor, "B S"]

    def first(self, rows: int) -> "Layout":
        """The first few rows."""
        parts = (self.place_BS, self.upto_BS, self.text_BS, self.canvas_BS)
        return Layout(*(part[:rows] for part in parts))


class Packed:
    """Positions, scalars and masks of a layout."""

    def __init__(self, config: ModelConfig, layout: Layout) -> None:
        """Draw the masks, on the layout's device."""
        self.config, self.rows = config, len(layout.place_BS)
        self.positions_S = layout.place_BS.flatten()
        self._reads_S = (layout.canvas_BS < 0).flatten()
        parts = (layout.place_BS, layout.upto_BS, layout.text_BS, layout.canvas_BS)
        self._masks = {}
        for sliding in {layer.sliding for layer in config.layers}:
            seen = masks.packed(*parts, config.sliding_window if sliding else None)
            # One to add, made once: attention would make it of a mask of bits in every layer.
            self._masks[sliding] = torch.zeros(seen.shape, device=seen.device).masked_fill_(
                ~seen, -torch.inf
            )

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
        """All rows in one call."""
        q, k, v = (part.unflatten(0, (self.rows, -1)) for part in (q_SNH, k_SKH, v_SKH))
        mask = self._masks[self.config.layers[layer].sliding].to(q.dtype)
        return attend_rows(q, k, v, mask).reshape(q_SNH.shape)


def packed(
    model: DiffusionGemma,
    ids_BS: Int[Tensor, "B S"],
    layout: Layout,
    soft_BSD: Float[Tensor, "B S D"] | None = None,
) -> Float[Tensor, "B S D"]:
    """Encode clean texts and denoise their canvases, in one pass.

    Args:
        model: the network.
        ids_BS: clean tokens, noised canvases and padding, as the layout says. Text only.
        layout: what lies where.
        soft_BSD: expected embeddings of a step before, read at canvases; None is all zeros.

    Returns:
        hidden states after the final norm.
    """
    read = model.embedding(ids_BS).flatten(0, 1)
    soft = torch.zeros_like(read) if soft_BSD is None else soft_BSD.reshape(read.shape)
    ops = model.running.ops
    drafts = model.self_conditioning(read, soft.to(read.dtype), ops)
    x_SD = torch.where((layout.canvas_BS >= 0).view(-1, 1), drafts, read)
    hidden_SD = model.trunk(x_SD, ops, Packed(model.config, layout))
    return hidden_SD.view(*ids_BS.shape, -1)
