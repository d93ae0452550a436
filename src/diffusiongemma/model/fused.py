"""The trunk over slots with fused kernels: about a dozen launches a layer instead of 150.

The twin of `DiffusionGemma.trunk` with a pass of `slots`: the same layers in the same order, cut
into kernels at other places. A layer's last norm is that of the next layer's beginning, so the
stream is read once between two layers. Products are torch's library's, but for the experts.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffusiongemma.kernels.norm_rope import frequencies, rotation
from diffusiongemma.kernels.ops import Ops
from diffusiongemma.kernels.quantised import E4M3, Rows
from diffusiongemma.model.attention import Attention, Turn
from diffusiongemma.model.block import Block
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.experts import Experts
from diffusiongemma.model.layers import Linear, RMSNorm, project
from diffusiongemma.model.piece import Piece, Pieces
from diffusiongemma.model.selfcond import SelfConditioning


def trunk(
    config: ModelConfig,
    blocks: Sequence[Block],
    norm: RMSNorm,
    x_SD: Float[Tensor, "S D"],
    ops: Ops,
    through: Pieces,
) -> Float[Tensor, "S D"]:
    """Embeddings through all layers, and the final norm.

    Args:
        config: of the network, in bfloat16 or quantised.
        blocks: its layers.
        norm: the last one.
        x_SD: packed tokens.
        ops: a table with Triton.
        through: whose buffers are written, and what sees what.
    """
    from diffusiongemma.kernels.triton import eight as rounded
    from diffusiongemma.kernels.triton import residual, router

    eight = [_eight(block) for block in blocks]
    eps, turns = config.rms_norm_eps, _turns(config, through)
    scalars = through.scalars(blocks)
    x_SD = x_SD.contiguous()
    first_SD: Tensor = ops.rms_norm(x_SD, blocks[0].before_attention.weight, eps)
    normed: Tensor | Rows = rounded.quantise(first_SD) if eight[0] else first_SD
    for number, block in enumerate(blocks):
        layer = config.layers[number]
        turn = turns[layer.sliding, layer.head_dim]
        attended_SD = _attention(block.attention, normed, ops, turn, through)
        x_SD, for_dense, for_experts, for_router_SD = residual.after_attention(
            attended_SD, x_SD, block.after_attention.weight, block.before_dense.weight,
            block.before_experts.weight, block.router.scale, eps, eight=eight[number],
        )  # fmt: skip
        route = router.route(
            for_router_SD, block.router.weight, block.router.expert_scale, block.router.top
        )
        dense_SD, routed_SD = _branches(block, ops, for_dense, for_experts, *route)
        last = number + 1 == len(blocks)
        after = norm if last else blocks[number + 1].before_attention
        x_SD, normed = residual.after_branches(
            dense_SD, routed_SD, x_SD, block.after_dense.weight, block.after_experts.weight,
            block.after_branches.weight, scalars[number], after.weight, eps,
            eight=not last and eight[number + 1],
        )  # fmt: skip
    assert isinstance(normed, Tensor)
    return normed


def blocks_of(layers: Iterable[torch.nn.Module]) -> list[Block]:
    """The layers, known as such."""
    return [block for block in layers if isinstance(block, Block)]


def _eight(block: Block) -> bool:
    """Whether all of a layer's products are in e4m3, and its rows can stay so between them."""
    from diffusiongemma.kernels.triton import experts_fp8 as quick

    attention, dense = block.attention, block.dense
    parts = [attention.q, attention.k, attention.v, attention.o, dense.gate, dense.up, dense.down]
    held = [one.weight for one in parts if one is not None] + [block.experts.down]
    return all(one.dtype == E4M3 for one in held) and quick.fits(dense.gate.weight, held[-1])


def _pair(layer: Any) -> tuple[Tensor, Tensor]:
    """A weight in e4m3, and its scales."""
    return layer.weight, layer.scale


def conditioned(
    part: SelfConditioning,
    embedded_SD: Float[Tensor, "S D"],
    soft_SD: Float[Tensor, "S D"],
    ops: Ops,
) -> Float[Tensor, "S D"]:
    """The twin of `SelfConditioning`."""
    from diffusiongemma.kernels.triton import residual

    signal_SD = part.feed_forward(part.norm(soft_SD, ops), ops)
    return residual.condition(embedded_SD, signal_SD, part.norm.eps)


def _turns(config: ModelConfig, through: Pieces) -> dict[tuple[bool, int], Turn]:
    """The rotation of each kind of layer."""
    device, turns = through.positions_S.device, {}
    for layer in config.layers:
        kind = (layer.sliding, layer.head_dim)
        if kind not in turns:
            theta = config.rope_theta_sliding if layer.sliding else config.rope_theta_full
            partial = 1.0 if layer.sliding else config.partial_rotary_factor
            pace = frequencies(layer.head_dim, theta, partial, device)
            turns[kind] = rotation(through.positions_S, pace)
    return turns


def _attention(
    attention: Attention, x: Tensor | Rows, ops: Ops, turn: Turn, through: Pieces
) -> Float[Tensor, "S D"]:
    from diffusiongemma.kernels.triton.norm_rope import norm_rope_write

    layer, width = attention.number, through.width
    k_BKCH, v_BKCH = through.buffers[layer]
    qkv_SF, parts = _projected(attention, x, ops), []
    heads = attention.q.weight.shape[0] // attention.head_dim
    for piece in through.pieces(layer):
        q_SNH = norm_rope_write(
            qkv_SF[piece.part], attention.q_norm.weight, attention.k_norm.weight,
            attention.q_norm.eps, (turn[0][piece.part], turn[1][piece.part]),
            k_BKCH, v_BKCH, piece.at_B, heads,
        )  # fmt: skip
        q_BTNH = q_SNH.unflatten(0, (-1, width))
        if isinstance(x, Rows):
            rows = _rows(q_BTNH, layer, piece, through)
            parts.append(ops.fp8_product(rows, *_pair(attention.o), qkv_SF.dtype))
        else:
            parts.append(through.over(layer, piece, q_BTNH).flatten(2).flatten(0, 1))
    whole = torch.cat(parts) if len(parts) > 1 else parts[0]
    return whole if isinstance(x, Rows) else attention.o(whole, ops)


def _rows(q_BTNH: Tensor, layer: int, piece: Piece, through: Pieces) -> Rows:
    """`Through.over`, in e4m3."""
    from diffusiongemma.kernels.triton import attention as quick

    given = (q_BTNH, *through.buffers[layer], piece.first_B, piece.end_B)
    if piece.causal:
        return quick.causal_rows(*given, through.windows[layer])
    return quick.canvas_rows(*given)


def _projected(attention: Attention, x: Tensor | Rows, ops: Ops) -> Float[Tensor, "S F"]:
    """Queries, keys and values side by side, from one product where weights are of one format."""
    layers = [one for one in (attention.q, attention.k, attention.v) if one is not None]
    if isinstance(x, Rows):
        weight_FD, scale_F = joined(layers), joined(layers, "scale")
        return ops.fp8_product(x, weight_FD, scale_F, attention.q_norm.weight.dtype)
    if all(isinstance(one, Linear) for one in layers):
        return ops.linear(x, joined(layers))
    return torch.cat(list(project(x, ops, layers)), dim=-1)


def joined(layers: Sequence[torch.nn.Module], name: str = "weight") -> Tensor:
    """One tensor of several layers as one, which theirs are made views of: (F, D), or (F,).

    Their memory is moved once, the first time, one group of layers after the other; the layers can
    be used and saved as before.

    Args:
        layers: side by side.
        name: of the tensor in each of them.
    """
    parts = [getattr(layer, name).detach() for layer in layers]
    first, size = parts[0], sum(part.nbytes for part in parts)
    place = first.data_ptr()
    for part in parts:
        if part.data_ptr() != place or not part.is_contiguous():
            return _moved(layers, name, parts)
        place += part.nbytes
    # Neighbours in one memory, and not by chance: it reaches to the last one's end.
    reach = first.untyped_storage().nbytes() - first.storage_offset() * first.element_size()
    if reach < size:
        return _moved(layers, name, parts)
    rows = sum(len(part) for part in parts)
    return first.as_strided((rows, *first.shape[1:]), first.stride())


def _moved(layers: Sequence[torch.nn.Module], name: str, parts: Sequence[Tensor]) -> Tensor:
    kind = parts[0].dtype
    bits = torch.uint8 if kind.itemsize == 1 else kind  # torch joins no floats of eight bits
    whole = torch.cat([part.view(bits) for part in parts]).view(kind)
    for layer, part in zip(layers, whole.split([len(p) for p in parts]), strict=True):
        if name in layer._parameters:
            part = torch.nn.Parameter(part, requires_grad=False)
        setattr(layer, name, part)
    return whole


def _branches(
    block: Block,
    ops: Ops,
    for_dense: Tensor | Rows,
    for_experts: Tensor | Rows,
    expert_SG: Tensor,
    share_SG: Tensor,
) -> tuple[Tensor, Tensor]:
    """Both feed-forward branches, in the same launches where weights are of one format."""
    from diffusiongemma.kernels.triton import experts as quick
    from diffusiongemma.kernels.triton import experts_fp8 as eight

    dense, experts = block.dense, block.experts
    if isinstance(for_dense, Rows) and isinstance(for_experts, Rows):
        held: Any = experts
        return eight.branches(
            for_dense, for_experts, expert_SG, share_SG,
            _pair(dense.gate), _pair(dense.up), _pair(dense.down),
            (held.gate_up, held.gate_up_scale), (held.down, held.down_scale),
            block.before_dense.weight.dtype,
        )  # fmt: skip
    assert isinstance(for_dense, Tensor) and isinstance(for_experts, Tensor)
    plain = isinstance(experts, Experts) and isinstance(dense.gate, Linear)
    if plain and quick.fits(dense.gate.weight, experts.down):
        return quick.branches(
            for_dense, for_experts, expert_SG, share_SG,
            dense.gate.weight, dense.up.weight, dense.down.weight, experts.gate_up, experts.down,
        )  # fmt: skip
    return dense(for_dense, ops), experts(for_experts, ops, expert_SG, share_SG)
