"""The experts' kernels in eight bits: interpreted against their reference, and compiled."""

import pytest
import torch
from torch import Tensor

import right_interpreter
from cross_compile import SHARED_BYTES, built
from diffusiongemma.kernels import experts as unrounded
from diffusiongemma.kernels import experts_fp8 as reference
from diffusiongemma.kernels.quantised import LARGEST, SMALLEST, quantise_rows
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
        number, scale = ours.quantise(rows)
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
    cost = away(right, unrounded.plain(x, number, share, gate_up, down))
    assert 0.02 < cost < 0.1
    assert away(out, right) < 0.1 * cost
    for rows in (slice(0, 1), slice(20, 33)):
        alone = ours.experts_fp8(x[rows], number[rows], share[rows], *eight)
        assert torch.equal(alone, out[rows])


def test_no_tokens() -> None:
    gate_up, down = weights(64, 64, 8)
    eight = (*quantise_rows(gate_up), *quantise_rows(down))
    none = ours.experts_fp8(normal(0, 64), *routes(0, 8, 2), *eight)
    assert none.shape == (0, 64)


MODULE = "diffusiongemma.kernels.triton.experts_fp8"
PLANNED = {"route_ptr": "*i32", "tile_ptr": "*i32", "routes": "i32", "width": "i32"}
PLANNED |= {"hidden": "i32"}


def pointers(**types: str) -> dict[str, str]:
    return {f"{name}_ptr": f"*{kind}" for name, kind in types.items()}


@pytest.mark.parametrize("block", [32, 64], ids=["256 tokens", "2048 tokens"])
def test_the_products_compiled_at_26b(block: int) -> None:
    """Matrix instructions of Hopper, no spills, and room for two blocks."""
    eight, recipe = "fp8e4nv", ours.UP[block]
    fixed = {"BLOCK_T": block, "FIELDS": 3}
    types = pointers(x=eight, x_scale="fp32", gate_up=eight, gate_up_scale="fp32")
    types |= pointers(hidden=eight, hidden_scale="fp32")
    sizes = {"CHOSEN": 8, "EVEN": True, "ROWS": ours.UP_ROWS, "DEPTH": recipe.depth}
    sizes |= {"LARGEST": LARGEST, "SMALLEST": SMALLEST}
    up = built(
        f"{MODULE}:_gate_up_fp8", types | PLANNED, sizes | fixed,
        warps=recipe.warps, stages=recipe.stages,
    )  # fmt: skip
    recipe = ours.DOWN[block]
    types = pointers(hidden=eight, hidden_scale="fp32", down=eight, down_scale="fp32")
    down = built(
        f"{MODULE}:_down_fp8", types | pointers(answer="bf16") | PLANNED,
        {"ROWS": ours.DOWN_ROWS, "DEPTH": recipe.depth, **fixed},
        warps=recipe.warps, stages=recipe.stages,
    )  # fmt: skip
    for kernel in (up, down):
        assert kernel.wgmma > 0 and kernel.mma == 0, kernel
        assert kernel.spills == 0, kernel
        assert kernel.shared <= TWO_BLOCKS, kernel


def test_the_quantiser_compiles() -> None:
    sizes = {"COLUMNS": 4096, "LARGEST": LARGEST, "SMALLEST": SMALLEST}
    types = pointers(x="bf16", out="fp8e4nv", scale="fp32") | {"width": "i32"}
    assert built(f"{MODULE}:_quantise", types, sizes).spills == 0
