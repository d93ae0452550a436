"""The trunk over slots with fused kernels: about a dozen launches a layer instead of 150.

The twin of `DiffusionGemma.trunk` with a pass of `slots`: the same layers in the same order, cut
into kernels at other places. A layer's last norm is that of the next layer's beginning, so the
stream is read once between two layers. Products are torch's library's, but for the experts.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from diffusiongemma.kernels.norm_rope import frequencies, rms_norm, rotation
from diffusiongemma.model.attention import Attention, Turn
from diffusiongemma.model.block import Block
from diffusiongemma.model.experts import Experts
from diffusiongemma.model.layers import Linear, project
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.model.slots import Advance, Refine

Through = Refine | Advance


def trunk(
    model: DiffusionGemma, x_SD: Float[Tensor, "S D"], through: Through
) -> Float[Tensor, "S D"]:
    """Embeddings through all layers, and the final norm.

    Args:
        model: the network, in bfloat16 or quantised.
        x_SD: packed tokens.
        through: whose buffers are written, and what sees what.
    """
    from diffusiongemma.kernels.triton import residual, router

    blocks = [block for block in model.blocks if isinstance(block, Block)]
    eps, turns = model.config.rms_norm_eps, _turns(model, through)
    scalars = through.scalars(blocks)
    x_SD = x_SD.contiguous()
    normed_SD = rms_norm(x_SD, blocks[0].before_attention.weight, eps)
    for number, block in enumerate(blocks):
        layer = model.config.layers[number]
        turn = turns[layer.sliding, layer.head_dim]
        attended_SD = _attention(block.attention, normed_SD, turn, through)
        x_SD, for_dense_SD, for_experts_SD, for_router_SD = residual.after_attention(
            attended_SD, x_SD, block.after_attention.weight,
            block.before_dense.weight, block.before_experts.weight, block.router.scale, eps,
        )  # fmt: skip
        route = router.route(
            for_router_SD, block.router.weight, block.router.expert_scale, block.router.top
        )
        dense_SD, routed_SD = _branches(block, for_dense_SD, for_experts_SD, *route)
        after = blocks[number + 1].before_attention if number + 1 < len(blocks) else model.norm
        x_SD, normed_SD = residual.after_branches(
            dense_SD, routed_SD, x_SD, block.after_dense.weight, block.after_experts.weight,
            block.after_branches.weight, scalars[number], after.weight, eps,
        )  # fmt: skip
    return normed_SD


def conditioned(
    model: DiffusionGemma, embedded_SD: Float[Tensor, "S D"], soft_SD: Float[Tensor, "S D"]
) -> Float[Tensor, "S D"]:
    """The twin of `SelfConditioning`."""
    from diffusiongemma.kernels.triton import residual

    part = model.self_conditioning
    signal_SD = part.feed_forward(part.norm(soft_SD))
    return residual.condition(embedded_SD, signal_SD, part.norm.eps)


def _turns(model: DiffusionGemma, through: Through) -> dict[tuple[bool, int], Turn]:
    """The rotation of each kind of layer."""
    config, turns = model.config, {}
    for layer in config.layers:
        kind = (layer.sliding, layer.head_dim)
        if kind not in turns:
            theta = config.rope_theta_sliding if layer.sliding else config.rope_theta_full
            partial = 1.0 if layer.sliding else config.partial_rotary_factor
            pace = frequencies(layer.head_dim, theta, partial, model.device)
            turns[kind] = rotation(through.positions_S, pace)
    return turns


def _attention(attention: Attention, x_SD: Tensor, turn: Turn, through: Through) -> Tensor:
    from diffusiongemma.kernels.triton.norm_rope import norm_rope_write

    layer, width = attention.number, through.slots.width
    k_BKCH, v_BKCH = through.slots.buffers[layer]
    qkv_SF, parts = _projected(attention, x_SD), []
    heads = attention.q.weight.shape[0] // attention.head_dim
    for piece in through.pieces(layer):
        q_SNH = norm_rope_write(
            qkv_SF[piece.part], attention.q_norm.weight, attention.k_norm.weight,
            attention.q_norm.eps, (turn[0][piece.part], turn[1][piece.part]),
            k_BKCH, v_BKCH, piece.at_B, heads,
        )  # fmt: skip
        out_BTNH = through.over(layer, piece, q_SNH.unflatten(0, (-1, width)))
        parts.append(out_BTNH.reshape(q_SNH.shape[0], -1))
    return attention.o(torch.cat(parts) if len(parts) > 1 else parts[0])


def _projected(attention: Attention, x_SD: Tensor) -> Tensor:
    """Queries, keys and values side by side, from one product where weights are plain."""
    layers = [one for one in (attention.q, attention.k, attention.v) if one is not None]
    if all(isinstance(one, Linear) for one in layers):
        return torch.nn.functional.linear(x_SD, joined(layers))
    return torch.cat(list(project(x_SD, layers)), dim=-1)


def joined(layers: list[Linear]) -> Float[Tensor, "F D"]:
    """The weights of several layers as one, which they are made views of.

    Their memory is moved once, the first time, one group of layers after the other; the layers can
    be used and saved as before.
    """
    weights = [layer.weight for layer in layers]
    first, width = weights[0], weights[0].shape[1]
    rows = sum(len(weight) for weight in weights)
    place = first.data_ptr()
    for weight in weights:
        if weight.data_ptr() != place or not weight.is_contiguous():
            whole = torch.cat([one.detach() for one in weights])
            for layer, part in zip(layers, whole.split([len(w) for w in weights]), strict=True):
                layer.weight = torch.nn.Parameter(part, requires_grad=False)
            return whole
        place += weight.nbytes
    # Neighbours in one memory, and not by chance: `whole` above reaches to the last one's end.
    reach = first.untyped_storage().nbytes() - first.storage_offset() * first.element_size()
    if reach < rows * width * first.element_size():
        for layer in layers:
            layer.weight = torch.nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
        return joined(layers)
    return first.detach().as_strided((rows, width), (width, 1))


def _branches(
    block: Block, dense_SD: Tensor, routed_SD: Tensor, expert_SG: Tensor, share_SG: Tensor
) -> tuple[Tensor, Tensor]:
    """Both feed-forward branches, in the same launches where weights are plain."""
    from diffusiongemma.kernels.triton import experts as quick

    dense, experts = block.dense, block.experts
    plain = isinstance(experts, Experts) and isinstance(dense.gate, Linear)
    if plain and quick.fits(dense.gate.weight, experts.down):
        return quick.branches(
            dense_SD, routed_SD, expert_SG, share_SG,
            dense.gate.weight, dense.up.weight, dense.down.weight, experts.gate_up, experts.down,
        )  # fmt: skip
    return dense(dense_SD), experts(routed_SD, expert_SG, share_SG)
