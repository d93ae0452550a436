"""The experts' kernels in eight bits: interpreted against their reference, and compiled."""

import pytest
import torch
from torch import Tensor

import right_interpreter
from cross_compile import SHARED_BYTES, built
from diffusiongemma.kernels import experts as unrounded
from diffusiongemma.kernels import experts_fp8 as reference
from diffusiongemma.kernels.gated import gated
from diffusiongemma.kernels.quantised import Rows, fp8_linears, quantise_rows
from diffusiongemma.kernels.triton import eight
from diffusiongemma.kernels.triton import experts_fp8 as ours

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


def away(out: Tensor, from_: Tensor) -> float:
    return float((out.double() - from_.double()).norm() / from_.double().norm())


def test_tokens_are_quantised_to_the_bit() -> None:
    """Halves go to even, the largest number to 448, a row of zeros stays one."""
    x = normal(9, 100)
    x[0] = 0
    x[1] = torch.linspace(-448, 448, 100).bfloat16()
    x[2, 0], x[2, 1:] = 448, torch.arange(99).to(DEVICE) + 0.5
    x[3] *= 1e-30
    for rows in (x, x.float() * torch.pi):
        number, scale = eight.quantise(rows)
        right, right_scale = quantise_rows(rows)
        assert torch.equal(scale, right_scale)
        assert torch.equal(number.view(torch.uint8), right.view(torch.uint8))


@pytest.mark.parametrize(
    ("tokens", "width", "hidden", "count", "chosen"),
    [(37, 96, 64, 8, 2), (60, 256, 192, 6, 6), (1, 64, 64, 4, 4)],
)
def test_experts_are_the_reference_s(
    tokens: int, width: int, hidden: int, count: int, chosen: int
) -> None:
    x, (gate_up, down) = normal(tokens, width), weights(width, hidden, count)
    number, share = routes(tokens, count, chosen)
    if tokens > 1 and chosen < count:
        number[number == 1] = number[0, 0]  # nobody goes to expert 1
    eight = (*quantise_rows(gate_up), *quantise_rows(down))
    out = ours.experts_fp8(x, number, share, *eight)
    right = reference.reference_fp8(x, number, share, *eight)
    # What eight bits cost is some hundred times what another order of sums does.
    cost = away(right, unrounded.experts(x, number, share, gate_up, down))
    assert 0.02 < cost < 0.1
    assert away(out, right) < 0.1 * cost
    for rows in (slice(0, 1), slice(20, 33)):
        alone = ours.experts_fp8(x[rows], number[rows], share[rows], *eight)
        assert torch.equal(alone, out[rows])


@pytest.mark.parametrize("hidden", [64, 192, 256], ids=["one group", "odd", "even"])
def test_groups_two_by_two_add_up_as_one_by_one(
    hidden: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = normal(9, 64), weights(64, hidden, 4)
    given = (x, *routes(9, 4, 2), *quantise_rows(weight[0]), *quantise_rows(weight[1]))
    said = []
    for depth in (64, 128):
        monkeypatch.setitem(ours.DOWN, 16, ours.Recipe(depth=depth))
        said.append(ours.experts_fp8(*given))
    assert torch.equal(*said)


@pytest.mark.parametrize("hidden", [64, 192, 256], ids=["half a program", "odd", "even"])
def test_programs_of_two_groups_answer_as_those_of_one(
    hidden: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = normal(9, 64), weights(64, hidden, 4)
    given = (x, *routes(9, 4, 2), *quantise_rows(weight[0]), *quantise_rows(weight[1]))
    said = []
    for rows in (64, 128):
        monkeypatch.setattr(ours, "UP_ROWS", rows)
        said.append(ours.experts_fp8(*given))
    assert torch.equal(*said)


def test_no_tokens() -> None:
    gate_up, down = weights(64, 64, 8)
    eight = (*quantise_rows(gate_up), *quantise_rows(down))
    none = ours.experts_fp8(normal(0, 64), *routes(0, 8, 2), *eight)
    assert none.shape == (0, 64)


def dense_weights(width: int, wide: int) -> list[Tensor]:
    shapes = ((wide, width, 5), (wide, width, 6), (width, wide, 7))
    return [normal(n, k, seed=seed, scale=k**-0.5) for n, k, seed in shapes]


@pytest.mark.parametrize(("tokens", "wide"), [(37, 192), (1, 64), (70, 320)])
def test_both_branches(tokens: int, wide: int) -> None:
    """The experts' answer is theirs alone; the dense one is as near to plain weights as its own
    reference, whose hidden vector has one scale and not one for 64 channels.
    """
    width, hidden, count = 96, 64, 8
    x, y, weight = (
        normal(tokens, width),
        normal(tokens, width, seed=9),
        weights(width, hidden, count),
    )
    number, share = routes(tokens, count, 2)
    gate_up, down = (quantise_rows(one) for one in weight)
    plain = dense_weights(width, wide)
    gate, up, back = (quantise_rows(one) for one in plain)
    parts = (gate, up, back, gate_up, down, torch.bfloat16)
    dense, routed = ours.branches(eight.quantise(y), eight.quantise(x), number, share, *parts)
    assert torch.equal(routed, ours.experts_fp8(x, number, share, *gate_up, *down))
    wide_y = y.float()
    truth = gated(wide_y @ plain[0].float().T, wide_y @ plain[1].float().T) @ plain[2].float().T
    theirs = fp8_linears(y, [gate, up])
    usual = fp8_linears(gated(*theirs), [back])[0]
    assert 0 < away(dense, truth) < 1.1 * away(usual, truth) < 0.15
    for rows in (slice(0, 1), slice(20, 33)):
        alone, _ = ours.branches(
            Rows(*(part[rows] for part in eight.quantise(y))),
            Rows(*(part[rows] for part in eight.quantise(x))), number[rows], share[rows], *parts,
        )  # fmt: skip
        assert torch.equal(alone, dense[rows])


def test_branches_that_are_no_whole_groups_do_not_fit() -> None:
    gate, down = torch.empty(96, 64), torch.empty(4, 64, 64)
    assert not ours.fits(gate, down) and not ours.fits(gate[:64], down[..., :48])
    assert ours.fits(gate[:64], down)


MODULE = "diffusiongemma.kernels.triton.experts_fp8"
EIGHT = "fp8e4nv"


def pointers(names: str, kind: str) -> dict[str, str]:
    """Numbers in e4m3, or tensors of another kind."""
    made = {}
    for name in names.split():
        made[f"{name}_ptr"] = f"*{kind}"
        if kind == EIGHT:
            made[f"{name}_scale_ptr"] = "*fp32"
    return made


@pytest.mark.parametrize("dense", [True, False], ids=["beside the dense branch", "alone"])
@pytest.mark.parametrize("block", [32, 64], ids=["256 tokens", "2048 tokens"])
def test_the_products_compiled_at_26b(block: int, dense: bool) -> None:
    """Matrix instructions of Hopper, no spills, and room for two blocks."""
    planned = pointers("route tile", "i32")
    planned |= dict.fromkeys(["tokens", "routes", "width", "hidden", "wide"], "i32")
    planned |= dict.fromkeys(["dense_programs", "stride"], "i32:1")
    fixed, recipe = {"BLOCK_T": block, "FIELDS": 3, "DENSE": dense}, ours.UP[block]
    up = built(
        f"{MODULE}:_gate_up_fp8",
        pointers("x gate_up hidden dense_x dense_gate dense_up dense_hidden", EIGHT) | planned,
        {"CHOSEN": 8, "EVEN": True, "ROWS": ours.UP_ROWS, "GROUP": 64, "DEPTH": recipe.depth,
         **fixed},
        warps=recipe.warps, stages=recipe.stages,
    )  # fmt: skip
    recipe = ours.DOWN[block]
    types = pointers("hidden down", EIGHT) | pointers("answer", "bf16")
    types |= pointers("dense_hidden dense_down", EIGHT) | pointers("dense_out", "bf16") | planned
    down = built(
        f"{MODULE}:_down_fp8", types,
        {"PAIRS": recipe.depth > 64, "ROWS": ours.DOWN_ROWS, "GROUP": 64, **fixed},
        warps=recipe.warps, stages=recipe.stages,
    )  # fmt: skip
    for kernel in (up, down):
        assert kernel.wgmma > 0 and kernel.mma == 0, kernel
        assert kernel.spills == 0, kernel
        assert kernel.shared <= TWO_BLOCKS, kernel


def test_the_quantiser_compiles() -> None:
    types = {"x_ptr": "*bf16", "out_ptr": "*fp8e4nv", "scale_ptr": "*fp32", "width": "i32"}
    room = "diffusiongemma.kernels.triton.eight"
    assert built(f"{room}:_quantise", types, {"COLUMNS": 4096}, warps=8).spills == 0
