"""A small network's trunk in one call (`kernels/native/trunk.c`), where that is possible and fast.

Weights stay where torch has them: nothing is copied, so nothing can be stale. Who stands where is
asked before every call, in some 50 microseconds, because people replace layers, hang hooks on them
and load other weights.
"""

import ctypes
import itertools
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

from diffusiongemma.kernels.native import build
from diffusiongemma.kernels.norm_rope import frequencies, rotation
from diffusiongemma.model import masks
from diffusiongemma.model.attention import Attention
from diffusiongemma.model.block import Block
from diffusiongemma.model.config import LayerConfig, ModelConfig
from diffusiongemma.model.context import Context
from diffusiongemma.model.experts import Experts, Router
from diffusiongemma.model.layers import Embedding, FeedForward, Linear, RMSNorm
from diffusiongemma.model.selfcond import SelfConditioning

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
_KINDS = {Block, Attention, Router, Experts, Embedding, FeedForward, Linear, RMSNorm}
_KINDS |= {SelfConditioning, nn.ModuleList}
_HALF = {torch.float32: 0, torch.bfloat16: 1}
_WEIGHTS = (
    "before_attention.weight", "attention.q.weight", "attention.k.weight", "attention.v.weight",
    "attention.o.weight", "attention.q_norm.weight", "attention.k_norm.weight",
    "after_attention.weight", "before_dense.weight", "dense.gate.weight", "dense.up.weight",
    "dense.down.weight", "after_dense.weight", "router.weight", "router.scale",
    "router.expert_scale", "before_experts.weight", "experts.gate_up", "experts.down",
    "after_experts.weight", "after_branches.weight",
)  # fmt: skip
_SOFT = ("norm.weight", "feed_forward.gate.weight", "feed_forward.up.weight")
_SOFT += ("feed_forward.down.weight",)

_P, _I = ctypes.c_void_p, ctypes.c_int64


def _struct(name: str, fields: Sequence[tuple[str, Any]]) -> Any:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields)})


# As in trunk.c, field by field.
_Layer = _struct(
    "_Layer",
    [(f"w{n}", _P) for n in range(len(_WEIGHTS))]
    + [("scalar", _P), ("cos", _P), ("sin", _P), ("k_out", _P), ("v_out", _P)]
    + [("key_heads", _I), ("head", _I), ("window", _I)],
)
_Seen = _struct("_Seen", [("k", _P), ("v", _P), ("count", _I), ("per_head", _I), ("per_token", _I)])
_Row = _struct("_Row", [("tokens", _I), ("position", _I)])
_NUMBERS = ("layers", "rows", "width", "heads", "hidden", "experts", "top", "expert_hidden")
_Pass = _struct(
    "_Pass",
    [(name, _I) for name in (*_NUMBERS, "causal", "half", "threads")]
    + [("eps", ctypes.c_float)]
    + [(name, _P) for name in ("layer", "row", "seen", "norm")]
    + [(f"soft{n}", _P) for n in range(len(_SOFT))]
    + [("soft", _P), ("x", _P)],
)


class Native:
    """One network's trunk. Made by `native`."""

    def __init__(self, model: "DiffusionGemma") -> None:
        self.config: ModelConfig = model.config
        inside = [model.embedding, model.blocks, model.norm, model.self_conditioning]
        found = [module for part in inside for module in part.modules()]
        self._modules, self._kinds = found, list(map(type, found))
        self.known = set(self._kinds) <= _KINDS
        self._turns: dict[tuple[bool, int], tuple[Tensor, Tensor]] = {}
        self._told: tuple[int, Any, list[Tensor]] | None = None
        self.dtype, self.large = model.embedding.weight.dtype, False
        # Lists of the modules' own dictionaries, which are gone through in one call each.
        parents = [module for module in found if module._modules]
        self._children = [module._modules.values() for module in parents]
        self._before = [tuple(children) for children in self._children]
        self._hooks = [h for m in found for h in (m._forward_hooks, m._forward_pre_hooks)]
        self._own = [module.__dict__ for module in found]
        places: list[Any] = []
        if self.known:
            names = (*_WEIGHTS, "encode_scalar", "denoise_scalar")
            places += [_place(block, name) for block in model.blocks for name in names]
            places += [_place(model.norm, "weight")]
            places += [_place(model.self_conditioning, name) for name in _SOFT]
        self._gaps = [number for number, place in enumerate(places) if place is None]
        held = [place for place in places if place is not None]
        self._homes, self._names = [home for home, _ in held], [name for _, name in held]
        self._addresses: list[int] = []
        self._pointers: list[int] = []

    def intact(self) -> bool:
        """Whether the modules are those that were found."""
        same = list(map(tuple, self._children)) == self._before
        return same and list(map(type, self._modules)) == self._kinds

    def watched(self) -> bool:
        """Whether somebody's hook or method would be left out."""
        return any(self._hooks) or any(
            map(dict.__contains__, self._own, itertools.repeat("forward"))
        )

    def settle(self) -> bool:
        """Note where the weights are; whether all are of one format that is known here."""
        tensors: list[Any] = list(map(dict.get, self._homes, self._names))
        if not {*map(type, tensors)} <= _TENSORS:
            return False
        addresses = list(map(Tensor.data_ptr, tensors))
        if addresses == self._addresses:
            return True
        dtype = tensors[0].dtype
        same = all(t.dtype == dtype and t.is_contiguous() for t in tensors)
        same = same and all(t.device.type == "cpu" for t in tensors)
        if not same or dtype not in _HALF:
            return False
        large = sum(t.numel() for t in tensors) >= LIMIT
        if large and dtype == torch.bfloat16 and not build.multiplies_bfloat16():
            return False
        pointers = addresses.copy()
        for gap in self._gaps:
            pointers.insert(gap, 0)
        # In this order: another thread takes the short way as soon as it finds the addresses.
        self._pointers, self._told, self.dtype, self.large = pointers, None, dtype, large
        self._addresses = addresses
        return True

    def encode(self, embedded_SD: Tensor, context: Context, lengths: Sequence[int]) -> Tensor:
        """As `DiffusionGemma.encode` has the trunk do it; keys and values join the context."""
        rows = context.rows
        for row, length in zip(rows, lengths, strict=True):
            row.torn = length > 0
        x_SD = embedded_SD.float().contiguous().clone()
        kept = [
            tuple(
                x_SD.new_empty(len(x_SD), layer.num_key_value_heads, layer.head_dim) for _ in "kv"
            )
            for layer in self.config.layers
        ]
        self._run(x_SD, context, lengths, kept=kept)
        for number, (k_SKH, v_SKH) in enumerate(kept):
            parts = zip(
                rows,
                k_SKH.to(self.dtype).split(list(lengths)),
                v_SKH.to(self.dtype).split(list(lengths)),
                strict=True,
            )
            for row, k_TKH, v_TKH in parts:
                if len(k_TKH):
                    row.stores[number].append(k_TKH.transpose(0, 1), v_TKH.transpose(0, 1))
        for row, length in zip(rows, lengths, strict=True):
            row.length += length
            row.torn = False
        return x_SD.to(self.dtype)

    def denoise(self, embedded_SD: Tensor, soft_SD: Tensor | None, context: Context) -> Tensor:
        """As `DiffusionGemma.denoise`; the context stays as it is."""
        x_SD = embedded_SD.float().contiguous()
        x_SD = x_SD.clone() if x_SD is embedded_SD else x_SD
        soft_SD = None if soft_SD is None else soft_SD.float().contiguous()
        width = len(x_SD) // len(context.rows)
        self._run(x_SD, context, [width] * len(context.rows), soft_SD=soft_SD)
        return x_SD.to(self.dtype)

    def _run(
        self,
        x_SD: Tensor,
        context: Context,
        lengths: Sequence[int],
        *,
        soft_SD: Tensor | None = None,
        kept: Sequence[tuple[Tensor, ...]] | None = None,
    ) -> None:
        config, rows = self.config, context.rows
        longest = max(row.length + n for row, n in zip(rows, lengths, strict=True))
        layers, held = self._layers(longest, kept)  # held: what must live until the call is over
        seen = [_seen(row, number, held) for row in rows for number in range(len(layers))]
        row_list = [(n, row.length) for row, n in zip(rows, lengths, strict=True)]
        arrays = [layers, (_Row * len(rows))(*row_list), (_Seen * len(seen))(*seen)]
        norm, *soft = self._pointers[-1 - len(_SOFT) :]
        told = _Pass(
            *(len(layers), len(rows), config.hidden_size, config.num_attention_heads),
            *(config.intermediate_size, config.num_experts, config.top_k_experts),
            *(config.moe_intermediate_size, kept is not None, _HALF[self.dtype]),
            min(torch.get_num_threads(), len(x_SD) // _SHARE),
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

    def _layers(
        self, longest: int, kept: Sequence[tuple[Tensor, ...]] | None
    ) -> tuple[Any, list[Tensor]]:
        """Where the layers' weights are, and where keys and values go; and what it points to beside
        weights. The denoiser's is kept.
        """
        told = self._told
        if kept is None and told is not None and told[0] >= longest:
            return told[1], [*told[2]]
        per, layers, held = len(_WEIGHTS) + 2, [], []
        for number, layer in enumerate(self.config.layers):
            given = self._pointers[number * per : (number + 1) * per]
            *weights, encode_scalar, denoise_scalar = given
            cos, sin = self._turn(layer, longest)
            held += (cos, sin)
            out = (0, 0) if kept is None else tuple(part.data_ptr() for part in kept[number])
            layers.append(
                (
                    *weights,
                    denoise_scalar if kept is None else encode_scalar,
                    *(cos.data_ptr(), sin.data_ptr(), *out),
                    *(layer.num_key_value_heads, layer.head_dim),
                    self.config.sliding_window if layer.sliding else 0,
                )
            )
        made = (_Layer * len(layers))(*layers)
        if kept is None:
            self._told = (longest, made, held)
        return made, [*held]

    def _turn(self, layer: LayerConfig, longest: int) -> tuple[Tensor, Tensor]:
        """Rotations of all positions so far, (positions, H), in room that doubles."""
        kind = (layer.sliding, layer.head_dim)
        if kind not in self._turns or len(self._turns[kind][0]) < longest:
            config, room = self.config, 1 << max(8, (longest - 1).bit_length())
            theta = config.rope_theta_sliding if layer.sliding else config.rope_theta_full
            partial = 1.0 if layer.sliding else config.partial_rotary_factor
            pace = frequencies(layer.head_dim, theta, partial, torch.device("cpu"))
            cos, sin = rotation(torch.arange(room), pace)
            self._turns[kind] = (cos[:, 0].contiguous(), sin[:, 0].contiguous())
        return self._turns[kind]


_TENSORS = {Tensor, nn.Parameter}
_made: "weakref.WeakKeyDictionary[nn.Module, Native]" = weakref.WeakKeyDictionary()


def native(model: "DiffusionGemma") -> Native | None:
    """The network's trunk in one call, if now and here it would do what the modules do."""
    if torch.is_grad_enabled() or not _fits(model.config) or build.library() is None:
        return None
    if modules._global_forward_hooks or modules._global_forward_pre_hooks:
        return None
    found = _made.get(model)
    if found is None or not found.intact():
        found = _made[model] = Native(model)
    if not found.known or found.watched() or not found.settle():
        return None
    return None if found.large and torch.get_num_threads() > _FEW else found


def _fits(config: ModelConfig) -> bool:
    heads = config.num_attention_heads
    widths = {config.hidden_size, config.intermediate_size, config.moe_intermediate_size}
    widths |= {layer.head_dim for layer in config.layers}
    widths |= {layer.head_dim * heads for layer in config.layers}
    groups = [heads // layer.num_key_value_heads for layer in config.layers]
    divide = all(width % _STEP == 0 for width in widths)
    return divide and max(widths) <= _WIDEST and max(groups) <= _GROUP


def _place(module: nn.Module, name: str) -> tuple[dict[str, Any], str] | None:
    """The dictionary that holds a weight; None where there is no such module."""
    *path, last = name.split(".")
    for part in path:
        inner = module._modules.get(part)
        if inner is None:
            return None
        module = inner
    return (module._parameters if last in module._parameters else module._buffers), last


def _seen(row: Any, number: int, held: list[Tensor]) -> tuple[int, ...]:
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
