"""Products in e4m3: rounded as the contract says, and a row's bits are its own."""

import pytest
import torch

from diffusiongemma.kernels.experts_fp8 import reference_fp8
from diffusiongemma.kernels.ops import KERNELS, Ops, choose
from diffusiongemma.kernels.quantised import (
    E4M3,
    fp8_linears,
    quantise_rows,
    quantise_weight,
    widen,
)

FORMATS = [torch.float32, torch.bfloat16]
TABLES = [choose(torch.device("cpu"), torch.float32, one, fp8=True) for one in KERNELS]
CODES = torch.arange(256, dtype=torch.uint8).view(E4M3)
FINITE = CODES.float()[~CODES.float().isnan()].unique()  # every number of e4m3, ascending


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def nearest(x: torch.Tensor) -> torch.Tensor:
    """The nearest number of e4m3, by trying all of them."""
    return FINITE[(x.double()[..., None] - FINITE.double()).abs().argmin(-1)]


def test_rows_have_a_scale_each_and_go_to_the_nearest_number() -> None:
    x = torch.randn(6, 200, generator=dice()) * torch.logspace(-6, 6, 6)[:, None]
    x[2] = 0.0
    q, scale = quantise_rows(x)
    assert q.dtype == E4M3 and scale.dtype == torch.float32
    assert torch.equal(scale, (x.abs().amax(-1) / 448).clamp(min=1e-12))
    assert scale[2] == 1e-12 and not q[2].float().any()
    assert torch.equal(q.float(), nearest((x / scale[:, None]).clamp(-448, 448)))
    assert torch.equal(q.float().abs().amax(-1)[[0, 1, 3, 4, 5]], torch.full((5,), 448.0))


def test_half_way_goes_to_the_even_neighbour() -> None:
    x = torch.tensor([[448.0, 17.0, 19.0, 2.0**-10, 3 * 2.0**-10]])  # the step is 2 at 16
    assert quantise_rows(x)[0].float().tolist() == [[448.0, 16.0, 20.0, 0.0, 2.0**-8]]


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_weights_have_a_scale_for_each_channel_as_it_is_stored(dtype: torch.dtype) -> None:
    weight = torch.randn(3, 40, 64, generator=dice()).to(dtype)
    weight[1, 7] = 0.0
    q, scale = quantise_weight(weight)
    assert scale.dtype == dtype and scale.shape == (3, 40)
    share = (weight / scale.float()[..., None]).clamp(-448, 448)  # may lie half-way
    assert torch.equal((q.float() - share).abs(), (nearest(share) - share).abs())
    assert scale[1, 7] == 1 and not q[1, 7].float().any()
    error = (q.float() * scale.float()[..., None] - weight.float()).abs()
    assert bool((error <= weight.float().abs() / 15 + scale.float()[..., None] / 512).all())


def test_widening_is_exact() -> None:
    wide, known = widen(CODES), CODES.float()
    number = ~known.isnan()
    assert number.sum() == 254
    assert torch.equal(wide[number], known[number])
    assert torch.equal(wide[number].signbit(), known[number].signbit())


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@torch.no_grad()
def test_the_product_is_the_formula_rounded_once(dtype: torch.dtype) -> None:
    x = torch.randn(33, 192, generator=dice()).to(dtype)
    weight, scale = quantise_weight(torch.randn(80, 192, generator=dice(1)))
    xq, sx = quantise_rows(x)
    exact = (xq.double() @ weight.double().T) * sx.double()[:, None] * scale.double()
    out = fp8_linears(x, [(weight, scale)])[0]
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact.to(dtype).double(), rtol=1e-5, atol=1e-5)
    # It is no product with the widened weight: the rows were rounded too.
    only_weight = x.double() @ (weight.double() * scale.double()[:, None]).T
    assert (out.double() - only_weight).abs().mean() > 10 * (out.double() - exact).abs().mean()


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize(("width", "outputs"), [(64, 8), (128, 128), (2112, 700)])
@torch.no_grad()
def test_a_row_of_a_product_is_its_own(width: int, outputs: int, dtype: torch.dtype) -> None:
    x = torch.randn(301, width, generator=dice()).to(dtype)
    pairs = [quantise_weight(torch.randn(n, width, generator=dice(n))) for n in (outputs, 16)]
    whole = fp8_linears(x, pairs)
    for rows in (slice(0, 1), slice(3, 6), slice(8, 25), slice(20, 301)):
        for one, all_rows, pair in zip(fp8_linears(x[rows], pairs), whole, pairs, strict=True):
            assert torch.equal(one, all_rows[rows])
            assert torch.equal(fp8_linears(x[rows], [pair])[0], one)


def routed(hidden: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    x = torch.randn(90, 96, generator=dice()).to(dtype)
    number = torch.rand(90, 8, generator=dice(1)).topk(3).indices
    share = torch.rand(90, 3, generator=dice(2))
    gate_up = quantise_weight(torch.randn(8, 2 * hidden, 96, generator=dice(3)) / 10)
    down = quantise_weight(torch.randn(8, 96, hidden, generator=dice(4)) / 10)
    return x, number, share, *gate_up, *down


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("hidden", [64, 192])
@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
@torch.no_grad()
def test_the_experts_are_the_reference(ops: Ops, hidden: int, dtype: torch.dtype) -> None:
    case = routed(hidden, dtype)
    ours, known = ops.experts_fp8(*case).float(), reference_fp8(*case).float()
    # A hidden number at the border between two neighbours may go to the other one.
    error = (ours - known).abs() / known.abs().max()
    assert float(error.quantile(0.99)) < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("hidden", [32, 64, 96])
@pytest.mark.parametrize("ops", TABLES, ids=lambda ops: ops.name)
@torch.no_grad()
def test_a_token_s_experts_answer_it_alone(ops: Ops, hidden: int, dtype: torch.dtype) -> None:
    x, number, share, *weights = routed(hidden, dtype)
    whole = ops.experts_fp8(x, number, share, *weights)
    for rows in (slice(0, 1), slice(3, 5), slice(11, 70)):
        alone = ops.experts_fp8(x[rows], number[rows], share[rows], *weights)
        assert torch.equal(alone, whole[rows])


@torch.no_grad()
def test_hidden_channels_have_a_scale_for_each_group() -> None:
    """A group of small numbers beside one of large ones keeps its own precision."""
    x = torch.ones(1, 16)
    gate_up = torch.full((1, 256, 16), 0.25)
    gate_up[0, 128:192] *= 1e-6  # up, of the first group
    down = torch.zeros(1, 16, 128)
    down[0, 0, :64] = 1.0  # the first output hears the first group alone
    case = (x, torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1))
    out = TABLES[0].experts_fp8(*case, *quantise_weight(gate_up), *quantise_weight(down))
    gate = torch.nn.functional.gelu(torch.tensor(4.0), approximate="tanh")
    assert out[0, 0] == pytest.approx(float(64 * gate * 4e-6), rel=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.no_grad()
def test_the_gpu_s_product_is_the_formula() -> None:
    x = torch.randn(300, 2816, generator=dice()).bfloat16()
    weight, scale = quantise_weight(torch.randn(2112, 2816, generator=dice(1)))
    table = choose(torch.device("cuda", 0), torch.bfloat16, fp8=True)
    there = fp8_linears(x.cuda(), [(weight.cuda(), scale.cuda())], table.fp8_product)[0].cpu()
    here = fp8_linears(x, [(weight, scale)])[0]
    torch.testing.assert_close(there, here, rtol=2e-2, atol=0.5)
