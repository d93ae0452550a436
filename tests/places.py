"""Random numbers of one row at one place, as the tests ask for them."""

import torch
from torch import Tensor

from diffusiongemma.kernels.philox import Purpose, draws_of_numpy, seed_words, uniforms

CPU = torch.device("cpu")


def numbers(seed: int, canvas: int, step: int, width: int, purpose: Purpose) -> Tensor:
    """Of one purpose, from the reference: float64, (L,)."""
    words = seed_words([seed], CPU)
    return uniforms(words, torch.tensor([canvas]), torch.tensor([step]), width, purpose)[0]


def drawn(seed: int, canvas: int, step: int, width: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """What decides a step's tokens, and its noise, as a step has them: (L,) each."""
    words = seed_words([seed], CPU)
    found = draws_of_numpy(words, torch.tensor([canvas]), torch.tensor([step]), width, vocabulary)
    return found[0][0], found[1][0]
