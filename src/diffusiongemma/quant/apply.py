"""Which layers may have weights in e4m3, and putting such layers in the place of plain ones.

These are the products that most weights are in: queries, keys, values and the way back of every
layer's attention, the dense branch, and the experts. Never others: routers decide, and a token sent
elsewhere is no rounding error; the embedding table is the head too, where eight bits cost steps;
norms and scalars are nothing to save; self-conditioning and the vision tower are small.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace

import torch
from torch import nn

from diffusiongemma.model.block import Block
from diffusiongemma.model.experts import Experts
from diffusiongemma.model.layers import Linear
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.quant.linear import Fp8Experts, Fp8Linear

Plain = Linear | Experts


def candidates(model: DiffusionGemma) -> Iterator[tuple[str, Plain]]:
    """Every plain layer that may be quantised, with its path: `blocks.0.attention.q`."""
    for number, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        for room in ("attention", "dense"):
            for name, module in getattr(block, room).named_children():
                if isinstance(module, Linear):
                    yield f"blocks.{number}.{room}.{name}", module
        if isinstance(block.experts, Experts):
            yield f"blocks.{number}.experts", block.experts


def weights(model: DiffusionGemma) -> Iterator[str]:
    """The name of every weight that may be quantised: `blocks.0.attention.q.weight`."""
    for path, module in candidates(model):
        parts = ("weight",) if isinstance(module, Linear) else ("gate_up", "down")
        yield from (f"{path}.{part}" for part in parts)


def prepare(model: DiffusionGemma, paths: Collection[str]) -> None:
    """Put quantised layers without values in the place of plain ones.

    Args:
        model: the network, changed in place.
        paths: of the layers, as `candidates` names them.
    """
    for path in [path for path, _ in candidates(model) if path in paths]:
        _replace(model, path, _empty(model.get_submodule(path)))


@torch.no_grad()
def quantise(model: DiffusionGemma) -> DiffusionGemma:
    """Quantise every layer that may be, in place and in memory.

    Returns:
        the same network.
    """
    # By name: a list of the layers would keep the weights of both formats until the end.
    for path in [path for path, _ in candidates(model)]:
        _replace(model, path, _quantised(model.get_submodule(path)))
    model.config = replace(model.config, fp8=True)
    return model


def _empty(plain: nn.Module) -> nn.Module:
    if isinstance(plain, Linear):
        return Fp8Linear.like(plain)
    assert isinstance(plain, Experts)
    return Fp8Experts.like(plain)


def _quantised(plain: nn.Module) -> nn.Module:
    if isinstance(plain, Linear):
        return Fp8Linear.of(plain)
    assert isinstance(plain, Experts)
    return Fp8Experts.of(plain)


def _replace(model: DiffusionGemma, path: str, module: nn.Module) -> None:
    model.set_submodule(path, module.eval())
