"""From the last hidden states to everything the diffusion process wants to know of the vocabulary.

Contract: with x = (softcap(hidden @ E.T) + bias) / the row's temperature, in float32, and
p = softmax(x):

    best    = argmax p                         token   = the first v whose cumulated p exceeds
    entropy = - sum p log p   (nats)                     uniform * sum p
    soft    = round(p) @ E * scale

No caller ever sees a tensor of vocabulary size, so that the fast twins may keep it in pieces or
never make it. The reference is here, one row of the batch at a time, in plain torch; what a CPU's
twin makes of some positions is in `readout_cpu`.

What is asked beside these four (`Ask`) is found by a second look at logits made anew, the same
function for all twins: whoever asks more changes no bit of the usual.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffusiongemma.core.brief import Brief
from diffusiongemma.kernels.draw import draw
from diffusiongemma.kernels.linear import linear
from diffusiongemma.kernels.native import readout as native
from diffusiongemma.kernels.readout_cpu import read_positions

BANNED = -1.0e9
"""The bias of a token that is never predicted. Not minus infinity, whose product with probability
zero is not a number."""
_TOGETHER = 1 << 18  # logits that are made and read together


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Ask(Brief):
    """What a readout should report beside the usual.

    Attributes:
        top: how many of the most likely tokens, 0 for none.
        ids_BL: one token a position, whose log-probability is wanted.
        members_V: True for the tokens of a class, whose probability mass is wanted.
    """

    top: int = 0
    ids_BL: Int[Tensor, "B L"] | None = None
    members_V: Bool[Tensor, " V"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Readout(Brief):
    """The vocabulary, read. All probabilities are those at the row's temperature.

    Attributes:
        token_BL: sampled tokens.
        best_BL: the most likely tokens.
        entropy_BL: entropy in nats, float32.
        soft_BLD: expected embedding, the next step's self-conditioning.
        top_BLG: the most likely tokens, best first, if asked for.
        top_logprob_BLG: their log-probabilities.
        logprob_BL: log-probability of `Ask.ids_BL`.
        mass_BL: probability mass of `Ask.members_V`.
    """

    token_BL: Int[Tensor, "B L"]
    best_BL: Int[Tensor, "B L"]
    entropy_BL: Float[Tensor, "B L"]
    soft_BLD: Float[Tensor, "B L D"]
    top_BLG: Int[Tensor, "B L G"] | None = None
    top_logprob_BLG: Float[Tensor, "B L G"] | None = None
    logprob_BL: Float[Tensor, "B L"] | None = None
    mass_BL: Float[Tensor, "B L"] | None = None

    def row(self, number: int) -> "Readout":
        """One row of the batch, as a batch of one."""
        here = slice(number, number + 1)
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: v[here] for k, v in parts.items() if v is not None})


def softcapped(
    hidden_SD: Float[Tensor, "S D"],
    embedding_VD: Float[Tensor, "V D"],
    cap: float,
    linear: Callable[[Tensor, Tensor], Tensor] = linear,
) -> Float[Tensor, "S V"]:
    """Logits: the product in the weights' dtype, the soft cap in float32."""
    return torch.tanh(linear(hidden_SD, embedding_VD).float() / cap) * cap


def banning(ids: Iterable[int], vocabulary: int, device: torch.device) -> Tensor | None:
    """The bias that forbids these tokens; None forbids none."""
    places = torch.tensor(sorted(ids), dtype=torch.int64, device=device)
    if len(places) == 0:
        return None
    return torch.zeros(vocabulary, device=device).index_fill_(0, places, BANNED)


def expected_embedding(
    probability: Float[Tensor, "*axes V"], embedding_VD: Float[Tensor, "V D"], scale: Tensor
) -> Float[Tensor, "*axes D"]:
    """Probabilities, rounded to the weights' dtype, times the scaled embedding table."""
    return (probability.to(embedding_VD.dtype) @ embedding_VD) * scale


def readout(
    hidden_BLD: Float[Tensor, "B L D"],
    embedding_VD: Float[Tensor, "V D"],
    *,
    cap: float,
    scale: Tensor,
    temperature_B: Float[Tensor, " B"],
    uniform_BL: Float[Tensor, "B L"],
    bias_V: Float[Tensor, " V"] | None = None,
    linear: Callable[[Tensor, Tensor], Tensor] = linear,
) -> Readout:
    """Read the vocabulary for every canvas position: the reference, one row after the other.

    Args:
        hidden_BLD: hidden states after the final norm.
        embedding_VD: the tied embedding table.
        cap: softcap of the logits.
        scale: sqrt(D) in the weights' dtype, for the expected embedding.
        temperature_B: one temperature a row, above 0.
        uniform_BL: one number in [0, 1) a position, float64, that decides the sampled token.
        bias_V: added to the softcapped logits of every position, float32.
        linear: the product.
    """
    rows = []
    for hidden_LD, temperature, uniform_L in zip(
        hidden_BLD, temperature_B, uniform_BL, strict=True
    ):
        x_LV = _tempered(hidden_LD, embedding_VD, cap, temperature, bias_V, linear)
        p_LV, log_LV = torch.softmax(x_LV, dim=-1), torch.log_softmax(x_LV, dim=-1)
        entropy_L = -(p_LV * log_LV).sum(-1)
        soft_LD = expected_embedding(p_LV, embedding_VD, scale)
        rows.append((draw(p_LV, uniform_L), x_LV.argmax(-1), entropy_L, soft_LD))
    token_BL, best_BL, entropy_BL, soft_BLD = map(torch.stack, zip(*rows, strict=True))
    return Readout(token_BL=token_BL, best_BL=best_BL, entropy_BL=entropy_BL, soft_BLD=soft_BLD)


def second_look(
    hidden_BLD: Float[Tensor, "B L D"],
    embedding_VD: Float[Tensor, "V D"],
    ask: Ask,
    *,
    cap: float,
    temperature_B: Float[Tensor, " B"],
    bias_V: Float[Tensor, " V"] | None = None,
) -> dict[str, Tensor]:
    """What is asked beside the usual, by its names in `Readout`; of logits made anew.

    Args:
        hidden_BLD: as in `readout`.
        embedding_VD: as there.
        ask: what to report.
        cap: as there.
        temperature_B: as there.
        bias_V: as there.
    """
    reports = []
    for row, hidden_LD in enumerate(hidden_BLD):
        x_LV = _tempered(hidden_LD, embedding_VD, cap, temperature_B[row], bias_V)
        log_LV = torch.log_softmax(x_LV, dim=-1)
        report = {}
        if ask.top:
            report["top_logprob_BLG"], report["top_BLG"] = log_LV.topk(ask.top, dim=-1)
        if ask.ids_BL is not None:
            report["logprob_BL"] = log_LV.gather(-1, ask.ids_BL[row][:, None])[:, 0]
        if ask.members_V is not None:
            report["mass_BL"] = log_LV[:, ask.members_V].exp().sum(-1)
        reports.append(report)
    return {name: torch.stack([one[name] for one in reports]) for name in reports[0]}


def _tempered(
    hidden_LD: Tensor,
    embedding_VD: Tensor,
    cap: float,
    temperature: Tensor,
    bias_V: Tensor | None,
    linear: Callable[[Tensor, Tensor], Tensor] = linear,
) -> Float[Tensor, "L V"]:
    x_LV = softcapped(hidden_LD, embedding_VD, cap, linear)
    return (x_LV if bias_V is None else x_LV + bias_V) / temperature


def readout_by_shares(
    hidden_BLD: Float[Tensor, "B L D"],
    embedding_VD: Float[Tensor, "V D"],
    *,
    cap: float,
    scale: Tensor,
    temperature_B: Float[Tensor, " B"],
    uniform_BL: Float[Tensor, "B L"],
    bias_V: Float[Tensor, " V"] | None = None,
) -> Readout:
    """For CPUs; small vocabularies are read for several rows together."""
    rows, length, _ = hidden_BLD.shape
    some = max(1, _TOGETHER // (length * len(embedding_VD)))
    read, soft = [], []
    for start in range(0, rows, some):
        part = slice(start, start + some)
        p_SV = linear(hidden_BLD[part].flatten(0, 1), embedding_VD)
        heat_S = temperature_B[part].repeat_interleave(length)
        read.append(read_positions(p_SV, uniform_BL[part].flatten(), heat_S, cap, bias_V))
        soft += [expected_embedding(p_LV, embedding_VD, scale) for p_LV in p_SV.split(length)]
    token_S, best_S, entropy_S = map(torch.cat, zip(*read, strict=True))
    return by_rows(token_S, best_S, entropy_S, torch.cat(soft), hidden_BLD)


def readout_compiled(
    hidden_BLD: Float[Tensor, "B L D"],
    embedding_VD: Float[Tensor, "V D"],
    *,
    cap: float,
    scale: Tensor,
    temperature_B: Float[Tensor, " B"],
    uniform_BL: Float[Tensor, "B L"],
    bias_V: Float[Tensor, " V"] | None = None,
) -> Readout:
    """For CPUs: a small vocabulary in one call of the CPU's own code."""
    given = (hidden_BLD, embedding_VD, temperature_B, uniform_BL, bias_V)
    if not native.fits(*given):
        return readout_by_shares(
            hidden_BLD, embedding_VD, cap=cap, scale=scale, temperature_B=temperature_B,
            uniform_BL=uniform_BL, bias_V=bias_V,
        )  # fmt: skip
    seen = native.read(hidden_BLD, embedding_VD, cap, scale, temperature_B, uniform_BL, bias_V)
    return by_rows(seen.token_S, seen.best_S, seen.entropy_S, seen.soft_SD, hidden_BLD)


def by_rows(
    token_S: Tensor, best_S: Tensor, entropy_S: Tensor, soft_SD: Tensor, hidden_BLD: Tensor
) -> Readout:
    """What was seen of all positions together."""
    across = hidden_BLD.shape[:2]
    return Readout(
        token_BL=token_S.view(across),
        best_BL=best_S.view(across),
        entropy_BL=entropy_S.view(across),
        soft_BLD=soft_SD.view(hidden_BLD.shape),
    )
