"""A small vocabulary, read in one call (`readout.c`)."""

import ctypes
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusiongemma.kernels.native import build

_LIMIT = 1 << 20  # numbers in the embedding table, above which torch's products are faster
_STEP, _WIDEST = 16, 1024  # channels: a multiple of one, at most the other
_HALF = {torch.float32: 0, torch.bfloat16: 1}
_I, _F, _P = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class _Reading(ctypes.Structure):
    """As in readout.c, field by field."""

    _fields_ = (
        [(name, _I) for name in ("positions", "length", "vocabulary", "width", "half")]
        + [("cap", _F), ("scale", _F)]
        + [(name, _P) for name in ("hidden", "embedding", "temperature", "uniform", "bias")]
        + [(name, _P) for name in ("token", "best", "entropy", "soft")]
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Seen:
    """What `kernels.readout.Readout` calls by these names, positions of all rows together."""

    token_S: Int[Tensor, " S"]
    best_S: Int[Tensor, " S"]
    entropy_S: Float[Tensor, " S"]
    soft_SD: Float[Tensor, "S D"]


def fits(
    hidden_BLD: Tensor,
    embedding_VD: Tensor,
    temperature_B: Tensor,
    uniform_BL: Tensor,
    bias_V: Tensor | None,
) -> bool:
    """Whether the vocabulary may be read in one call here, of tensors that fit each other."""
    vocabulary, width = embedding_VD.shape
    given = [hidden_BLD, embedding_VD, temperature_B, uniform_BL]
    given += [] if bias_V is None else [bias_V]
    return (
        embedding_VD.numel() <= _LIMIT
        and (width % _STEP == 0 and width <= _WIDEST)
        and embedding_VD.dtype in _HALF
        and hidden_BLD.dtype == embedding_VD.dtype
        and embedding_VD.is_contiguous()
        and hidden_BLD.shape == (*uniform_BL.shape, width)
        and temperature_B.shape == uniform_BL.shape[:1]
        and (bias_V is None or bias_V.shape == (vocabulary,))
        and all(part.device == hidden_BLD.device for part in given)
    )


def read(
    hidden_BLD: Float[Tensor, "B L D"],
    embedding_VD: Float[Tensor, "V D"],
    cap: float,
    scale: Tensor,
    temperature_B: Float[Tensor, " B"],
    uniform_BL: Float[Tensor, "B L"],
    bias_V: Float[Tensor, " V"] | None,
) -> Seen:
    """As `kernels.readout.readout`; `bias_V` is added to the softcapped logits."""
    rows, length, width = hidden_BLD.shape
    hidden = hidden_BLD.float().contiguous()
    given = (temperature_B.float().contiguous(), uniform_BL.double().contiguous())
    if bias_V is not None:
        given += (bias_V.float().contiguous(),)
    token_S, best_S = torch.empty(2, rows * length, dtype=torch.int64).unbind()
    entropy_S = torch.empty(rows * length)
    soft_SD = torch.empty(rows * length, width)
    told = _Reading(
        *(rows * length, length, len(embedding_VD), width, _HALF[embedding_VD.dtype]),
        *(cap, float(scale), hidden.data_ptr(), embedding_VD.data_ptr()),
        *[part.data_ptr() for part in given],
        *(() if bias_V is not None else (0,)),
        *(token_S.data_ptr(), best_S.data_ptr(), entropy_S.data_ptr(), soft_SD.data_ptr()),
    )
    library = build.library()
    assert library is not None
    if library.diffusiongemma_readout(ctypes.addressof(told)):
        raise MemoryError
    return Seen(token_S, best_S, entropy_S, soft_SD.to(embedding_VD.dtype))
