"""Which positions of a canvas keep what was sampled; all others become noise again.

A rule is any callable from a readout to a mask; `EntropyBound` is the model's own. One that reads
more than the usual says so with an attribute `needs`, an `Ask`.
Acceptance is decided anew at every step: a position accepted earlier is not kept for that.
"""

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from jaxtyping import Bool
from torch import Tensor

from diffusiongemma.core.errors import OptionError
from diffusiongemma.core.letters import brief
from diffusiongemma.kernels.readout import Ask, Readout
from diffusiongemma.kernels.refine import within_bound


@runtime_checkable
class AcceptRule(Protocol):
    """Decides which sampled tokens stay."""

    def __call__(self, readout: Readout) -> Bool[Tensor, "B L"]:
        """True where the sampled token is kept."""
        ...


def wanted(rule: AcceptRule | None, ask: Ask | None) -> Ask:
    """What a readout must report: what a rule needs, and what is asked for besides.

    Raises:
        OptionError: the rule is no rule, or both name other tokens or another class.
    """
    if rule is not None and not callable(rule):
        raise OptionError(f"a rule must be callable with a Readout, got {brief(rule)}")
    needs = getattr(rule, "needs", Ask())
    if not isinstance(needs, Ask):
        raise OptionError(f"a rule's `needs` must be an Ask, got {brief(needs)}")
    ask = Ask() if ask is None else ask
    for name in ("ids_BL", "members_V"):
        one, other = getattr(needs, name), getattr(ask, name)
        if one is not None and other is not None and one is not other:
            raise OptionError(
                f"the rule needs other {name} than were asked for; ask for one of them"
            )
    return Ask(
        top=max(needs.top, ask.top),
        ids_BL=ask.ids_BL if needs.ids_BL is None else needs.ids_BL,
        members_V=ask.members_V if needs.members_V is None else needs.members_V,
    )


def shown(rule: AcceptRule, readout: Readout) -> Readout:
    """A readout as a rule asked for it, whatever else was asked for."""
    needs = getattr(rule, "needs", Ask())
    if not needs.top or readout.top_BLG is None or readout.top_logprob_BLG is None:
        return readout
    few = (slice(None), slice(None), slice(needs.top))
    return replace(
        readout, top_BLG=readout.top_BLG[few], top_logprob_BLG=readout.top_logprob_BLG[few]
    )


@dataclass(frozen=True, slots=True)
class EntropyBound:
    """The lowest-entropy positions, while those before each hold at most `bound` nats together.

    The sum of the entropies bounds the mutual information that is lost when tokens are sampled
    independently (Ben-Hamu et al. 2025, arXiv 2505.24857). The first position always passes.
    """

    bound: float

    def __call__(self, readout: Readout) -> Bool[Tensor, "B L"]:
        """Apply the bound to every row by itself."""
        return within_bound(readout.entropy_BL, self.bound)
