"""What training does to clean tokens: the forward process, which a sampler undoes."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def corrupt(
    clean: Int[Tensor, "*rows L"],
    level: Float[Tensor, "*rows"],
    vocabulary: int,
    dice: torch.Generator,
) -> tuple[Int[Tensor, "*rows L"], Bool[Tensor, "*rows L"]]:
    """Uniform corruption: each token becomes a random one with probability `level`.

    The forward process of uniform-state diffusion with a linear schedule, q(z | x) =
    (1 - t) [z = x] + t / V (Austin et al. 2021, D3PM; t is `level`). The same uniform noise over
    the full vocabulary that the sampler puts in, but from a generator that is saved with a run.

    Args:
        clean: tokens.
        level: t of each canvas, 0 to 1.
        vocabulary: V.
        dice: the trainer's generator, saved with its checkpoints.

    Returns:
        the noised tokens, and where a token was resampled. Resampled is not the same as changed: a
        random token may be the clean one.
    """
    drawn = torch.rand(clean.shape, generator=dice, device=clean.device)
    random = torch.randint(0, vocabulary, clean.shape, generator=dice, device=clean.device)
    resampled = drawn < level[..., None]
    return torch.where(resampled, random, clean), resampled
