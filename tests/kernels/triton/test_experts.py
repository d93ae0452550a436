"""The experts' kernels: interpreted against the reference and float64, and compiled for sm_90.

The interpreter multiplies one token after the other, so that rows have the bits they have alone
tells that no kernel adds up in an order that depends on the batch; that a GPU's matrix instructions
keep it too can be seen on a GPU only.
"""

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

import right_interpreter
from cross_compile import SHARED_BYTES, built
from diffusiongemma.kernels import experts as reference
from diffusiongemma.kernels.gated import gated
from diffusiongemma.kernels.triton import experts as ours
from diffusiongemma.kernels.triton import experts_parts as parts
from diffusiongemma.kernels.triton.plan import plan

# So that two blocks fit on a multiprocessor; one KiB of each is the system's.
TWO_BLOCKS = (SHARED_BYTES + 1024) // 2 - 1024
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def interpreter():
    with right_interpreter.right():
        yield


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=dice(seed)) * scale).bfloat16().to(DEVICE)


def weights(width: int, hidden: int, count: int) -> tuple[Tensor, Tensor]:
    gate_up = normal(count, 2 * hidden, width, seed=1, scale=width**-0.5)
    return gate_up, normal(count, width, hidden, seed=2, scale=hidden**-0.5)


def routes(tokens: int, count: int, chosen: int) -> tuple[Tensor, Tensor]:
    number = torch.rand(tokens, count, generator=dice(3)).topk(chosen).indices
    return number.to(DEVICE), torch.rand(tokens, chosen, generator=dice(4)).to(DEVICE)


def truth(x: Tensor, number: Tensor, share: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Every product in float64."""
    gate, up = torch.einsum("sd,efd->sef", x.double(), gate_up.double()).chunk(2, dim=-1)
    hidden = F.gelu(gate, approximate="tanh") * up
    answers = torch.einsum("sef,edf->sed", hidden, down.double())
    picked = answers.gather(1, number[:, :, None].expand(-1, -1, answers.shape[2]))
    return (picked * share[:, :, None].double()).sum(1)


def away(out: Tensor, from_: Tensor) -> float:
    return float((out.double() - from_).norm())


@pytest.mark.parametrize("spread", ["even", "one takes all", "one token"])
@pytest.mark.parametrize("block", [16, 32])
def test_the_plan(spread: str, block: int) -> None:
    """Every route lies in one tile, of its expert, in order; an expert's tiles are neighbours."""
    number = torch.randint(0, 7, (370, 3), generator=dice())
    number[number == 2] = 3  # nobody goes to expert 2
    if spread == "one takes all":
        number = torch.full((370, 3), 5)
    if spread == "one token":
        number = torch.tensor([[6, 0, 4]])
    route, tile = (x.cpu() for x in plan(number.to(DEVICE), 8, block)[:2])
    flat = number.reshape(-1)
    assert torch.equal(route.long(), flat.argsort(stable=True))
    assert len(tile) == flat.numel() // block + 8
    full = [(e, first, rows) for e, first, rows in tile.tolist() if rows]
    seen = 0
    for expert, first, rows in full:
        assert first == seen and 0 < rows <= block
        assert (flat[route[first : first + rows].long()] == expert).all()
        seen += rows
    assert seen == flat.numel()
    assert len(full) == sum(-(-int((flat == e).sum()) // block) for e in range(8))


@triton.jit
def _gelu(x_ptr, out_ptr):
    at = tl.arange(0, 512)
    tl.store(out_ptr + at, parts.gelu_tanh(tl.load(x_ptr + at)))


def test_the_activation() -> None:
    x = torch.linspace(-12, 12, 512, device=DEVICE)
    x[0], x[-1] = -1e30, 1e30
    out = torch.empty_like(x)
    _gelu[(1,)](x, out)
    torch.testing.assert_close(out, F.gelu(x, approximate="tanh"), rtol=1e-5, atol=1e-6)


SIZES = [(37, 96, 64, 8, 2), (90, 80, 48, 12, 3), (70, 256, 64, 6, 6), (1, 64, 32, 4, 4)]


@pytest.mark.parametrize(("tokens", "width", "hidden", "count", "chosen"), SIZES)
def test_experts_are_the_reference_s(
    tokens: int, width: int, hidden: int, count: int, chosen: int
) -> None:
    x, (gate_up, down) = normal(tokens, width, scale=2.0), weights(width, hidden, count)
    number, share = routes(tokens, count, chosen)
    if tokens > 1 and chosen < count:
        number[number == 1] = number[0, 0]  # nobody goes to expert 1
    out = ours.experts(x, number, share, gate_up, down)
    plain = reference.experts(x, number, share, gate_up, down)
    exact = truth(x, number, share, gate_up, down)
    assert away(out, exact) <= away(plain, exact)


def test_all_tokens_go_to_the_same_experts() -> None:
    x, (gate_up, down) = normal(75, 64), weights(64, 64, 8)
    number, (_, share) = torch.tensor([[6, 1]], device=DEVICE).expand(75, 2), routes(75, 8, 2)
    out = ours.experts(x, number, share, gate_up, down)
    exact = truth(x, number, share, gate_up, down)
    assert away(out, exact) <= away(reference.experts(x, number, share, gate_up, down), exact)


def test_no_tokens() -> None:
    gate_up, down = weights(64, 64, 8)
    none = ours.experts(normal(0, 64), *routes(0, 8, 2), gate_up, down)
    assert none.shape == (0, 64)


def test_a_row_s_bits_are_its_own() -> None:
    """Alone, in tiles of other sizes, at other places, and with its experts in another order."""
    x, (gate_up, down) = normal(61, 64), weights(64, 64, 8)
    number, share = routes(61, 8, 3)
    whole = ours.experts(x, number, share, gate_up, down)
    assert torch.equal(ours.experts(x, number, share, gate_up, down), whole)
    for rows in (slice(0, 1), slice(3, 8), slice(20, 61)):
        assert torch.equal(
            ours.experts(x[rows], number[rows], share[rows], gate_up, down), whole[rows]
        )
    turned = ours.experts(x, number.flip(1), share.flip(1), gate_up, down)
    assert torch.equal(turned, whole)


def test_answers_are_added_in_the_order_of_the_experts() -> None:
    """What is small is lost beside what is large, and kept once that is gone."""
    number = torch.tensor([[2, 5, 7], [2, 7, 5], [5, 2, 7], [5, 7, 2], [7, 2, 5], [7, 5, 2]])
    answers = torch.tensor([2.0**30, 1.0, -(2.0**30)]).repeat(6)[:, None].expand(18, 70)
    share, out = torch.full((6, 3), 0.5), normal(6, 70)
    answers = answers.bfloat16().contiguous().to(DEVICE)
    parts.combine(answers, number.to(DEVICE), share.to(DEVICE), out)
    expected = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0, 0.0])
    assert torch.equal(out.cpu(), expected[:, None].expand(6, 70).bfloat16())


@pytest.mark.parametrize(("tokens", "wide"), [(1, 64), (37, 192), (70, 320)])
def test_both_branches(tokens: int, wide: int) -> None:
    x, y, (gate_up, down) = normal(tokens, 96), normal(tokens, 96, seed=9), weights(96, 64, 8)
    gate, up = normal(2, wide, 96, seed=5, scale=0.1)
    back = normal(96, wide, seed=6, scale=0.1)
    number, share = routes(tokens, 8, 2)
    assert ours.fits(gate, down)
    dense, routed = ours.branches(y, x, number, share, gate, up, back, gate_up, down)
    assert torch.equal(routed, ours.experts(x, number, share, gate_up, down))
    plain = F.linear(gated(F.linear(y, gate), F.linear(y, up)), back)
    torch.testing.assert_close(dense, plain, rtol=2e-2, atol=5e-2)
    wide_y = y.double()
    hidden = F.gelu(wide_y @ gate.double().T, approximate="tanh") * (wide_y @ up.double().T)
    exact = hidden @ back.double().T
    assert away(dense, exact) <= away(plain, exact)
    last = (y[-1:], x[-1:], number[-1:], share[-1:])
    alone, _ = ours.branches(*last, gate, up, back, gate_up, down)
    assert torch.equal(alone, dense[-1:])


def test_branches_that_are_no_whole_tiles_do_not_fit() -> None:
    assert not ours.fits(normal(96, 64), normal(8, 64, 64))
    assert not ours.fits(normal(96, 64), normal(8, 64, 48))
    with pytest.raises(AssertionError):
        x, (gate_up, down) = normal(4, 96), weights(96, 64, 8)
        dense = (normal(96, 96), normal(96, 96), normal(96, 96))
        ours.branches(x, x, *routes(4, 8, 2), *dense, gate_up, down)


MODULE = "diffusiongemma.kernels.triton"
NUMBERS = dict.fromkeys(("tokens", "width", "hidden", "wide"), "i32")
PLANNED = {"route_ptr": "*i32", "tile_ptr": "*i32", **NUMBERS, "dense_programs": "i32:1"}


def pointers(*names: str) -> dict[str, str]:
    return {f"{name}_ptr": "*bf16" for name in names}


@pytest.mark.parametrize(("tokens", "block", "dense"), [(256, 32, True), (2048, 64, False)])
def test_the_products_compiled_at_26b(tokens: int, block: int, dense: bool) -> None:
    """Matrix instructions of Hopper, no spills, and room for two blocks."""
    assert ours.tokens_of_a_tile(tokens * 8, 128) == block
    fixed = {"DENSE": dense, "EVEN": True, "BLOCK_T": block, "FIELDS": 3}
    # Without a dense branch its stride is one, which Triton makes a constant of.
    last = {"stride": "i32:1"} if dense else {}
    fixed |= {} if dense else {"stride": 1}
    recipe = ours.UP[block]
    up = built(
        f"{MODULE}.experts:_gate_up",
        pointers("x", "gate_up", "hidden", *(f"dense_{n}" for n in ("x", "gate", "up", "hidden")))
        | PLANNED | last,
        {"CHOSEN": 8, "ROWS": ours.UP_ROWS, "DEPTH": recipe.depth, **fixed},
        warps=recipe.warps, stages=recipe.stages,
    )  # fmt: skip
    recipe = ours.DOWN[block]
    down = built(
        f"{MODULE}.experts:_down",
        pointers("hidden", "down", "answer", *(f"dense_{n}" for n in ("hidden", "down", "out")))
        | PLANNED | last,
        {"ROWS": ours.DOWN_ROWS, "DEPTH": recipe.depth, **fixed},
        warps=recipe.warps, stages=recipe.stages,
    )  # fmt: skip
    for kernel in (up, down):
        assert kernel.wgmma > 0 and kernel.mma == 0, kernel
        assert kernel.spills == 0, kernel
        assert kernel.shared <= TWO_BLOCKS, kernel


def test_the_small_kernels_compile() -> None:
    sizes = {"BLOCK_T": 32, "BLOCK": 1024, "FIELDS": 3}
    types = {"expert_ptr": "*i64", "route_ptr": "*i32", "tile_ptr": "*i32", "routes": "i32"}
    assert built(f"{MODULE}.plan:_plan", types, sizes).spills == 0
    types = {"answer_ptr": "*bf16", "expert_ptr": "*i64", "weight_ptr": "*fp32"}
    types |= {"out_ptr": "*bf16", "width": "i32"}
    sizes = {"CHOSEN": 8, "SLOTS": 8, "COLUMNS": parts.COLUMNS}
    assert built(f"{MODULE}.experts_parts:_combine", types, sizes).spills == 0
