"""What a layer does between its matrix products: norms, sums, and the residual stream.

Each function is a run of elementwise steps of model/block.py or model/selfcond.py in one kernel, a
program for each token. It rounds where they round, to the format of the stream, so that results
differ from theirs by no more than the order in which a norm's squares are added; in between, and
in the statistics, it is float32. What quantised products will read leaves these kernels in e4m3.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from diffusiongemma.kernels.quantised import Rows
from diffusiongemma.kernels.triton.eight import e4m3, empty, scale_of
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
def _write(value, kind, out, scales, token, lane, D: tl.constexpr, EIGHT: tl.constexpr):
    """One token, rounded to `kind`, and if asked for then to e4m3 with a scale of its own."""
    at = out + token * D + lane
    if EIGHT:
        rounded = value.to(kind).to(tl.float32)
        scale = scale_of(tl.max(tl.where(lane < D, tl.abs(rounded), 0.0), 0))
        tl.store(scales + token, scale)
        tl.store(at, e4m3(rounded, scale), mask=lane < D)
    else:
        tl.store(at, value, mask=lane < D)


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
    dense_scales,
    for_experts,
    experts_scales,
    for_router,
    eps,
    root,
    EIGHT: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token."""
    token, lane = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    start, real = token * D, lane < D
    kind = out.dtype.element_ty
    step = _normed(_read(attended + start, lane, D), weight_after, lane, eps, D)
    stream = (_read(x + start, lane, D) + step.to(kind).to(tl.float32)).to(kind)
    tl.store(out + start + lane, stream, mask=real)
    normed = _normed(stream.to(tl.float32), None, lane, eps, D)
    dense = normed * _read(weight_dense, lane, D)
    _write(dense, kind, for_dense, dense_scales, token, lane, D, EIGHT)
    routed = normed * _read(weight_experts, lane, D)
    _write(routed, kind, for_experts, experts_scales, token, lane, D, EIGHT)
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
    normed_scales,
    eps,
    EIGHT: tl.constexpr,
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
    _write(following, kind, normed, normed_scales, token, lane, D, EIGHT)


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
    *,
    eight: bool = False,
) -> tuple[Float[Tensor, "S D"], Float[Tensor, "S D"] | Rows, Float[Tensor, "S D"] | Rows, Tensor]:
    """From attention to the branches: the stream, and what dense, experts and router read of it.

    Args:
        attended_SD: the attention's answer.
        x_SD: the stream before it.
        weight_after_D: of the norm after attention.
        weight_dense_D: of the norm before the dense branch.
        weight_experts_D: of the norm before the experts.
        router_scale_D: of the router; its norm has no weight, and it divides by sqrt(D).
        eps: of the norms.
        eight: dense and experts read e4m3.
    """
    tokens, width = x_SD.shape
    assert attended_SD.is_contiguous() and x_SD.is_contiguous()
    out_SD, router_SD = torch.empty_like(x_SD), torch.empty_like(x_SD)
    dense, routed = _room(x_SD, eight), _room(x_SD, eight)
    _after_attention[(tokens,)](
        attended_SD, x_SD, weight_after_D, weight_dense_D, weight_experts_D, router_scale_D,
        out_SD, *dense, *routed, router_SD, eps, width**-0.5, EIGHT=eight,
        D=width, BLOCK=triton.next_power_of_2(width), num_warps=WARPS,
    )  # fmt: skip
    return out_SD, dense if eight else dense.q, routed if eight else routed.q, router_SD


def _room(x_SD: Tensor, eight: bool) -> Rows:
    """For rows in e4m3, or for those of x's format, which have no scales."""
    if eight:
        return empty(x_SD.shape[0], x_SD.shape[1], x_SD)
    out_SD = torch.empty_like(x_SD)
    return Rows(out_SD, out_SD)


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
    *,
    eight: bool = False,
) -> tuple[Float[Tensor, "S D"], Float[Tensor, "S D"] | Rows]:
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
        eight: the next layer's attention reads e4m3.
    """
    tokens, width = x_SD.shape
    assert dense_SD.is_contiguous() and routed_SD.is_contiguous() and x_SD.is_contiguous()
    out_SD, normed = torch.empty_like(x_SD), _room(x_SD, eight)
    step = scalar_S.stride(0) if scalar_S.numel() > 1 else 0
    _after_branches[(tokens,)](
        dense_SD, routed_SD, x_SD,
        weight_after_dense_D, weight_after_experts_D, weight_after_branches_D,
        scalar_S, next_weight_D, out_SD, *normed, eps, EIGHT=eight, STEP=step,
        D=width, BLOCK=triton.next_power_of_2(width), num_warps=WARPS,
    )  # fmt: skip
    return out_SD, normed if eight else normed.q


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
