"""The optimizer: AdamW in two groups, a warm-up and a cosine, and averaged weights."""

import math
import time

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from diffusiongemma.core.errors import OptionError
from diffusiongemma.train.config import TrainConfig

_FALL = 0.4  # of a run's time, in which the rate falls


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


class Pace:
    """How far a run is: by its steps, or by the clock, if it is to take so many minutes.

    By steps the rate falls as `rate` says. By the clock it stays at its peak after the warm-up and
    falls in a line over the last four tenths of the time, to `lr_end` (Hägele et al. 2024).

    Args:
        config: the run.
        minutes: that it may take from now on; None for all its steps.
    """

    def __init__(self, config: TrainConfig, minutes: float | None = None) -> None:
        if minutes is not None and not 0 < minutes < math.inf:
            raise OptionError(f"minutes must be a finite number above 0, got {minutes}")
        self._config, self._began = config, time.monotonic()
        self._seconds = None if minutes is None else 60 * minutes

    def rate(self, step: int) -> float:
        """The learning rate of a step that begins now."""
        config = self._config
        if self._seconds is None:
            return rate(step, config)
        warm = min(1.0, step / max(1, config.warmup))
        left = min(1.0, max(0.0, self._left() / self._seconds) / _FALL)
        return config.lr * warm * (config.lr_end + (1 - config.lr_end) * left)

    def over(self, step: int) -> bool:
        """Whether the run has ended with a step."""
        return step >= self._config.steps or (self._seconds is not None and self._left() <= 0)

    def left_minutes(self, step: int, seconds: float) -> float:
        """How long it will still take, if a step takes so many seconds."""
        left = (self._config.steps - step) * seconds
        return (left if self._seconds is None else min(left, max(0.0, self._left()))) / 60

    def _left(self) -> float:
        assert self._seconds is not None
        return self._seconds - (time.monotonic() - self._began)


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
        kept = list(self.weights.values())
        get_ema_multi_avg_fn(decay)(kept, [named[name] for name in self.weights], None)

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
