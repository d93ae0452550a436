"""Norm, rotation and store in one kernel: interpreted against the references, and compiled."""

import pytest
import torch
from torch import Tensor

import right_interpreter
from cross_compile import SHARED_BYTES, built
from diffusiongemma.kernels.norm_rope import frequencies, norm_rope, rms_norm, rotation
from diffusiongemma.kernels.triton import norm_rope as ours
from diffusiongemma.kernels.triton.norm_rope import norm_rope_write

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FORMATS = [torch.float32, torch.bfloat16]
EPS = 1e-6


@pytest.fixture(autouse=True)
def interpreter():
    with right_interpreter.right():
        yield


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    dice = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=dice).to(dtype).to(DEVICE)


def close(dtype: torch.dtype) -> dict[str, float]:
    """To rounding: one step of bfloat16 is at most 2 ** -7 of a number."""
    return {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 8e-3, "atol": 1e-6}


class Case:
    """A projection, weights, rotation and buffers that hold a mark wherever nobody has written."""

    def __init__(
        self, at: list[int], tokens: int, heads: tuple[int, int], width: int,
        *, own_values: bool, dtype: torch.dtype, capacity: int = 12,
    ) -> None:  # fmt: skip
        count, shared = heads
        self.heads, self.own_values, self.at = count, own_values, torch.tensor(at, device=DEVICE)
        columns = (count + shared * (2 if own_values else 1)) * width
        self.qkv = normal(len(at) * tokens, columns, seed=0, dtype=dtype)
        self.weights = [1 + normal(width, seed=n, dtype=dtype) / 4 for n in (1, 2)]
        spread = torch.arange(tokens, device=DEVICE)
        positions = torch.cat([1000 * (n + 1) + spread for n in range(len(at))])
        self.turn = rotation(positions, frequencies(width, 1e4, 0.5, DEVICE))
        self.k = torch.full((len(at), shared, capacity, width), 77.0).to(self.qkv)
        self.v = self.k.clone()

    def run(self) -> Tensor:
        return norm_rope_write(
            self.qkv, *self.weights, EPS, self.turn, self.k, self.v, self.at, self.heads
        )

    def said(self) -> tuple[Tensor, Tensor, Tensor]:
        """What model/attention.py does, and what a store does."""
        rows, shared, _, width = self.k.shape
        parts = self.qkv.unflatten(-1, (-1, width))
        q, k, v = parts.tensor_split([self.heads, self.heads + shared], dim=1)
        v = v if self.own_values else k
        q = norm_rope(q, self.weights[0], EPS, self.turn)
        k = norm_rope(k, self.weights[1], EPS, self.turn)
        v = rms_norm(v, None, EPS)
        keys, values = self.k.clone(), self.v.clone()
        parts = zip(self.at.tolist(), k.chunk(rows), v.chunk(rows), strict=True)
        for row, (at, k_TKH, v_TKH) in enumerate(parts):
            keys[row, :, at : at + len(k_TKH)] = k_TKH.transpose(0, 1)
            values[row, :, at : at + len(v_TKH)] = v_TKH.transpose(0, 1)
        return q, keys, values


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("own_values", [True, False], ids=["own", "shared"])
@pytest.mark.parametrize(
    ("at", "tokens", "heads", "width"),
    [
        ([0], 1, (2, 2), 16),
        ([3, 0, 7], 5, (4, 2), 32),
        ([0, 2], 3, (6, 3), 16),  # no power of two but one divides them
        ([1], 2, (16, 8), 256),
        ([1], 2, (16, 2), 512),
    ],
)
@torch.no_grad()
def test_it_is_three_calls_and_a_store(
    at: list[int], tokens: int, heads: tuple[int, int], width: int, own_values: bool,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    """And leaves alone what is not its to write."""
    case = Case(at, tokens, heads, width, own_values=own_values, dtype=dtype)
    said = case.said()
    found = case.run(), case.k, case.v
    for one, other in zip(found, said, strict=True):
        torch.testing.assert_close(one, other, **close(dtype))
    for row, first in enumerate(at):
        for buffer in (case.k, case.v):
            assert (buffer[row, :, :first] == 77).all()
            assert (buffer[row, :, first + tokens :] == 77).all()


def test_rounding_comes_once_and_last() -> None:
    """Against float64: half a step of bfloat16, and hardly more."""
    case = Case([0, 4], 3, (4, 2), 64, own_values=True, dtype=torch.bfloat16)
    q = case.run()
    wide = case.qkv.double().unflatten(-1, (-1, 64))[:, :4]
    wide = wide * (wide.pow(2).mean(-1, keepdim=True) + EPS).rsqrt() * case.weights[0].double()
    cos, sin = (part.double() for part in case.turn)
    exact = wide * cos + wide.roll(32, -1) * sin
    away = (q.double() - exact).abs()
    assert (away <= exact.abs() * 2**-8 * 1.001 + 1e-6).all()


def test_a_row_s_bits_are_its_own() -> None:
    case = Case([3, 0, 7], 5, (4, 2), 32, own_values=True, dtype=torch.bfloat16)
    alone = Case([0], 5, (4, 2), 32, own_values=True, dtype=torch.bfloat16)
    alone.qkv = case.qkv[5:10].clone()
    alone.turn = tuple(part[5:10].clone() for part in case.turn)
    together = case.run()
    assert torch.equal(alone.run(), together[5:10])
    assert torch.equal(alone.k, case.k[[1]]) and torch.equal(alone.v, case.v[[1]])


def test_nothing_is_written_outside_of_the_buffers() -> None:
    """An index beyond the capacity is the caller's mistake, but another row's keys are not hit."""
    case = Case([10, 0], 5, (4, 2), 32, own_values=True, dtype=torch.float32)
    case.run()
    fine = Case([0, 0], 5, (4, 2), 32, own_values=True, dtype=torch.float32)
    fine.run()
    assert torch.equal(case.k[1], fine.k[1]) and torch.equal(case.v[1], fine.v[1])
    assert (case.k[0, :, :10] == 77).all() and (case.k[0, :, 10:] != 77).all()


@pytest.mark.parametrize(
    ("shared", "width", "own_values"), [(8, 256, True), (2, 512, False)], ids=["sliding", "full"]
)
def test_it_fits_a_hopper_gpu(shared: int, width: int, own_values: bool) -> None:
    names = ["qkv", "q_weight", "k_weight", "cos", "sin", "at", "q", "k", "v"]
    kinds = dict.fromkeys(names, "*bf16") | {"cos": "*fp32", "sin": "*fp32", "at": "*i64"}
    made = built(
        "diffusiongemma.kernels.triton.norm_rope:_norm_rope_write",
        kinds | {"tokens": "i32", "capacity": "i32:1", "eps": "fp32"},
        {
            "N": 16, "K": shared, "H": width, "OWN_VALUES": own_values,
            "BLOCK": ours._block(16, shared, width),
        },
    )  # fmt: skip
    assert made.spills == 0 and made.shared <= SHARED_BYTES
