"""Random weights, for training from nothing, for benches and for demonstrations.

Every product keeps the scale of its input: weights are normal with variance 1 / fan-in, and the
embedding table has variance 1 / D, as it is scaled by sqrt(D) on the way in. Attention has no scale
of its own (Gemma leaves it to the norms of queries and keys), so both norms start at H^-1/4, which
is the usual 1 / sqrt(H) between them; with ones, attention starts out decided and learns slowly.
Other norms, scales and scalars start at 1, so that encoder and denoiser start alike.
"""

import torch

from diffusiongemma.model.attention import Attention
from diffusiongemma.model.experts import Experts, Router
from diffusiongemma.model.layers import Embedding, Linear
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.model.vision import Vision


@torch.no_grad()
def initialise(model: DiffusionGemma, seed: int) -> DiffusionGemma:
    """Fill a network with random weights, the same for the same seed on the same device.

    Args:
        model: a network whose weights have memory.
        seed: of the weights.

    Returns:
        the same network.
    """
    dice = torch.Generator(device=model.device).manual_seed(seed)
    for module in model.modules():
        if isinstance(module, Linear | Embedding | Router):
            module.weight.normal_(0.0, module.weight.shape[1] ** -0.5, generator=dice)
        elif isinstance(module, Experts):
            module.gate_up.normal_(0.0, module.gate_up.shape[2] ** -0.5, generator=dice)
            module.down.normal_(0.0, module.down.shape[2] ** -0.5, generator=dice)
        elif isinstance(module, Attention):
            for norm in (module.q_norm, module.k_norm):
                norm.weight.fill_(module.head_dim**-0.25)
        elif isinstance(module, Vision):
            module.positions.normal_(0.0, 0.02, generator=dice)
    return model
