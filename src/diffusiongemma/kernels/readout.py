"""From the last hidden states to everything the diffusion process wants to know of the vocabulary.

Contract: with x = softcap(hidden @ E.T), shaped, divided by the row's temperature, in float32,
and p = softmax(x):

    best    = argmax p                         token   = the first v whose cumulated p exceeds
    entropy = - sum p log p   (nats)                     uniform * sum p
    soft    = round(p) @ E * scale             asked   = see `Ask`

No caller ever sees a tensor of vocabulary size, so that the fast twins may keep it in pieces or
never make it. The reference is here, one row of the batch at a time, in plain torch; the CPU's twin
is in `readout_cpu`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffusiongemma.core.brief import Brief
from diffusiongemma.kernels.draw import draw
from diffusiongemma.kernels.fast import attempt, fast, triton
from diffusiongemma.kernels.linear import linear
from diffusiongemma.kernels.native import readout as native
from diffusiongemma.kernels.readout_cpu import read_positions, softcapped_

Shaper = Callable[[Tensor], Tensor]
"""Changes the softcapped logits of one row, float32 (L, V), before the temperature: bans, biases,
grammars. A ban is a large negative number (see `BANNED`), never minus infinity, whose product with
probability zero is not a number. One that looks at each position by itself may say so with an
attribute `pointwise` that is true; it is then shown any positions together. One that only adds the
same to every position may have a method `bias_V(vocabulary)`, which gives what it adds, float32, or
None for nothing; a GPU then does it on the way."""

BANNED = -1.0e9
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
    given = (hidden_BLD, embedding_VD, cap, scale, temperature_B, uniform_BL, shaper)
    usual = ask == Ask() and (shaper is None or hasattr(shaper, "bias_V"))
    if usual and fast(hidden_BLD):
        bias_V = None if shaper is None else _bias(shaper, len(embedding_VD))
        if native.fits(hidden_BLD, embedding_VD, temperature_B, uniform_BL, bias_V):
            return _native(*given[:-1], bias_V)
    if usual and triton(hidden_BLD) and embedding_VD.dtype == torch.bfloat16:
        return attempt(hidden_BLD.device, lambda: _triton(*given), lambda: _by_rows(*given, ask))
    return _by_rows(*given, ask)


def _by_rows(
    hidden_BLD: Tensor,
    embedding_VD: Tensor,
    cap: float,
    scale: Tensor,
    temperature_B: Tensor,
    uniform_BL: Tensor,
    shaper: Shaper | None,
    ask: Ask,
) -> Readout:
    """The vocabulary, read for one row after the other, or a few together."""
    rows, length, _ = hidden_BLD.shape
    # Small vocabularies are read for several rows together.
    some = max(1, _TOGETHER // (length * len(embedding_VD))) if fast(hidden_BLD) else 1
    read = _lean if fast(hidden_BLD) else _plain
    reports = []
    for start in range(0, rows, some):
        part = slice(start, start + some)
        ids_BL = None if ask.ids_BL is None else ask.ids_BL[part]
        one = replace(ask, ids_BL=ids_BL)
        report, p_BLV = read(
            hidden_BLD[part], embedding_VD, cap, temperature_B[part], uniform_BL[part], shaper, one
        )
        soft = [expected_embedding(p_LV, embedding_VD, scale) for p_LV in p_BLV]
        reports.append(report | {"soft_BLD": torch.stack(soft)})
    return Readout(**{name: torch.cat([r[name] for r in reports]) for name in reports[0]})


def _bias(shaper: Any, vocabulary: int) -> Tensor | None:
    return shaper.bias_V(vocabulary)


def _native(
    hidden_BLD: Tensor,
    embedding_VD: Tensor,
    cap: float,
    scale: Tensor,
    temperature_B: Tensor,
    uniform_BL: Tensor,
    bias_V: Tensor | None,
) -> Readout:
    """From the CPU's own code, in one call."""
    seen = native.read(hidden_BLD, embedding_VD, cap, scale, temperature_B, uniform_BL, bias_V)
    return _shaped(seen, seen.soft_SD, hidden_BLD)


def _shaped(seen: Any, soft_SD: Tensor, hidden_BLD: Tensor) -> Readout:
    """What was seen of all positions together, by rows."""
    across = hidden_BLD.shape[:2]
    return Readout(
        token_BL=seen.token_S.view(across),
        best_BL=seen.best_S.view(across),
        entropy_BL=seen.entropy_S.view(across),
        soft_BLD=soft_SD.view(hidden_BLD.shape),
    )


def _triton(
    hidden_BLD: Tensor,
    embedding_VD: Tensor,
    cap: float,
    scale: Tensor,
    temperature_B: Tensor,
    uniform_BL: Tensor,
    shaper: Any,
) -> Readout:
    """From a GPU's twins: logits are written once, in the weights' format."""
    from diffusiongemma.kernels.triton import readout as reading
    from diffusiongemma.kernels.triton import soften as softening

    rows, length, _ = hidden_BLD.shape
    bias_V = None if shaper is None else _bias(shaper, len(embedding_VD))
    logits_SV = linear(hidden_BLD.flatten(0, 1), embedding_VD)
    heat_S = temperature_B.float().repeat_interleave(length, output_size=rows * length)
    seen = reading.read(logits_SV, cap, heat_S, uniform_BL.flatten(), bias_V)
    soft_SD = softening.soften(
        logits_SV, cap, heat_S, seen.log_total_S, bias_V, embedding_VD, scale
    )
    return _shaped(seen, soft_SD, hidden_BLD)


def _plain(
    hidden_BLD: Tensor,
    embedding_VD: Tensor,
    cap: float,
    temperature_B: Tensor,
    uniform_BL: Tensor,
    shaper: Shaper | None,
    ask: Ask,
) -> tuple[dict[str, Tensor], Tensor]:
    """One row's report and its probabilities, (1, L, V): the reference."""
    x_LV = softcapped(hidden_BLD[0], embedding_VD, cap)
    if shaper is not None:
        x_LV = shaper(x_LV)
    x_LV = x_LV / temperature_B
    p_LV = torch.softmax(x_LV, dim=-1)
    log_LV = torch.log_softmax(x_LV, dim=-1)
    report = {
        "token_BL": draw(p_LV, uniform_BL[0]),
        "best_BL": x_LV.argmax(-1),
        "entropy_BL": -(p_LV * log_LV).sum(-1),
    }
    if ask.top:
        report["top_logprob_BLG"], report["top_BLG"] = log_LV.topk(ask.top, dim=-1)
    if ask.ids_BL is not None:
        report["logprob_BL"] = log_LV.gather(-1, ask.ids_BL[0][:, None])[:, 0]
    if ask.members_V is not None:
        report["mass_BL"] = p_LV[:, ask.members_V].sum(-1)
    return {name: value[None] for name, value in report.items()}, p_LV[None]


def _lean(
    hidden_BLD: Tensor,
    embedding_VD: Tensor,
    cap: float,
    temperature_B: Tensor,
    uniform_BL: Tensor,
    shaper: Shaper | None,
    ask: Ask,
) -> tuple[dict[str, Tensor], Tensor]:
    """The same of some rows, from the CPU's twin."""
    rows, length, _ = hidden_BLD.shape
    logits_SV = linear(hidden_BLD.flatten(0, 1), embedding_VD)
    left: float | None = cap
    if shaper is not None and not getattr(shaper, "pointwise", False):
        # It may look at where a position stands, so it is shown whole rows.
        capped = softcapped_(logits_SV.float(), cap).view(rows, length, -1)
        logits_SV = torch.cat([shaper(x_LV) for x_LV in capped])
        shaper, left = None, None
    report = read_positions(
        logits_SV,
        uniform_BL.flatten(),
        temperature_B.repeat_interleave(length),
        cap=left,
        shaper=shaper,
        top=ask.top,
        ids_S=None if ask.ids_BL is None else ask.ids_BL.flatten(),
        members_V=ask.members_V,
    )
    shaped = {name: value.unflatten(0, (rows, length)) for name, value in report.items()}
    return shaped, logits_SV.unflatten(0, (rows, length))
