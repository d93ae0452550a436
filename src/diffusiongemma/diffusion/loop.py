"""An answer, canvas after canvas: what decides it, and what is seen of its steps.

This file knows nothing of batches, pages, strings or requests, and calls no network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffusiongemma.core.brief import Brief
from diffusiongemma.core.errors import InputError
from diffusiongemma.diffusion.accept import AcceptRule
from diffusiongemma.diffusion.config import SamplerConfig
from diffusiongemma.kernels.readout import Ask, Readout


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides an answer beside the network and the prompt.

    Attributes:
        config: sampling options.
        seed: of all randomness.
        vocabulary: V, from which noise is drawn, all of it.
        canvas_length: L where the context has room for it.
        longest: tokens that a context can hold.
        eos: ids that end an answer.
        bias_V: added to the logits: bans and biases.
        rule: which positions to accept, if not the entropy bound.
        ask: what readouts report beside the usual.
    """

    config: SamplerConfig
    seed: int
    vocabulary: int
    canvas_length: int
    longest: int
    eos: frozenset[int] = frozenset()
    bias_V: Float[Tensor, " V"] | None = field(default=None, compare=False, repr=False)
    rule: AcceptRule | None = None
    ask: Ask | None = None


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
    """

    canvas_BL: Int[Tensor, "B L"]
    best_BL: Int[Tensor, "B L"]
    accepted_BL: Bool[Tensor, "B L"]
    revised_BL: Bool[Tensor, "B L"]
    entropy_BL: Float[Tensor, "B L"]
    done_B: Bool[Tensor, " B"]


@dataclass(slots=True, kw_only=True, repr=False)
class DraftStep(Brief):
    """One step of one canvas, as a researcher sees it. Rows: B = 1.

    Attributes:
        canvas: index of the canvas within the answer, from 0.
        number: of the step, from 1.
        temperature: that the logits were divided by.
        before_BL: the canvas that the network saw.
        hidden_BLD: its hidden states after the final norm.
        readout: what they say of the vocabulary.
        step: what the sampler made of it; `step.canvas_BL` is what the next step will see.
        last: whether the canvas is finished with this step.
    """

    canvas: int
    number: int
    temperature: float
    before_BL: Int[Tensor, "B L"]
    hidden_BLD: Float[Tensor, "B L D"]
    readout: Readout
    step: Step
    last: bool
    _replace: Callable[[Tensor], None] = field(repr=False)
    _vocabulary: int = field(repr=False)

    def replace(self, canvas_BL: Int[Tensor, "B L"] | Sequence[int]) -> None:
        """Have the next step see another canvas. Without effect after the last step.

        Raises:
            InputError: not L tokens of the vocabulary.
        """
        self._replace(_canvas(canvas_BL, self.before_BL, self._vocabulary))


def _canvas(given: Any, like_BL: Tensor, vocabulary: int) -> Int[Tensor, "B L"]:
    """A canvas that a user gave, checked."""
    width = like_BL.shape[1]
    try:
        canvas_BL = torch.as_tensor(given, device=like_BL.device)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"a canvas has {width} token ids here, got {type(given).__name__} ({error}); give a "
            "list or a tensor of whole numbers"
        ) from error
    canvas_BL = canvas_BL[None] if canvas_BL.ndim == 1 else canvas_BL
    kind = canvas_BL.dtype
    whole = not (kind.is_floating_point or kind.is_complex or kind == torch.bool)
    if canvas_BL.shape != (1, width) or not whole:
        raise InputError(
            f"a canvas has {width} token ids here, got {tuple(canvas_BL.shape)} of {kind}"
        )
    if int(canvas_BL.min()) < 0 or int(canvas_BL.max()) >= vocabulary:
        raise InputError(
            f"canvas tokens must lie in 0 to {vocabulary - 1}, got {int(canvas_BL.min())} to "
            f"{int(canvas_BL.max())}"
        )
    return canvas_BL.long()
