"""The router's kernel: interpreted against the model's own router, and compiled for sm_90."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import right_interpreter
from cross_compile import SHARED_BYTES, built
from diffusiongemma.kernels.triton import router as ours

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def interpreter():
    with right_interpreter.right():
        yield


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def expected(x: Tensor, weight: Tensor, scale: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """As the model's router, but of equal scores the lower number; and the scores."""
    scores = F.linear(x, weight)
    shares = scores.softmax(-1, dtype=torch.float32)
    share, number = shares.sort(dim=-1, descending=True, stable=True)
    share, number = share[:, :top], number[:, :top]
    return number, share / share.sum(-1, keepdim=True) * scale[number], scores.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("tokens", "width", "count", "top"),
    [(37, 256, 128, 8), (1, 96, 8, 2), (16, 80, 12, 3), (50, 64, 64, 1), (5, 64, 6, 6)],
)
def test_the_router_is_the_model_s(
    tokens: int, width: int, count: int, top: int, dtype: torch.dtype
) -> None:
    x = normal(tokens, width).to(dtype)
    weight = (normal(count, width, seed=1) * width**-0.5).to(dtype)
    scale = torch.rand(count, generator=torch.Generator().manual_seed(2)).to(DEVICE, dtype) + 0.5
    number, share = ours.route(x, weight, scale, top)
    right, right_share, scores = expected(x, weight, scale, top)
    # Two sums of one product may round to two neighbours, and neighbours change places.
    same = number == right
    assert same.float().mean() > 0.97
    near = scores.gather(1, number) - scores.gather(1, right)
    assert near.abs().max() <= (1e-5 if dtype == torch.float32 else 0.05)
    rows = same.all(1)
    torch.testing.assert_close(share[rows], right_share[rows], rtol=2e-2, atol=1e-3)
    assert number.dtype == torch.int64 and share.dtype == torch.float32
    assert all(len(set(row)) == top for row in number.tolist())


def test_given_the_scores_the_rest_is_the_model_s_to_the_last_digits() -> None:
    """Scores that any order of adding up gives: the identity's."""
    x, scale = normal(40, 64).bfloat16(), normal(64, seed=3).bfloat16()
    weight = torch.eye(64, device=DEVICE).bfloat16()
    number, share = ours.route(x, weight, scale, 8)
    right, right_share, _ = expected(x, weight, scale, 8)
    assert torch.equal(number, right)
    torch.testing.assert_close(share, right_share, rtol=1e-5, atol=1e-7)


def test_of_equal_scores_the_lower_number() -> None:
    x = torch.zeros(3, 64, device=DEVICE, dtype=torch.bfloat16)
    x[1, 0], x[2, 0] = 1.0, -1.0
    weight = torch.zeros(16, 64, device=DEVICE, dtype=torch.bfloat16)
    weight[5], weight[9], weight[2], weight[14] = 1.0, 1.0, -1.0, -1.0
    number, share = ours.route(x, weight, torch.ones(16, device=DEVICE), 5)
    assert number.tolist() == [[0, 1, 2, 3, 4], [5, 9, 0, 1, 3], [2, 14, 0, 1, 3]]
    assert torch.equal(share[0], torch.full((5,), 0.2, device=DEVICE))


def test_scores_are_equal_once_rounded() -> None:
    x = torch.ones(1, 64, device=DEVICE, dtype=torch.bfloat16)
    weight = torch.zeros(16, 64, device=DEVICE, dtype=torch.bfloat16)
    weight[[5, 9], 0], weight[9, 1] = 1.0, 2.0**-10
    number, share = ours.route(x, weight, torch.ones(16, device=DEVICE), 2)
    assert number.tolist() == [[5, 9]] and share.tolist() == [[0.5, 0.5]]


def test_scores_far_apart() -> None:
    """A share of nothing, and scores below any sum's reach."""
    x = torch.full((2, 64), 10.0, device=DEVICE).bfloat16()
    weight = torch.full((8, 64), -1.0, device=DEVICE).bfloat16()
    weight[3] = 1.0
    number, share = ours.route(x, weight, torch.full((8,), 2.0, device=DEVICE), 3)
    assert number.tolist() == [[3, 0, 1]] * 2
    assert share.tolist() == [[2.0, 0.0, 0.0]] * 2


def test_a_row_s_bits_are_its_own() -> None:
    x, weight, scale = normal(37, 96).bfloat16(), normal(8, 96, seed=1).bfloat16(), normal(8)
    number, share = ours.route(x, weight, scale, 2)
    for rows in (slice(0, 1), slice(5, 8), slice(20, 37)):
        alone, alone_share = ours.route(x[rows], weight, scale, 2)
        assert torch.equal(alone, number[rows]) and torch.equal(alone_share, share[rows])
    assert ours.route(x[:0], weight, scale, 2)[0].shape == (0, 2)


@pytest.mark.parametrize("scale", ["bf16", "fp32"])
def test_the_router_compiled_at_26b(scale: str) -> None:
    room = "diffusiongemma.kernels.triton.router"
    sizes = {"EXPERTS": 128, "TOKENS": ours.TOKENS, "DEPTH": ours.STEP // 2}
    score = built(
        f"{room}:_score",
        {"x_ptr": "*bf16", "weight_ptr": "*bf16", "score_ptr": "*fp32", "tokens": "i32",
         "width": "i32", "count": "i32"},
        sizes | {"EACH": 2, "EVEN": True},
        warps=ours.WARPS, stages=ours.STAGES,
    )  # fmt: skip
    choose = built(
        f"{room}:_choose",
        {"score_ptr": "*fp32", "weight_ptr": "*bf16", "scale_ptr": f"*{scale}",
         "expert_ptr": "*i64", "share_ptr": "*fp32", "tokens": "i32", "count": "i32"},
        {"PIECES": 11, "TOP": 8, "SLOTS": 8, "EXPERTS": 128, "TOKENS": ours.CHOOSING},
        warps=ours.WARPS,
    )  # fmt: skip
    assert score.wgmma > 0 and score.mma == 0, score
    for kernel in (score, choose):
        assert kernel.spills == 0 and kernel.shared <= SHARED_BYTES, kernel


def test_programs_of_the_26b_model_fill_an_h200() -> None:
    tiles, steps = 256 // ours.TOKENS, 2816 * 2 // ours.STEP
    assert steps % ours.PIECES == 0 and tiles * ours.PIECES >= 132
