"""Everything that decides a training run, frozen, and saved beside its weights."""

import math
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any

from diffusiongemma.core.errors import OptionError
from diffusiongemma.core.letters import brief

_MOST = 2**31 - 1
_WHOLE = {
    **dict.fromkeys(("steps", "batch", "canvas_length", "save_every", "log_every"), (1, _MOST)),
    "warmup": (0, _MOST),
    "seed": (0, 2**64 - 1),
}
_SHARES = ("lr_end", "ema", "conditioned", "prompt_weight")
_POSITIVE = ("lr", "clip")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """A run. Defaults are the consensus of the public recipes for this model.

    Numbers may be numpy's.

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
        prompt_weight: of a prompt's tokens in that loss, where an answer's have 1.
        balance: of the loss that keeps experts evenly used (Fedus et al. 2021, Switch, eq. 4).
        seed: of weights, data, noise and coins.
        save_every: steps between checkpoints.
        log_every: steps between lines of the log.

    Raises:
        OptionError: a field of another type, or out of range.
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
    prompt_weight: float = 1.0
    balance: float = 0.01
    seed: int = 0
    save_every: int = 500
    log_every: int = 20

    def __post_init__(self) -> None:
        for field in fields(self):
            # Numbers of other kinds, such as numpy's, become Python's own, which JSON knows.
            object.__setattr__(self, field.name, _checked(field.name, getattr(self, field.name)))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def _checked(name: str, value: Any) -> Any:
    """A field's value as Python's own number."""
    if name in _WHOLE:
        least, most = _WHOLE[name]
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not is_whole or not least <= int(value) <= most:
            raise OptionError(
                f"{name} must be a whole number from {least} to {most}, got {brief(value)}"
            )
        return int(value)
    if name == "betas":
        both = list(value) if isinstance(value, list | tuple) else []
        if len(both) != 2 or not all(0 <= _number(one) < 1 for one in both):
            raise OptionError(f"betas must be two numbers from 0 to below 1, got {brief(value)}")
        return float(both[0]), float(both[1])
    number = _number(value)
    if name in _SHARES and not 0 <= number <= 1:
        raise OptionError(f"{name} must be from 0 to 1, got {brief(value)}")
    if not 0 <= number < math.inf or (name in _POSITIVE and number == 0):
        least = "above 0" if name in _POSITIVE else "of at least 0"
        raise OptionError(f"{name} must be a finite number {least}, got {brief(value)}")
    return number


def _number(value: Any) -> float:
    """A real number; not-a-number, which no range holds, for all else."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # a whole number larger than all of them
        return math.inf
