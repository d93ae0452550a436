"""What a layer does between its matrix products: norms, sums, and the residual stream.

Each function is a run of elementwise steps of model/block.py or model/selfcond.py in one kernel, a
program for each token. It rounds where they round, to the format of the stream, so that results
differ from theirs by no more than the order in which a norm's squares are added; in between, and
in the statistics, it is float32.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from diffusiongemma.kernels.triton.jit import jit

WARPS = 8
"""Of a program: 2816 channels, padded to 4096, are 16 for each thread, and several of them have to
be held at once."""


@jit
def _normed(x, weight, lane, eps, D: tl.constexpr):
    """RMS norm of one token in float32; `weight` is None or a pointer."""
    scaled = x * tl.rsqrt(tl.sum(x * x, 0) / D + eps)
    if weight is not None:
        scaled *= tl.load(weight + lane, mask=lane < D, other=0.0).to(tl.float32)
    return scaled


@jit
def _read(source, lane, D: tl.constexpr):
    """One token, and zeros beyond its channels."""
    return tl.load(source + lane, mask=lane < D, other=0.0).to(tl.float32)


@jit
def _after_attention(
    attended,
    x,
    weight_after,
    weight_dense,
    weight_experts,
    router_scale,
    out,
    for_dense,
    for_experts,
    for_router,
    eps,
    root,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token."""
    start, lane = tl.program_id(0).to(tl.int64) * D, tl.arange(0, BLOCK)
    real = lane < D
    kind = out.dtype.element_ty
    step = _normed(_read(attended + start, lane, D), weight_after, lane, eps, D)
    stream = (_read(x + start, lane, D) + step.to(kind).to(tl.float32)).to(kind)
    tl.store(out + start + lane, stream, mask=real)
    normed = _normed(stream.to(tl.float32), None, lane, eps, D)
    tl.store(for_dense + start + lane, normed * _read(weight_dense, lane, D), mask=real)
    tl.store(for_experts + start + lane, normed * _read(weight_experts, lane, D), mask=real)
    scaled = (normed.to(kind).to(tl.float32) * _read(router_scale, lane, D)).to(kind)
    tl.store(for_router + start + lane, scaled.to(tl.float32) * root, mask=real)


@jit
def _after_branches(
    dense,
    routed,
    x,
    weight_after_dense,
    weight_after_experts,
    weight_after_branches,
    scalar,
    next_weight,
    out,
    normed,
    eps,
    STEP: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token."""
    token, lane = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    start, real = token * D, lane < D
    kind = out.dtype.element_ty
    one = _normed(_read(dense + start, lane, D), weight_after_dense, lane, eps, D).to(kind)
    two = _normed(_read(routed + start, lane, D), weight_after_experts, lane, eps, D).to(kind)
    both = (one.to(tl.float32) + two.to(tl.float32)).to(kind).to(tl.float32)
    step = _normed(both, weight_after_branches, lane, eps, D).to(kind)
    stream = (_read(x + start, lane, D) + step.to(tl.float32)).to(kind)
    stream = (stream.to(tl.float32) * tl.load(scalar + token * STEP).to(tl.float32)).to(kind)
    tl.store(out + start + lane, stream, mask=real)
    following = _normed(stream.to(tl.float32), next_weight, lane, eps, D)
    tl.store(normed + start + lane, following, mask=real)


@jit
def _condition(embedded, signal, out, eps, D: tl.constexpr, BLOCK: tl.constexpr):
    """One token."""
    start, lane = tl.program_id(0).to(tl.int64) * D, tl.arange(0, BLOCK)
    both = _read(embedded + start, lane, D) + _read(signal + start, lane, D)
    both = both.to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + start + lane, _normed(both, None, lane, eps, D), mask=lane < D)


def after_attention(
    attended_SD: Float[Tensor, "S D"],
    x_SD: Float[Tensor, "S D"],
    weight_after_D: Float[Tensor, " D"],
    weight_dense_D: Float[Tensor, " D"],
    weight_experts_D: Float[Tensor, " D"],
    router_scale_D: Float[Tensor, " D"],
    eps: float,
) -> tuple[Float[Tensor, "S D"], Float[Tensor, "S D"], Float[Tensor, "S D"], Float[Tensor, "S D"]]:
    """From attention to the branches: the stream, and what dense, experts and router read of it.

    Args:
        attended_SD: the attention's answer.
        x_SD: the stream before it.
        weight_after_D: of the norm after attention.
        weight_dense_D: of the norm before the dense branch.
        weight_experts_D: of the norm before the experts.
        router_scale_D: of the router; its norm has no weight, and it divides by sqrt(D).
        eps: of the norms.
    """
    tokens, width = x_SD.shape
    assert attended_SD.is_contiguous() and x_SD.is_contiguous()
    outs = (
        torch.empty_like(x_SD),
        torch.empty_like(x_SD),
        torch.empty_like(x_SD),
        torch.empty_like(x_SD),
    )
    _after_attention[(tokens,)](
        attended_SD, x_SD, weight_after_D, weight_dense_D, weight_experts_D, router_scale_D,
        *outs, eps, width**-0.5, D=width, BLOCK=triton.next_power_of_2(width), num_warps=WARPS,
    )  # fmt: skip
    return outs


def after_branches(
    dense_SD: Float[Tensor, "S D"],
    routed_SD: Float[Tensor, "S D"],
    x_SD: Float[Tensor, "S D"],
    weight_after_dense_D: Float[Tensor, " D"],
    weight_after_experts_D: Float[Tensor, " D"],
    weight_after_branches_D: Float[Tensor, " D"],
    scalar_S: Float[Tensor, "#S"],
    next_weight_D: Float[Tensor, " D"],
    eps: float,
) -> tuple[Float[Tensor, "S D"], Float[Tensor, "S D"]]:
    """The end of a layer: the stream, and the norm of it that comes next.

    Args:
        dense_SD: the dense branch's answer.
        routed_SD: the experts' answer.
        x_SD: the stream before the branches.
        weight_after_dense_D: of the dense branch's norm.
        weight_after_experts_D: of the experts' norm.
        weight_after_branches_D: of the norm of their sum.
        scalar_S: the layer's scalar for every token, or one for all.
        next_weight_D: of the next layer's first norm, or of the final one.
        eps: of the norms.
    """
    tokens, width = x_SD.shape
    assert dense_SD.is_contiguous() and routed_SD.is_contiguous() and x_SD.is_contiguous()
    outs = torch.empty_like(x_SD), torch.empty_like(x_SD)
    _after_branches[(tokens,)](
        dense_SD, routed_SD, x_SD,
        weight_after_dense_D, weight_after_experts_D, weight_after_branches_D,
        scalar_S, next_weight_D, *outs, eps, STEP=scalar_S.stride(0) if scalar_S.numel() > 1 else 0,
        D=width, BLOCK=triton.next_power_of_2(width), num_warps=WARPS,
    )  # fmt: skip
    return outs


def condition(
    embedded_SD: Float[Tensor, "S D"], signal_SD: Float[Tensor, "S D"], eps: float
) -> Float[Tensor, "S D"]:
    """Canvas embeddings plus the self-conditioning signal, normed without weight."""
    tokens, width = embedded_SD.shape
    assert embedded_SD.is_contiguous() and signal_SD.is_contiguous()
    out_SD = torch.empty_like(embedded_SD)
    _condition[(tokens,)](
        embedded_SD, signal_SD, out_SD, eps,
        D=width, BLOCK=triton.next_power_of_2(width), num_warps=WARPS,
    )  # fmt: skip
    return out_SD
