"""A small network's trunk in one call (`kernels/native/trunk.c`), where that is possible and fast.

Weights, keys and values stay where torch has them: nothing is copied, so what is changed in place,
put in a weight's place, or loaded is seen by the next call. What else is changed of the modules,
hooks, methods or other modules, is not: this is chosen for a network as it is written.
"""

import ctypes
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from diffusiongemma.kernels.native import build
from diffusiongemma.kernels.norm_rope import frequencies, rotation
from diffusiongemma.model import masks
from diffusiongemma.model.config import LayerConfig, ModelConfig
from diffusiongemma.model.context import Context, Row

HALF = {torch.float32: 0, torch.bfloat16: 1}
"""Formats that it knows."""
LAYER = (
    "before_attention.weight", "attention.q.weight", "attention.k.weight", "attention.v.weight",
    "attention.o.weight", "attention.q_norm.weight", "attention.k_norm.weight",
    "after_attention.weight", "before_dense.weight", "dense.gate.weight", "dense.up.weight",
    "dense.down.weight", "after_dense.weight", "router.weight", "router.scale",
    "router.expert_scale", "before_experts.weight", "experts.gate_up", "experts.down",
    "after_experts.weight", "after_branches.weight", "encode_scalar", "denoise_scalar",
)  # fmt: skip
"""A layer's weights, in the order of trunk.c; then its two scalars."""
SOFT = ("norm.weight", "feed_forward.gate.weight", "feed_forward.up.weight")
SOFT += ("feed_forward.down.weight",)
"""Those of self-conditioning."""
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


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """A network's weights as they are now. The same object as before if nothing changed.

    Attributes:
        tensors: all of them, which keeps them alive.
        addresses: of `LAYER` for each layer, the last norm, then `SOFT`; 0 where there is none.
        dtype: of all.
        device: of all.
    """

    tensors: Sequence[Tensor]
    addresses: Sequence[int]
    dtype: torch.dtype
    device: torch.device


class Native:
    """One network: where its weights are, and what is remembered from call to call."""

    def __init__(
        self, config: ModelConfig, blocks: Sequence[nn.Module], norm: nn.Module, soft: nn.Module
    ) -> None:
        """Find the places of all weights.

        Args:
            config: one that `why_not` has nothing against.
            blocks: the layers.
            norm: the last one.
            soft: self-conditioning.
        """
        self.config = config
        places = [_place(block, name) for block in blocks for name in LAYER]
        places += [_place(norm, "weight"), *(_place(soft, name) for name in SOFT)]
        there = [place for place in places if place is not None]
        self._gaps = [number for number, place in enumerate(places) if place is None]
        self._homes, self._names = [one[0] for one in there], [one[1] for one in there]
        self._shapes = _shapes(config)
        self._found: tuple[list[Any], list[Any], Weights | None] = ([], [], None)
        self._turns: dict[tuple[bool, int], tuple[Tensor, Tensor]] = {}
        self._told: tuple[Weights, int, Any, list[Tensor]] | None = None

    def weights(self) -> Weights | None:
        """The weights, if they have the shapes of the config and one format that is known here."""
        tensors: list[Any] = list(map(dict.get, self._homes, self._names))
        before, facts, weights = self._found
        try:
            now = [*map(Tensor.data_ptr, tensors), *map(Tensor.is_contiguous, tensors)]
        except TypeError:  # one is computed where it is asked for, and lies nowhere
            return None
        if len(before) == len(tensors) and all(map(is_, before, tensors)) and facts == now:
            return weights
        weights = self._checked(tensors)
        self._found = (tensors, now, weights)
        return weights

    def _checked(self, tensors: Sequence[Tensor]) -> Weights | None:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        kinds = {(tensor.dtype, tensor.device) for tensor in tensors}
        whole = all(map(Tensor.is_contiguous, tensors))
        if shapes != self._shapes or len(kinds) > 1 or not whole:
            return None
        ((dtype, device),) = kinds
        if dtype not in HALF:
            return None
        addresses = [tensor.data_ptr() for tensor in tensors]
        for gap in self._gaps:
            addresses.insert(gap, 0)
        return Weights(tensors, addresses, dtype, device)

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
    """One pass over a context. Made by `call`."""

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
            min(threads(), len(x_SD) // _SHARE),
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


def call(
    network: Native,
    context: Context,
    x_SD: Tensor,
    *,
    soft_SD: Tensor | None = None,
    images: bool = False,
) -> Call | None:
    """A pass in one call, if it would do here what the modules do; else None.

    Args:
        network: whose trunk.
        context: that the pass reads, and writes if it encodes.
        x_SD: what would go through.
        soft_SD: expected embeddings, if it refines.
        images: whether there may be pictures, of which only the modules know.
    """
    weights = network.weights()
    if weights is None or images or not len(x_SD):
        return None
    if x_SD.dtype != weights.dtype or x_SD.shape[1] != network.config.hidden_size:
        return None
    if any(one.device != weights.device for one in (x_SD, soft_SD) if one is not None):
        return None
    same = all(_belongs(row, network.config, weights.dtype) for row in context.rows)
    return Call(network, weights, context) if same else None


def why_not(config: ModelConfig, dtype: torch.dtype, *, make: bool = True) -> str | None:
    """Why a network on a CPU does not go through this; None if it does.

    Args:
        config: of the network.
        dtype: of its weights.
        make: whether what the processor can do may be asked of compiled code.
    """
    if config.fp8 or dtype not in HALF:
        return f"it knows float32 and bfloat16, not {'FP8' if config.fp8 else dtype}"
    if not _fits(config):
        return f"widths must be multiples of {_STEP}, up to {_WIDEST}"
    if sum(map(math.prod, _shapes(config))) < LIMIT:
        return None
    if dtype == torch.bfloat16 and make and not build.multiplies_bfloat16():
        return "it is large, and this processor does not multiply bfloat16"
    if torch.get_num_threads() > _FEW or threads() != torch.get_num_threads():
        return f"it is large, and that is faster with up to {_FEW} threads alone"
    return None


def threads() -> int:
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


def _shapes(config: ModelConfig) -> list[tuple[int, ...]]:
    """Of all weights that there are, in the order of their places."""
    width, hidden = config.hidden_size, config.intermediate_size
    layers = [shape for layer in config.layers for shape in _layer_shapes(config, layer)]
    return [*layers, (width,), (width,), (hidden, width), (hidden, width), (width, hidden)]


def _layer_shapes(config: ModelConfig, layer: LayerConfig) -> list[tuple[int, ...]]:
    """Of a layer's weights, in the order of `LAYER`; full layers have none for values."""
    width, hidden, experts = config.hidden_size, config.intermediate_size, config.num_experts
    inner, head = config.moe_intermediate_size, layer.head_dim
    queries, keys = config.num_attention_heads * head, layer.num_key_value_heads * head
    one = (width,)
    values = [(keys, width)] if layer.sliding else []  # or the keys are the values
    attention = [one, (queries, width), (keys, width), *values, (width, queries)]
    attention += [(head,), (head,), one]
    dense = [one, (hidden, width), (hidden, width), (width, hidden), one]
    routed = [(experts, width), one, (experts,), one, (experts, 2 * inner, width)]
    return [*attention, *dense, *routed, (experts, width, inner), one, one, (1,), (1,)]


def _place(module: nn.Module, name: str) -> tuple[dict[str, Any], str] | None:
    """The dictionary that holds a weight; None where there is no such module."""
    *path, last = name.split(".")
    for part in path:
        inner = module._modules.get(part)
        if inner is None:
            return None
        module = inner
    return (module._parameters if last in module._parameters else module._buffers), last
