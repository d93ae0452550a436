"""Whether a network's modules are still those that `kernels/native/trunk.c` was written after.

People replace layers, hang hooks on them, change an option of one, load other weights. This is
asked before every call, so it goes through lists of the modules' own dictionaries in a few calls:
some 60 microseconds for six layers.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffusiongemma.model.attention import Attention
from diffusiongemma.model.block import Block
from diffusiongemma.model.config import LayerConfig, ModelConfig
from diffusiongemma.model.experts import Experts, Router
from diffusiongemma.model.layers import Embedding, FeedForward, Linear, RMSNorm
from diffusiongemma.model.selfcond import SelfConditioning

if TYPE_CHECKING:
    from diffusiongemma.model.model import DiffusionGemma

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
_KINDS = (Block, Attention, Router, Experts, Embedding, FeedForward, Linear, RMSNorm)
_KINDS += (SelfConditioning, nn.ModuleList)
_FORWARD = [kind.forward for kind in _KINDS]
_TENSORS = {Tensor, nn.Parameter}


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """A network's weights as they are now. The same object as before if nothing changed.

    Attributes:
        tensors: all of them, which keeps them alive.
        addresses: of `LAYER` for each layer, the last norm, then `SOFT`; 0 where there is none.
        dtype: of all.
        count: numbers in them.
    """

    tensors: Sequence[Tensor]
    addresses: Sequence[int]
    dtype: torch.dtype
    count: int


class Written:
    """One network, as it was found."""

    def __init__(self, model: "DiffusionGemma") -> None:
        self.config = model.config
        inside = (model.embedding, model.blocks, model.norm, model.self_conditioning)
        found = [module for part in inside for module in part.modules()]
        self._modules, self._kinds = found, list(map(type, found))
        parents = [model, *(module for module in found if module._modules)]
        self._children = [module._modules.values() for module in parents]
        self._before = [tuple(children) for children in self._children]
        self._hooks = [h for m in found for h in (m._forward_hooks, m._forward_pre_hooks)]
        self._own: list[dict[str, Any]] = [module.__dict__ for module in found]
        self._eps = [own for own in self._own if "eps" in own]
        self._tops = [own for own in self._own if "top" in own]
        self.known = set(self._kinds) <= set(_KINDS) and len(model.blocks) == len(
            self.config.layers
        )
        self._weights: Weights | None = None
        self._facts: list[Any] = []
        if self.known:
            self._find(model)

    def _find(self, model: "DiffusionGemma") -> None:
        places, shapes = [], []
        for block, layer in zip(model.blocks, self.config.layers, strict=True):
            places += [_place(block, name) for name in LAYER]
            shapes += _shapes(self.config, layer)
        places += [_place(model.norm, "weight")]
        places += [_place(model.self_conditioning, name) for name in SOFT]
        width, hidden = self.config.hidden_size, self.config.intermediate_size
        shapes += [(width,), (width,), (hidden, width), (hidden, width), (width, hidden)]
        self._gaps = [number for number, place in enumerate(places) if place is None]
        there = [(p, s) for p, s in zip(places, shapes, strict=True) if p is not None]
        self._homes, self._names = [p[0] for p, _ in there], [p[1] for p, _ in there]
        self._shapes = [shape for _, shape in there]

    def intact(self, config: ModelConfig) -> bool:
        """Whether these are the modules that were found, made for the same architecture."""
        same = list(map(tuple, self._children)) == self._before and config is self.config
        return same and list(map(type, self._modules)) == self._kinds

    def plain(self) -> bool:
        """Whether the modules do what they are written to do, with the options of the config."""
        return (
            self.known
            and not any(self._hooks)
            and not any(map(dict.__contains__, self._own, itertools.repeat("forward")))
            and {*map(itemgetter("eps"), self._eps)} == {self.config.rms_norm_eps}
            and {*map(itemgetter("top"), self._tops)} == {self.config.top_k_experts}
            and [kind.forward for kind in _KINDS] == _FORWARD
        )

    def weights(self) -> Weights | None:
        """The weights, if they have the shapes of the config and one format that is known here."""
        tensors: list[Any] = list(map(dict.get, self._homes, self._names))
        if not {*map(type, tensors)} <= _TENSORS:
            return None
        if not all(map(Tensor.is_contiguous, tensors)):
            return None
        dtypes = {tensor.dtype for tensor in tensors}
        facts = [dtypes, *map(Tensor.data_ptr, tensors), *map(Tensor.numel, tensors)]
        if facts == self._facts:
            return self._weights
        shapes = [tuple(tensor.shape) for tensor in tensors]
        places = {tensor.device.type for tensor in tensors}
        if shapes != self._shapes or places != {"cpu"} or len(dtypes) > 1:
            return None
        (dtype,) = dtypes
        if dtype not in HALF:
            return None
        addresses = [tensor.data_ptr() for tensor in tensors]
        for gap in self._gaps:
            addresses.insert(gap, 0)
        found = Weights(tensors, addresses, dtype, sum(map(Tensor.numel, tensors)))
        # In this order: another thread takes the short way as soon as it finds the facts.
        self._weights, self._facts = found, facts
        return found


def _shapes(config: ModelConfig, layer: LayerConfig) -> list[tuple[int, ...]]:
    """Of a layer's weights, in the order of `LAYER`."""
    width, hidden, experts = config.hidden_size, config.intermediate_size, config.num_experts
    inner, head = config.moe_intermediate_size, layer.head_dim
    queries, keys = config.num_attention_heads * head, layer.num_key_value_heads * head
    one = (width,)
    attention = [one, (queries, width), (keys, width), (keys, width), (width, queries)]
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
