"""The optimizer: AdamW in two groups, a warm-up and a cosine, and averaged weights."""

import math

import torch
from torch import Tensor, nn

from diffusiongemma.train.config import TrainConfig


def optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; only matrices decay, the embedding table not."""
    matrices, others = [], []
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            decays = weight.ndim >= 2 and not name.startswith("embedding.")
            (matrices if decays else others).append(weight)
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def rate(step: int, config: TrainConfig) -> float:
    """The learning rate of a step, from 1 to `config.steps`."""
    if step <= config.warmup:
        return config.lr * step / config.warmup
    share = (step - config.warmup) / max(1, config.steps - config.warmup)
    floor = config.lr_end
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


class Average:
    """Exponential moving average of all weights."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take a step's weights in; the memory is short at first, so that it starts quickly."""
        decay = min(self.decay, (1 + step) / (10 + step))
        named = dict(model.named_parameters())
        for name, kept in self.weights.items():
            kept.lerp_(named[name], 1 - decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights with the averaged ones; twice is nothing."""
        for name, weight in model.named_parameters():
            kept = weight.detach().clone()
            weight.copy_(self.weights[name])
            self.weights[name].copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """What to save."""
        return self.weights
