"""Everything that decides a training run, frozen, and saved beside its weights."""

from dataclasses import asdict, dataclass
from typing import Any

from diffusiongemma.core.errors import OptionError


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """A run. Defaults are the consensus of the public recipes for this model.

    Attributes:
        steps: optimizer steps.
        batch: examples a step.
        canvas_length: L.
        lr: peak learning rate; after a linear warm-up it falls as a cosine to `lr_end` of it.
        warmup: steps of warm-up.
        lr_end: share of the peak that is left at the end.
        betas: AdamW's.
        weight_decay: on matrices; norms, scales and embeddings take none.
        clip: norm that gradients are cut to.
        ema: decay of the averaged weights, which are the ones that are kept.
        conditioned: share of examples that are self-conditioned.
        encoder_weight: of the encoder's next-token loss.
        balance: of the loss that keeps experts evenly used (Fedus et al. 2021, Switch, eq. 4).
        seed: of weights, data, noise and coins.
        save_every: steps between checkpoints.
        log_every: steps between lines of the log.
    """

    steps: int
    batch: int = 64
    canvas_length: int = 32
    lr: float = 2e-3
    warmup: int = 200
    lr_end: float = 0.05
    betas: tuple[float, float] = (0.95, 0.99)
    weight_decay: float = 1e-4
    clip: float = 1.0
    ema: float = 0.999
    conditioned: float = 0.5
    encoder_weight: float = 1.0
    balance: float = 0.01
    seed: int = 0
    save_every: int = 500
    log_every: int = 20

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "canvas_length", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr_end", "ema", "conditioned"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"{name} must lie in 0 to 1, got {getattr(self, name)}")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
