"""A small network's trunk in one call (`kernels/native/trunk.c`), where that is possible and fast.

Weights, keys and values stay where torch has them: nothing is copied, so nothing can be stale.
"""

import ctypes
import os
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

from diffusiongemma.kernels.native import build
from diffusiongemma.kernels.norm_rope import frequencies, rotation
from diffusiongemma.model import masks
from diffusiongemma.model.config import LayerConfig, ModelConfig
from diffusiongemma.model.context import Context, Row
from diffusiongemma.model.written import HALF, LAYER, SOFT, Weights, Written

if TYPE_CHECKING:
    from diffusiongemma.model.model import DiffusionGemma

LIMIT = 10_000_000
"""Parameters below which calls cost so much that one is always faster than many. Above, it is
faster with few threads (each reads all weights) if the processor multiplies the format well."""
_FEW = 4  # threads
_STEP = 16  # channels that are multiplied together
_WIDEST = 1024  # of them, at most
_SHARE = 64  # tokens that are worth a thread
_GROUP = 64  # query heads of a key head, at most
_P, _I = ctypes.c_void_p, ctypes.c_int64


def _struct(name: str, fields: Sequence[tuple[str, Any]]) -> Any:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields)})


# As in trunk.c, field by field.
_Layer = _struct(
    "_Layer",
    [(f"weight{n}", _P) for n in range(len(LAYER) - 2)]
    + [("scalar", _P), ("cos", _P), ("sin", _P), ("k_out", _P), ("v_out", _P)]
    + [("key_heads", _I), ("head", _I), ("window", _I)],
)
_Seen = _struct("_Seen", [("k", _P), ("v", _P), ("count", _I), ("per_head", _I), ("per_token", _I)])
_Tokens = _struct("_Tokens", [("tokens", _I), ("position", _I)])
_NUMBERS = ("layers", "rows", "width", "heads", "hidden", "experts", "top", "expert_hidden")
_Pass = _struct(
    "_Pass",
    [(name, _I) for name in (*_NUMBERS, "causal", "half", "threads")]
    + [("eps", ctypes.c_float)]
    + [(name, _P) for name in ("layer", "row", "seen", "norm")]
    + [(f"soft{n}", _P) for n in range(len(SOFT))]
    + [("soft", _P), ("x", _P)],
)
Kept = Sequence[tuple[Tensor, Tensor]]
"""Keys and values of each layer, (S, K, H), that a pass leaves behind."""


class Native:
    """What is remembered of a network from call to call."""

    def __init__(self, model: "DiffusionGemma") -> None:
        self.config: ModelConfig = model.config
        self.written = Written(model)
        self._turns: dict[tuple[bool, int], tuple[Tensor, Tensor]] = {}
        self._told: tuple[Weights, int, Any, list[Tensor]] | None = None

    def layers(self, weights: Weights, longest: int, kept: Kept | None) -> tuple[Any, list[Tensor]]:
        """Where weights are and keys and values go, for trunk.c; and what else must stay alive.

        The denoiser's is remembered.
        """
        told = self._told
        if kept is None and told is not None and told[0] is weights and told[1] >= longest:
            return told[2], [*told[3]]
        layers, held, per = [], [], len(LAYER)
        for number, layer in enumerate(self.config.layers):
            *given, encode_scalar, denoise_scalar = weights.addresses[
                number * per : (number + 1) * per
            ]
            cos, sin = self._turn(layer, longest)
            held += (cos, sin)
            out = (0, 0) if kept is None else tuple(part.data_ptr() for part in kept[number])
            window = self.config.sliding_window if layer.sliding else 0
            scalar = denoise_scalar if kept is None else encode_scalar
            place = (cos.data_ptr(), sin.data_ptr(), *out)
            sizes = (layer.num_key_value_heads, layer.head_dim, window)
            layers.append((*given, scalar, *place, *sizes))
        made = (_Layer * len(layers))(*layers)
        if kept is None:
            self._told = (weights, longest, made, held)
        return made, [*held]

    def _turn(self, layer: LayerConfig, longest: int) -> tuple[Tensor, Tensor]:
        """Rotations of all positions so far, (positions, H), in room that doubles."""
        kind = (layer.sliding, layer.head_dim)
        found = self._turns.get(kind)
        if found is None or len(found[0]) < longest:
            config, room = self.config, 1 << max(8, (longest - 1).bit_length())
            theta = config.rope_theta_sliding if layer.sliding else config.rope_theta_full
            partial = 1.0 if layer.sliding else config.partial_rotary_factor
            pace = frequencies(layer.head_dim, theta, partial, torch.device("cpu"))
            cos, sin = rotation(torch.arange(room), pace)
            found = self._turns[kind] = (cos[:, 0].contiguous(), sin[:, 0].contiguous())
        return found


class Call:
    """One pass over a context. Made by `native`."""

    def __init__(self, network: Native, weights: Weights, context: Context) -> None:
        self.network, self.weights, self.context = network, weights, context

    def encode(self, embedded_SD: Tensor, lengths: Sequence[int]) -> Tensor:
        """As `DiffusionGemma.encode` has the trunk do it; keys and values join the context."""
        rows, dtype = self.context.rows, self.weights.dtype
        for row, length in zip(rows, lengths, strict=True):
            row.torn = length > 0
        x_SD = embedded_SD.float().contiguous().clone()
        kept: list[tuple[Tensor, Tensor]] = []
        for layer in self.network.config.layers:
            shape = (len(x_SD), layer.num_key_value_heads, layer.head_dim)
            kept.append((x_SD.new_empty(shape), x_SD.new_empty(shape)))
        self._run(x_SD, lengths, kept=kept)
        for number, both in enumerate(kept):
            k_parts, v_parts = (part.to(dtype).split(list(lengths)) for part in both)
            for row, k_TKH, v_TKH in zip(rows, k_parts, v_parts, strict=True):
                if len(k_TKH):
                    row.stores[number].append(k_TKH.transpose(0, 1), v_TKH.transpose(0, 1))
        for row, length in zip(rows, lengths, strict=True):
            row.length += length
            row.torn = False
        return x_SD.to(dtype)

    def denoise(self, embedded_SD: Tensor, soft_SD: Tensor | None) -> Tensor:
        """As `DiffusionGemma.denoise`; the context stays as it is."""
        x_SD = embedded_SD.float().contiguous()
        x_SD = x_SD.clone() if x_SD is embedded_SD else x_SD
        soft_SD = None if soft_SD is None else soft_SD.float().contiguous()
        rows = len(self.context.rows)
        self._run(x_SD, [len(x_SD) // rows] * rows, soft_SD=soft_SD)
        return x_SD.to(self.weights.dtype)

    def _run(
        self,
        x_SD: Tensor,
        lengths: Sequence[int],
        *,
        soft_SD: Tensor | None = None,
        kept: Kept | None = None,
    ) -> None:
        config, rows = self.network.config, self.context.rows
        longest = max(row.length + n for row, n in zip(rows, lengths, strict=True))
        layers, held = self.network.layers(self.weights, longest, kept)
        seen = [_seen(row, number, held) for row in rows for number in range(len(layers))]
        row_list = [(n, row.length) for row, n in zip(rows, lengths, strict=True)]
        arrays = [layers, (_Tokens * len(rows))(*row_list), (_Seen * len(seen))(*seen)]
        norm, *soft = self.weights.addresses[-1 - len(SOFT) :]
        told = _Pass(
            *(len(layers), len(rows), config.hidden_size, config.num_attention_heads),
            *(config.intermediate_size, config.num_experts, config.top_k_experts),
            *(config.moe_intermediate_size, kept is not None, HALF[self.weights.dtype]),
            min(_threads(), len(x_SD) // _SHARE),
            config.rms_norm_eps,
            *(*map(ctypes.addressof, arrays), norm),
            *(soft if kept is None else [0] * len(soft)),
            0 if soft_SD is None else soft_SD.data_ptr(),
            x_SD.data_ptr(),
        )
        library = build.library()
        assert library is not None
        if library.diffusiongemma_trunk(ctypes.addressof(told)):
            raise MemoryError


_made: "weakref.WeakKeyDictionary[nn.Module, Native]" = weakref.WeakKeyDictionary()


def native(model: "DiffusionGemma", context: Context, like_SD: Tensor) -> Call | None:
    """A pass in one call, if now and here it would do what the modules do; else None.

    Args:
        model: whose trunk.
        context: that the pass reads, and writes if it encodes.
        like_SD: rows of the width and format of what would go through.
    """
    if torch.is_grad_enabled() or like_SD.device.type != "cpu" or not _fits(model.config):
        return None
    if build.library() is None:
        return None
    if modules._global_forward_hooks or modules._global_forward_pre_hooks:
        return None
    found = _made.get(model)
    if found is None or not found.written.intact(model.config):
        found = _made[model] = Native(model)
    weights = found.written.weights() if found.written.plain() else None
    if weights is None or not _worth_it(weights):
        return None
    width = found.config.hidden_size
    if like_SD.dtype != weights.dtype or like_SD.shape[1] != width or not len(like_SD):
        return None
    same = all(_belongs(row, found.config, weights.dtype) for row in context.rows)
    return Call(found, weights, context) if same else None


def _worth_it(weights: Weights) -> bool:
    if weights.count < LIMIT:
        return True
    well = weights.dtype != torch.bfloat16 or build.multiplies_bfloat16()
    return well and torch.get_num_threads() <= _FEW and _threads() == torch.get_num_threads()


def _threads() -> int:
    """That may share a pass: one, where torch's threads hold on to their cores while they wait."""
    spin = os.environ.get("OMP_WAIT_POLICY", "").lower() == "active"
    return 1 if spin else torch.get_num_threads()


def _fits(config: ModelConfig) -> bool:
    heads = config.num_attention_heads
    widths = {config.hidden_size, config.intermediate_size, config.moe_intermediate_size}
    widths |= {layer.head_dim for layer in config.layers}
    widths |= {layer.head_dim * heads for layer in config.layers}
    groups = [heads // layer.num_key_value_heads for layer in config.layers]
    divide = all(width % _STEP == 0 for width in widths)
    return divide and max(widths) <= _WIDEST and max(groups) <= _GROUP


def _belongs(row: Row, config: ModelConfig, dtype: torch.dtype) -> bool:
    """Whether keys and values of a row are of this network and format, or not there yet."""
    if len(row.stores) != len(config.layers):
        return False
    for store, layer in zip(row.stores, config.layers, strict=True):
        wanted = (layer.num_key_value_heads, layer.head_dim)
        for side in (store.k_KCH, store.v_KCH):
            if side is not None and (side.dtype != dtype or side.shape[::2] != wanted):
                return False
        if store.window != (config.sliding_window if layer.sliding else None):
            return False
    return True


def _seen(row: Row, number: int, held: list[Tensor]) -> tuple[int, ...]:
    store = row.stores[number]
    first = masks.canvas_sees(row.length, store.window).start
    found = store.read(first)
    if found is None:
        return (0, 0, 0, 0, 0)
    k_KCH, v_KCH = found
    if k_KCH.stride() != v_KCH.stride() or k_KCH.stride(2) != 1:
        k_KCH, v_KCH = k_KCH.contiguous(), v_KCH.contiguous()
    held += (k_KCH, v_KCH)
    return (k_KCH.data_ptr(), v_KCH.data_ptr(), k_KCH.shape[1], *k_KCH.stride()[:2])
