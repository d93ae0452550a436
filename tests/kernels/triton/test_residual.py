"""What lies between a layer's products: interpreted against the references, and compiled."""

import pytest
import torch
from torch import Tensor

import right_interpreter
from cross_compile import SHARED_BYTES, built
from diffusiongemma.kernels.norm_rope import rms_norm, rms_norms
from diffusiongemma.kernels.quantised import quantise_rows
from diffusiongemma.kernels.triton import residual as ours

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMATS = [torch.float32, torch.bfloat16]
WIDTHS = [16, 96, 300]
HERE = "diffusiongemma.kernels.triton.residual"
EPS = 1e-6


@pytest.fixture(autouse=True)
def interpreter():
    with right_interpreter.right():
        yield


def normal(*shape: int, seed: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    dice = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=dice) * scale).to(dtype).to(DEVICE)


def weights(count: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    return [1 + normal(width, seed=50 + n, dtype=dtype, scale=0.3) for n in range(count)]


def same(found: Tensor, said: Tensor) -> None:
    """Equal but for rounding that falls to the other side: a few steps at most, and seldom."""
    assert found.dtype == said.dtype
    if found.dtype == torch.float32:
        torch.testing.assert_close(found, said, rtol=1e-5, atol=1e-5)
    else:
        torch.testing.assert_close(found, said, rtol=1.6e-2, atol=1e-2)
        assert (found != said).float().mean() < 0.02


def router(x: Tensor, scale: Tensor) -> Tensor:
    return rms_norm(x, None, EPS) * scale * x.shape[1] ** -0.5


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@torch.no_grad()
def test_after_attention(width: int, dtype: torch.dtype) -> None:
    attended, x = normal(7, width, seed=0, dtype=dtype), normal(7, width, seed=1, dtype=dtype)
    after, dense, experts, scale = weights(4, width, dtype)
    found = ours.after_attention(attended, x, after, dense, experts, scale, EPS)
    same(found[0], x + rms_norm(attended, after, EPS))
    said = [*rms_norms(found[0], (dense, experts), EPS), router(found[0], scale)]
    for one, other in zip(found[1:], said, strict=True):
        same(one, other)
    alone = ours.after_attention(attended[3:4], x[3:4], after, dense, experts, scale, EPS)
    for one, other in zip(alone, found, strict=True):
        assert torch.equal(one, other[3:4])


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("each", [True, False], ids=["each", "all"])
@torch.no_grad()
def test_after_branches(width: int, each: bool, dtype: torch.dtype) -> None:
    """With a scalar for each token (two modes in one pass), and with the layer's own for all."""
    dense, routed, x = (normal(7, width, seed=n, dtype=dtype) for n in range(3))
    w_dense, w_experts, w_branches, following = weights(4, width, dtype)
    scalar = torch.tensor([0.5, 0.37, 1.0, 1.25, 0.8, 0.1, 2.0], device=DEVICE)
    scalar = scalar.to(dtype).float() if each else scalar[1:2].to(dtype)
    both = rms_norm(dense, w_dense, EPS) + rms_norm(routed, w_experts, EPS)
    stream = (x + rms_norm(both, w_branches, EPS)) * scalar.to(dtype)[:, None]
    out, normed = ours.after_branches(
        dense, routed, x, w_dense, w_experts, w_branches, scalar, following, EPS
    )
    same(out, stream)
    same(normed, rms_norm(out, following, EPS))
    alone = ours.after_branches(
        dense[2:4], routed[2:4], x[2:4], w_dense, w_experts, w_branches,
        scalar[2:4] if each else scalar, following, EPS,
    )  # fmt: skip
    assert torch.equal(alone[0], out[2:4]) and torch.equal(alone[1], normed[2:4])


@pytest.mark.parametrize("width", WIDTHS)
@torch.no_grad()
def test_rows_in_e4m3_are_those_of_bfloat16(width: int) -> None:
    attended, x, routed = (normal(7, width, seed=n, dtype=torch.bfloat16) for n in range(3))
    attended[2] = 0
    given = (attended, x, *weights(4, width, torch.bfloat16), EPS)
    plain, eight = ours.after_attention(*given), ours.after_attention(*given, eight=True)
    assert torch.equal(eight[0], plain[0]) and torch.equal(eight[3], plain[3])
    pairs = [(eight[1], plain[1]), (eight[2], plain[2])]
    scalar = torch.tensor([0.5], device=DEVICE)
    given = (attended, routed, x, *weights(3, width, torch.bfloat16), scalar)
    given = (*given, weights(1, width, torch.bfloat16)[0], EPS)
    plain, eight = ours.after_branches(*given), ours.after_branches(*given, eight=True)
    assert torch.equal(eight[0], plain[0])
    for rows, whole in (*pairs, (eight[1], plain[1])):
        q, scale = quantise_rows(whole)
        assert torch.equal(rows.scale, scale)
        assert torch.equal(rows.q.view(torch.uint8), q.view(torch.uint8))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@torch.no_grad()
def test_condition(width: int, dtype: torch.dtype) -> None:
    embedded, signal = (normal(5, width, seed=n, dtype=dtype) for n in range(2))
    found = ours.condition(embedded, signal, EPS)
    same(found, rms_norm(embedded + signal, None, EPS))
    zero = torch.zeros_like(signal)  # the first step
    same(ours.condition(embedded, zero, EPS), rms_norm(embedded, None, EPS))
    same(ours.condition(zero, zero, EPS), zero)


@torch.no_grad()
def test_a_stream_that_has_grown() -> None:
    """Squares of large numbers are summed in float32."""
    x = normal(3, 96, seed=0, dtype=torch.bfloat16, scale=3e4)
    found = ours.condition(x, torch.zeros_like(x), EPS)
    same(found, rms_norm(x, None, EPS))


@pytest.mark.parametrize(
    ("kernel", "tensors", "others"),
    [
        (
            "_after_attention",
            "attended x weight_after weight_dense weight_experts router_scale out for_dense "
            "dense_scales for_experts experts_scales for_router",
            {"eps": "fp32", "root": "fp32"},
        ),
        (
            "_after_branches",
            "dense routed x weight_after_dense weight_after_experts weight_after_branches scalar "
            "next_weight out normed normed_scales",
            {"eps": "fp32"},
        ),
        ("_condition", "embedded signal out", {"eps": "fp32"}),
    ],
)
@pytest.mark.parametrize("eight", [False, True], ids=["bfloat16", "e4m3"])
def test_it_fits_a_hopper_gpu(
    kernel: str, tensors: str, others: dict[str, str], eight: bool
) -> None:
    kinds = dict.fromkeys(tensors.split(), "*bf16") | others
    constants: dict[str, int] = {"D": 2816, "BLOCK": 4096}
    if kernel != "_condition":
        constants["EIGHT"] = eight
    if eight:
        rows = [name.removesuffix("_scales") for name in kinds if name.endswith("_scales")]
        kinds |= dict.fromkeys(rows, "*fp8e4nv")
        kinds |= dict.fromkeys([f"{name}_scales" for name in rows], "*fp32")
    if kernel == "_after_branches":
        kinds["scalar"], constants["STEP"] = "*fp32", 1
    made = built(f"{HERE}:{kernel}", kinds, constants, warps=ours.WARPS)
    assert made.spills == 0 and made.shared <= SHARED_BYTES
