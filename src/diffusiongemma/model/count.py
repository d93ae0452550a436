"""How many parameters an architecture has: the one count, whoever tells it."""

import functools

import torch

from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.model import DiffusionGemma


@functools.cache
def parameters(config: ModelConfig) -> int:
    """What training would change, each weight once, as transformers' `num_parameters` counts.

    It is the same in whichever format the weights are stored. The scalars at the end of layers are
    buffers, and scales of eight-bit weights are none of the architecture; neither is counted.
    """
    with torch.device("meta"):
        return sum(weight.numel() for weight in DiffusionGemma(config).parameters())
