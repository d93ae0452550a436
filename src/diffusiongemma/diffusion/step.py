"""One refinement of canvases: what the network predicts becomes the next canvases, in place.

    temperature, random numbers -> readout -> accept, re-noise the rest, is it done?

This file sees hidden states and what is read out of them, never the layers of the network.
"""

from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffusiongemma.core.errors import OptionError
from diffusiongemma.diffusion.accept import AcceptRule, shown
from diffusiongemma.diffusion.drafts import BROKEN, DONE, Drafts
from diffusiongemma.kernels import refine as refining
from diffusiongemma.kernels.ops import Ops
from diffusiongemma.kernels.readout import Ask, Readout


class RuleError(Exception):
    """A rule failed on a row; never leaves the engine.

    Attributes:
        row: which.
        cause: what it raised.
    """

    def __init__(self, row: int, cause: Exception) -> None:
        super().__init__(f"the rule of row {row} failed")
        self.row, self.cause = row, cause


@runtime_checkable
class Reads(Protocol):
    """What a step needs of the network; `model.DiffusionGemma` has it."""

    @property
    def ops(self) -> Ops:
        """The table."""
        ...

    def readout(
        self,
        hidden_BLD: Tensor,
        temperature_B: Tensor,
        uniform_BL: Tensor,
        bias_V: Float[Tensor, " V"] | None = None,
        ask: Ask | None = None,
    ) -> Readout:
        """Read the vocabulary."""
        ...


def take(
    network: Reads,
    hidden_BLD: Float[Tensor, "B L D"],
    drafts: Drafts,
    *,
    bias_V: Float[Tensor, " V"] | None = None,
    rule: AcceptRule | None = None,
    ask: Ask | None = None,
) -> Readout:
    """Take in what the network said of the canvases, and move on by one step.

    Args:
        network: reads the vocabulary.
        hidden_BLD: its hidden states of `drafts.canvas_BL`.
        drafts: changed in place.
        bias_V: added to the logits: bans and biases.
        rule: which positions to accept, if not each row's entropy bound.
        ask: what to report beside the usual.

    Raises:
        RuleError: the rule failed; the drafts are as they were.
    """
    drafts.step_B += 1
    try:
        uniform_BL, noise_BL = drafts.draws()
        readout = network.readout(hidden_BLD, drafts.temperature_B(), uniform_BL, bias_V, ask)
        refine(drafts, readout, noise_BL, network.ops, rule)
    except RuleError:
        drafts.step_B -= 1
        raise
    return readout


def refine(
    drafts: Drafts,
    readout: Readout,
    noise_BL: Int[Tensor, "B L"],
    ops: Ops,
    rule: AcceptRule | None = None,
) -> None:
    """Accept, re-noise the rest, decide whether to stop; all of it in the drafts.

    Args:
        drafts: the canvases that the readout is of.
        readout: what the network predicts for them.
        noise_BL: random tokens for every position; used where nothing is accepted.
        ops: the table of the network.
        rule: which positions to accept, if not each row's entropy bound.
    """
    best_BL, entropy_BL = readout.best_BL, readout.entropy_BL
    ruled_BL = None if rule is None else _ruled(rule, readout)
    drafts.before_BL.copy_(drafts.canvas_BL)
    drafts.revised_BL.copy_((drafts.best_BL >= 0) & (best_BL != drafts.best_BL))
    drafts.revisions_B += drafts.revised_BL.sum(-1)
    # Another rule's acceptance is the reference's to take in: it is no part of a kernel.
    op = ops.refine if ruled_BL is None else partial(refining.refine, accepted_BL=ruled_BL)
    canvas_BL, accepted_BL, repeats_B, done_B = op(
        readout.token_BL, best_BL, entropy_BL, noise_BL, drafts.best_BL, drafts.repeats_B,
        drafts.bound_B, drafts.stable_B, drafts.sure_B,
    )  # fmt: skip
    broken_B = ~entropy_BL.isfinite().all(-1)
    drafts.flags_B.copy_(DONE * done_B.long() + BROKEN * broken_B.long())
    for held, now in (
        (drafts.canvas_BL, canvas_BL),
        (drafts.accepted_BL, accepted_BL),
        (drafts.repeats_B, repeats_B),
        (drafts.best_BL, best_BL),
        (drafts.entropy_BL, entropy_BL),
        (drafts.expected_BLD, readout.soft_BLD),
    ):
        held.copy_(now)


def _ruled(rule: AcceptRule, readout: Readout) -> Bool[Tensor, "B L"]:
    """Row by row, as a rule of somebody else's may look across what it is shown."""
    parts = []
    for row in range(len(readout.best_BL)):
        try:
            parts.append(_asked(rule, readout.row(row)))
        except Exception as error:
            raise RuleError(row, error) from error
    return torch.cat(parts)


def _asked(rule: AcceptRule, readout: Readout) -> Tensor:
    """The rule's answer, checked: rules are written by users."""
    accepted = rule(shown(rule, readout))
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
