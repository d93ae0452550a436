"""One refinement of a canvas, pure: (readout, noise) -> the next canvas, and whether to stop.

This file sees what the network read out, never the network.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffusiongemma.core.brief import Brief
from diffusiongemma.core.errors import OptionError
from diffusiongemma.diffusion.accept import AcceptRule, EntropyBound
from diffusiongemma.diffusion.config import SamplerConfig
from diffusiongemma.diffusion.stop import Progress, stable, sure
from diffusiongemma.kernels.readout import Readout


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Step(Brief):
    """What one refinement did.

    Attributes:
        canvas_BL: the next canvas: sampled where accepted, fresh noise elsewhere.
        best_BL: the most likely tokens; what is committed if this is the last step.
        accepted_BL: where the sample was kept.
        revised_BL: where the most likely token is another than at the step before.
        entropy_BL: nats.
        done_B: stable and sure.
        progress: what the next step's stop rule needs.
    """

    canvas_BL: Int[Tensor, "B L"]
    best_BL: Int[Tensor, "B L"]
    accepted_BL: Bool[Tensor, "B L"]
    revised_BL: Bool[Tensor, "B L"]
    entropy_BL: Float[Tensor, "B L"]
    done_B: Bool[Tensor, " B"]
    progress: Progress


def refine(
    readout: Readout,
    noise_BL: Int[Tensor, "B L"],
    config: SamplerConfig,
    progress: Progress,
    rule: AcceptRule | None = None,
) -> Step:
    """Accept, re-noise the rest, decide whether to stop.

    Args:
        readout: what the network predicts for the canvas.
        noise_BL: random tokens for every position; used where nothing is accepted.
        config: bounds and thresholds.
        progress: what is remembered of the steps before.
        rule: which positions to accept; the entropy bound of `config` if none is given.
    """
    rule = rule or EntropyBound(config.entropy_bound)
    accepted_BL = _asked(rule, readout)
    seen_BL = progress.best_BL >= 0
    revised_BL = seen_BL & (readout.best_BL != progress.best_BL)
    progress = progress.advance(readout.best_BL)
    done_B = stable(progress, config.stability_threshold) & sure(
        readout.entropy_BL, config.confidence_threshold
    )
    return Step(
        canvas_BL=torch.where(accepted_BL, readout.token_BL, noise_BL),
        best_BL=readout.best_BL,
        accepted_BL=accepted_BL,
        revised_BL=revised_BL,
        entropy_BL=readout.entropy_BL,
        done_B=done_B,
        progress=progress,
    )


def _asked(rule: AcceptRule, readout: Readout) -> Tensor:
    """The rule's answer, checked: rules are written by users."""
    accepted = rule(readout)
    shape = readout.best_BL.shape
    if isinstance(accepted, Tensor) and accepted.dtype == torch.bool and accepted.shape == shape:
        return accepted
    got = type(accepted).__name__
    if isinstance(accepted, Tensor):
        got = f"{tuple(accepted.shape)} of {accepted.dtype}"
    raise OptionError(
        f"a rule must give a bool tensor of shape {tuple(shape)}, True where the sample is kept, "
        f"got {got}"
    )
