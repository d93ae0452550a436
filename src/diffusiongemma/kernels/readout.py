"""From the last hidden states to everything the diffusion process wants to know of the vocabulary.

Contract: with x = softcap(hidden @ E.T), shaped, divided by the row's temperature, in float32,
and p = softmax(x):

    best    = argmax p                         token   = the first v whose cumulated p exceeds
    entropy = - sum p log p   (nats)                     uniform * sum p
    soft    = round(p) @ E * scale             asked   = see `Ask`

No caller ever sees a tensor of vocabulary size, so that the fast twins may keep it in pieces or
never make it. This is the reference: one row of the batch at a time, in plain torch.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffusiongemma.kernels.linear import linear

Shaper = Callable[[Tensor], Tensor]
"""Changes the softcapped logits of one row, float32 (L, V), before the temperature: bans, biases,
grammars. A ban is a large negative number (see `BANNED`), never minus infinity, whose product with
probability zero is not a number."""

BANNED = -1.0e9
_PIECE = 1024  # vocabulary entries whose mass is summed together when a token is drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a readout should report beside the usual.

    Attributes:
        top: how many of the most likely tokens, 0 for none.
        ids_BL: one token a position, whose log-probability is wanted.
        members_V: True for the tokens of a class, whose probability mass is wanted.
    """

    top: int = 0
    ids_BL: Int[Tensor, "B L"] | None = None
    members_V: Bool[Tensor, " V"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Readout:
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
    hidden_SD: Float[Tensor, "S D"], embedding_VD: Float[Tensor, "V D"], cap: float
) -> Float[Tensor, "S V"]:
    """Logits: the product in the weights' dtype, the soft cap in float32."""
    return torch.tanh(linear(hidden_SD, embedding_VD).float() / cap) * cap


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
    shaper: Shaper | None = None,
    ask: Ask | None = None,
) -> Readout:
    """Read the vocabulary for every canvas position.

    Args:
        hidden_BLD: hidden states after the final norm.
        embedding_VD: the tied embedding table.
        cap: softcap of the logits.
        scale: sqrt(D) in the weights' dtype, for the expected embedding.
        temperature_B: one temperature a row, above 0.
        uniform_BL: one number in [0, 1) a position, float64, that decides the sampled token.
        shaper: a change of the logits before the temperature.
        ask: what else to report.
    """
    ask = ask or Ask()
    rows = []
    for row, hidden_LD in enumerate(hidden_BLD):
        x_LV = softcapped(hidden_LD, embedding_VD, cap)
        if shaper is not None:
            x_LV = shaper(x_LV)
        x_LV = x_LV / temperature_B[row]
        p_LV = torch.softmax(x_LV, dim=-1)
        log_LV = torch.log_softmax(x_LV, dim=-1)
        report = {
            "token_BL": draw(p_LV, uniform_BL[row]),
            "best_BL": x_LV.argmax(-1),
            "entropy_BL": -(p_LV * log_LV).sum(-1),
            "soft_BLD": expected_embedding(p_LV, embedding_VD, scale),
        }
        rows.append(report | _asked(ask, row, p_LV, log_LV))
    return Readout(**{name: torch.stack([row[name] for row in rows]) for name in rows[0]})


def _asked(ask: Ask, row: int, p_LV: Tensor, log_LV: Tensor) -> dict[str, Tensor]:
    report = {}
    if ask.top:
        report["top_logprob_BLG"], report["top_BLG"] = log_LV.topk(ask.top, dim=-1)
    if ask.ids_BL is not None:
        report["logprob_BL"] = log_LV.gather(-1, ask.ids_BL[row][:, None])[:, 0]
    if ask.members_V is not None:
        report["mass_BL"] = p_LV[:, ask.members_V].sum(-1)
    return report


def draw(p_LV: Float[Tensor, "L V"], uniform_L: Float[Tensor, " L"]) -> Int[Tensor, " L"]:
    """The token at which the cumulated probability passes `uniform` of the total.

    Two levels, pieces of the vocabulary and then the piece itself, in float64: a float32 running
    sum over 262,144 entries would round rare tokens away.
    """
    pieces = p_LV.split(_PIECE, dim=-1)
    mass = torch.stack([piece.sum(-1, dtype=torch.float64) for piece in pieces], dim=-1)
    piece_L, left_L = _pass(mass, uniform_L.double() * mass.sum(-1))
    vocabulary = p_LV.shape[1]
    ids = piece_L[:, None] * _PIECE + torch.arange(_PIECE, device=p_LV.device)
    inside = p_LV.gather(-1, ids.clamp(max=vocabulary - 1)).double()
    inside = inside.masked_fill(ids >= vocabulary, 0.0)
    place_L, _ = _pass(inside, left_L)
    return piece_L * _PIECE + place_L


def _pass(mass: Tensor, target_L: Tensor) -> tuple[Tensor, Tensor]:
    """Where the running sum first exceeds the target, and what is left of the target there."""
    total = mass.cumsum(-1)
    # Rounding may put the target at the very end; the last entry that has mass is then meant.
    below_end = torch.nextafter(total[:, -1], torch.zeros_like(target_L))
    target_L = torch.minimum(target_L, below_end).contiguous()
    place_L = torch.searchsorted(total, target_L[:, None], right=True)[:, 0]
    before = total.gather(-1, (place_L - 1).clamp(min=0)[:, None])[:, 0]
    return place_L, target_L - torch.where(place_L > 0, before, torch.zeros_like(before))
