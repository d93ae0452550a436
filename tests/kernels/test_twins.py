"""Fast twins say what the plain ones say, and a row's bits are its own in both."""

import pytest
import torch

from diffusiongemma.kernels import experts as routed
from diffusiongemma.kernels import gated as activation
from diffusiongemma.kernels import norm_rope
from diffusiongemma.kernels.attention import attend, attend_alike
from diffusiongemma.kernels.native import build
from diffusiongemma.kernels.ops import Ops, choose
from diffusiongemma.kernels.readout import banning, readout

pytestmark = pytest.mark.usefixtures("either")
FORMATS = [torch.float32, torch.bfloat16]


@pytest.fixture
def ops(dtype: torch.dtype) -> Ops:
    """The CPU's table, with and without compiled code."""
    found = choose(torch.device("cpu"), dtype)
    assert found.name == "cpu"
    return found


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}


@pytest.fixture(params=[1, 2], ids=lambda n: f"{n}threads")
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("width", [64, 704, 2112])
@torch.no_grad()
def test_the_activation_s_twin(ops: Ops, width: int, dtype: torch.dtype, threads) -> None:
    both = torch.randn(555, 2 * width, generator=dice()).to(dtype)
    gate, up = both.chunk(2, dim=-1)
    whole = ops.gated(gate, up)
    torch.testing.assert_close(whole, activation.gated(gate, up), **close(dtype))
    for start, rows in ((0, 1), (7, 3), (1, 181), (40, 300)):
        part = slice(start, start + rows)
        assert torch.equal(ops.gated(gate[part], up[part]), whole[part])
        assert torch.equal(ops.gated(gate[part].clone(), up[part].clone()), whole[part])


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@torch.no_grad()
def test_the_norm_s_twin(ops: Ops, dtype: torch.dtype, threads) -> None:
    x = torch.randn(300, 96, generator=dice()).to(dtype)
    weight, other = torch.rand(2, 96, generator=dice(1)).to(dtype)
    whole = ops.rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(whole, norm_rope.rms_norm(x, weight, 1e-6), **close(dtype))
    for rows in (slice(0, 1), slice(5, 8), slice(11, 200)):
        assert torch.equal(ops.rms_norm(x[rows], weight, 1e-6), whole[rows])
    first, second = ops.rms_norms(x, (weight, other), 1e-6)
    torch.testing.assert_close(first, whole, **close(dtype))
    torch.testing.assert_close(second, ops.rms_norm(x, other, 1e-6), **close(dtype))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize(
    ("width", "hidden", "count", "chosen"), [(128, 64, 8, 2), (48, 32, 8, 2), (96, 32, 12, 12)]
)
@torch.no_grad()
def test_the_experts_twin_has_the_plain_one_s_bits(
    ops: Ops, width: int, hidden: int, count: int, chosen: int, dtype: torch.dtype, threads
) -> None:
    """Few rows take every expert, many are sorted, and the reference loops: one answer."""
    x = torch.randn(700, width, generator=dice()).to(dtype)
    gate_up = torch.randn(count, 2 * hidden, width, generator=dice(1)).to(dtype)
    down = torch.randn(count, width, hidden, generator=dice(2)).to(dtype)
    number = torch.rand(700, count, generator=dice(3)).topk(chosen).indices
    share = torch.rand(700, chosen, generator=dice(4))
    whole = ops.experts(x, number, share, gate_up, down)
    plain = routed.experts(x, number, share, gate_up, down)
    torch.testing.assert_close(whole, plain, **close(dtype))
    for rows in (slice(0, 1), slice(3, 5), slice(8, 40), slice(0, 64), slice(100, 333)):
        alone = ops.experts(x[rows], number[rows], share[rows], gate_up, down)
        assert torch.equal(alone, whole[rows])


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("keys", [5, 96, 600])
@torch.no_grad()
def test_rows_that_attend_together_have_their_bits(keys: int, dtype: torch.dtype, threads) -> None:
    q = torch.randn(6, 33, 4, 32, generator=dice()).to(dtype)
    k, v = torch.randn(2, 6, 2, keys, 32, generator=dice(1)).to(dtype)
    together = attend_alike(q, k, v)
    for row in range(6):
        assert torch.equal(attend(q[row], k[row], v[row]), together[row])


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@torch.no_grad()
def test_products_together_are_the_products(ops: Ops, dtype: torch.dtype, threads) -> None:
    x = torch.randn(37, 96, generator=dice()).to(dtype)
    weights = [torch.randn(n, 96, generator=dice(n)).to(dtype) for n in (64, 32, 48)]
    for one, weight in zip(ops.linears(x, weights), weights, strict=True):
        assert torch.equal(one, ops.linear(x, weight))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("vocabulary", [20, 279, 3000, 16384])
@pytest.mark.parametrize("banned", [False, True], ids=["free", "banned"])
def test_the_readout_s_twin(ops: Ops, vocabulary: int, dtype: torch.dtype, banned: bool) -> None:
    hidden = torch.randn(3, 37, 32, generator=dice()).to(dtype)
    table = torch.randn(vocabulary, 32, generator=dice(1)).to(dtype)
    ids = torch.randint(0, vocabulary, (3, 37), generator=dice(2))
    options = {
        "cap": 5.0,
        "scale": torch.tensor(4.0).to(dtype),
        "temperature_B": torch.tensor([0.8, 0.5, 0.61]),
        "uniform_BL": torch.rand(3, 37, generator=dice(3), dtype=torch.float64),
        "bias_V": banning({*ids[0].tolist()}, vocabulary, hidden.device) if banned else None,
    }
    # Compiled code does not round the product to the weights' format before the softcap.
    exact = build.library() is not None
    given = (hidden.float(), table.float()) if exact else (hidden, table)
    plain = readout(*given, **options)
    with torch.no_grad():
        twin = ops.readout(hidden, table, **options)
    assert torch.equal(twin.best_BL, plain.best_BL)
    # A draw may fall to the other side of a border that lies within rounding.
    assert (twin.token_BL == plain.token_BL).float().mean() > 0.98
    torch.testing.assert_close(twin.entropy_BL, plain.entropy_BL, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(twin.soft_BLD, plain.soft_BLD.to(dtype), **close(dtype))


@pytest.mark.parametrize("tokens", [3, 700])
def test_experts_in_blocks_are_the_plain_ones(tokens: int) -> None:
    """Answers and gradients: of the tokens, their shares and all weights."""
    given = [
        torch.randn(tokens, 16, generator=dice()),
        torch.randn(5, 2 * 12, 16, generator=dice(1)),
        torch.randn(5, 16, 12, generator=dice(2)),
        torch.rand(tokens, 2, generator=dice(3)),
    ]
    # The fifth expert has no token, the first more than all others.
    score = torch.rand(tokens, 4, generator=dice(4)) - torch.tensor([1.0, 0.0, 0.0, 0.0])
    number = score.argsort(1)[:, :2]
    found = []
    for twin in (routed.experts, routed.blocked):
        x, gate_up, down, share = (one.clone().requires_grad_() for one in given)
        out = twin(x, number, share, gate_up, down)
        (out * torch.randn(out.shape, generator=dice(5))).sum().backward()
        found.append([out, x.grad, share.grad, gate_up.grad, down.grad])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
