"""The objective of `objective`, of a sheet's rows."""

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from diffusiongemma.diffusion.noise import corrupt
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.model.packed import packed
from diffusiongemma.train.objective import Losses
from diffusiongemma.train.sheet import Rows


def noise(rows: Rows, vocabulary: int, width: int, dice: torch.Generator) -> Int[Tensor, "B S"]:
    """The tokens of rows, those of canvases noised: a level for each canvas, as in `losses`."""
    ids_BS, canvas_BS = rows.ids_BS, rows.layout.canvas_BS
    most = ids_BS.shape[1] // width
    level_BK = torch.rand(len(ids_BS), most, generator=dice, device=ids_BS.device)
    level_BS = level_BK.gather(1, canvas_BS.clamp(min=0))
    noised, _ = corrupt(ids_BS[..., None], level_BS, vocabulary, dice)
    return torch.where(canvas_BS >= 0, noised[..., 0], ids_BS)


def rows_losses(
    model: DiffusionGemma,
    rows: Rows,
    noised_BS: Int[Tensor, "B S"],
    *,
    conditioned: float = 0.5,
    encoder_weight: float = 1.0,
) -> Losses:
    """`losses` of a sheet: the same means over the same examples.

    Nothing here depends on a number on the device, so that it can be captured. It is the first rows
    that are self-conditioned, which hold a random share of the examples.

    Args:
        model: the network.
        rows: the examples, and what each token counts.
        noised_BS: from `noise`.
        conditioned: share of the rows that are self-conditioned.
        encoder_weight: of the encoder's part.
    """
    layout, some = rows.layout, round(conditioned * len(noised_BS))
    soft_BSD = None
    if some:
        with torch.no_grad():
            first = packed(model, noised_BS[:some], layout.first(some))
            soft = model.soften(model.logits(first))
            soft_BSD = F.pad(soft, (0, 0, 0, 0, 0, len(noised_BS) - some))
    hidden_BSD = packed(model, noised_BS, layout, soft_BSD)
    logits = model.logits(hidden_BSD).flatten(0, 1)
    error_S = F.cross_entropy(logits, rows.wanted_BS.flatten(), reduction="none")
    error_BS = error_S.view(noised_BS.shape) * rows.weight_BS
    drafts_BS = layout.canvas_BS >= 0
    denoiser = torch.where(drafts_BS, error_BS, 0.0).sum()
    encoder = torch.where(drafts_BS, 0.0, error_BS).sum()
    return Losses(
        total=denoiser + encoder_weight * encoder,
        denoiser=denoiser.detach(),
        encoder=encoder.detach(),
        tokens=rows.tokens,
    )
