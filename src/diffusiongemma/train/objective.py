"""What is minimised: the denoiser's error on noised canvases, and the encoder's on clean text.

    L = mean over examples of
          mean over canvas positions of  -log p(x | z_t, soft, clean text before)      (denoiser)
        + mean over clean positions  of  -log p(next token | clean text so far)        (encoder)

Flat cross-entropy over all positions of a canvas, kept tokens too, without a weight in t
(DiffusionGemma report, arXiv 2608.00146, sections 2 and 8). t is uniform, one for each canvas.
Self-conditioning: a share of the examples gets the expected embeddings of a first pass, which takes
no gradient; the others get none, which is exactly all zeros. Nothing stops the gradient from the
canvases into the encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffusiongemma.diffusion.noise import corrupt
from diffusiongemma.model.joint import joint
from diffusiongemma.model.model import DiffusionGemma


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Examples, padded to one length.

    Attributes:
        clean_BT: prompt, canvases, padding.
        starts: where the first canvas of each example begins.
        canvas_BK: True where a canvas is part of the example; the last real one is filled up with
            the end mark, and that is learned too.
        width: L.
    """

    clean_BT: Int[Tensor, "B T"]
    starts: Sequence[int]
    canvas_BK: Bool[Tensor, "B K"]
    width: int

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        clean_BT, canvas_BK = self.clean_BT.to(device), self.canvas_BK.to(device)
        return replace(self, clean_BT=clean_BT, canvas_BK=canvas_BK)

    def canvases(self) -> Int[Tensor, "B K L"]:
        """The clean canvases; past the example's end, padding."""
        canvases = self.canvas_BK.shape[1]
        across = torch.arange(canvases * self.width, device=self.clean_BT.device)
        places = torch.tensor(self.starts, device=self.clean_BT.device)[:, None] + across
        return self.clean_BT.gather(1, places).view(len(self.starts), canvases, self.width)

    def next_BT(self, prompt: float = 1.0) -> Float[Tensor, "B T"]:
        """How much each token's next one counts: `prompt` within the prompt, 1 in the answer, 0
        where none of the example follows.
        """
        begins = torch.tensor(self.starts, device=self.clean_BT.device)[:, None]
        ends = begins + self.canvas_BK.sum(1, keepdim=True) * self.width
        follows = torch.arange(1, self.clean_BT.shape[1] + 1, device=ends.device)
        weight_BT = torch.where(follows < begins, prompt, 1.0)
        return torch.where(follows < ends, weight_BT, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Means over the batch, and what to log.

    Attributes:
        total: to be minimised.
        denoiser: nats per canvas position.
        encoder: nats per clean token.
        tokens: canvas positions and clean tokens that were learned from.
    """

    total: Tensor
    denoiser: Tensor
    encoder: Tensor
    tokens: int


def losses(
    model: DiffusionGemma,
    batch: Batch,
    dice: torch.Generator,
    *,
    conditioned: float = 0.5,
    encoder_weight: float = 1.0,
    prompt_weight: float = 1.0,
) -> Losses:
    """The loss of a batch.

    Args:
        model: the network.
        batch: the examples.
        dice: decides noise levels, noise, and who is conditioned.
        conditioned: share of the examples that are self-conditioned.
        encoder_weight: of the encoder's part.
        prompt_weight: of a prompt's tokens in the encoder's part, where an answer's have 1. Tokens
            of prompts drawn at random cannot be foretold.
    """
    clean_BKL = batch.canvases()
    level_BK = torch.rand(batch.canvas_BK.shape, generator=dice, device=clean_BKL.device)
    noised_BKL, _ = corrupt(clean_BKL, level_BK, model.config.vocab_size, dice)
    coin_B = torch.rand(len(batch.starts), generator=dice, device=clean_BKL.device) < conditioned
    soft_BKLD = _condition(model, batch, noised_BKL, coin_B)
    read_BTD, drafted_BKLD = joint(model, batch.clean_BT, noised_BKL, batch.starts, soft_BKLD)
    seen_BKL = batch.canvas_BK[..., None].expand_as(clean_BKL)
    denoiser = _mean_error(model, drafted_BKLD, clean_BKL, seen_BKL.float())
    next_BT = batch.clean_BT.roll(-1, dims=1)
    weight_BT = batch.next_BT(prompt_weight)
    encoder = _mean_error(model, read_BTD, next_BT, weight_BT)
    return Losses(
        total=denoiser + encoder_weight * encoder,
        denoiser=denoiser.detach(),
        encoder=encoder.detach(),
        tokens=int(seen_BKL.sum() + (weight_BT > 0).sum()),
    )


@torch.no_grad()
def _condition(
    model: DiffusionGemma, batch: Batch, noised_BKL: Tensor, coin_B: Tensor
) -> Tensor | None:
    """Expected embeddings of a first pass for the chosen examples, zeros for the others."""
    chosen = coin_B.nonzero()[:, 0]
    if len(chosen) == 0:
        return None
    starts = [batch.starts[n] for n in chosen.tolist()]
    _, drafted = joint(model, batch.clean_BT[chosen], noised_BKL[chosen], starts)
    soft = model.soften(model.logits(drafted.flatten(1, 2)))
    shape = (*noised_BKL.shape, soft.shape[-1])
    soft_BKLD = torch.zeros(shape, dtype=soft.dtype, device=soft.device)
    soft_BKLD[chosen] = soft.view(len(chosen), *shape[1:])
    return soft_BKLD


def _mean_error(model: DiffusionGemma, hidden: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy: weighted mean over an example's positions, then mean over examples."""
    error = wanted.new_zeros(wanted.shape, dtype=torch.float32)
    # Only positions that count meet the vocabulary, which is the expensive part.
    counts = weight > 0
    picked = model.logits(hidden[counts][None])[0]
    error = error.masked_scatter(counts, F.cross_entropy(picked, wanted[counts], reduction="none"))
    total = weight.flatten(1).sum(1)
    return ((error * weight).flatten(1).sum(1) / total.clamp(min=1e-9)).mean()
