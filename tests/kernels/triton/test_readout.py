"""The GPU's statistics of stored logits are the reference's, and fit a Hopper GPU."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor

import right_interpreter
from cross_compile import SHARED_BYTES, built
from diffusiongemma.kernels.draw import draw
from diffusiongemma.kernels.readout import BANNED, readout
from diffusiongemma.kernels.triton import readout as ours
from diffusiongemma.kernels.triton.readout import MERGE_WARPS, TILE, TILE_WARPS, Statistics

CAP = 30.0
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMATS = [torch.float32, torch.bfloat16]
HERE = "diffusiongemma.kernels.triton.readout"


@pytest.fixture(autouse=True)
def interpreter():
    with right_interpreter.right():
        yield


def read(*given) -> Statistics:
    """From the CPU and back to it."""
    found = ours.read(*(one.to(DEVICE) if isinstance(one, Tensor) else one for one in given))
    return Statistics(**{one.name: getattr(found, one.name).cpu() for one in fields(found)})


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits_of(rows: int, vocabulary: int, dtype: torch.dtype) -> Tensor:
    """Rows from flat to peaked."""
    sharpness = torch.linspace(0.0, 25.0, rows)[:, None]
    return (torch.randn(rows, vocabulary, generator=dice()) * sharpness).to(dtype)


def said(logits_SV, temperature_S, uniform_S, bias_V=None) -> dict[str, Tensor]:
    """The reference, in float64 but for the probabilities that are drawn from."""
    x_SV = torch.tanh(logits_SV.float() / CAP) * CAP
    x_SV = x_SV if bias_V is None else x_SV + bias_V
    x_SV = x_SV / temperature_S[:, None]
    log_SV = torch.log_softmax(x_SV.double(), dim=-1)
    return {
        "token_S": draw(torch.softmax(x_SV, dim=-1), uniform_S),
        "best_S": x_SV.argmax(-1),
        "entropy_S": -(log_SV.exp() * log_SV).sum(-1).float(),
        "peak_S": x_SV.amax(-1),
        "log_total_S": x_SV.double().logsumexp(-1).float(),
    }


def compare(found: Statistics, wanted: dict[str, Tensor]) -> None:
    assert torch.equal(found.best_S, wanted["best_S"])
    assert torch.equal(found.token_S, wanted["token_S"])
    for name in ("entropy_S", "peak_S", "log_total_S"):
        torch.testing.assert_close(getattr(found, name), wanted[name], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("vocabulary", [20, 3000, TILE, 2 * TILE + 1807])
@pytest.mark.parametrize("banned", [False, True], ids=["free", "banned"])
def test_it_says_what_the_reference_says(vocabulary: int, dtype: torch.dtype, banned: bool) -> None:
    logits_SV = logits_of(24, vocabulary, dtype)
    heat_S = torch.linspace(0.4, 0.8, 24)
    uniform_S = torch.rand(24, generator=dice(1), dtype=torch.float64)
    bias_V = None
    if banned:
        bias_V = torch.randn(vocabulary, generator=dice(2))
        bias_V[torch.randperm(vocabulary, generator=dice(3))[: vocabulary // 3]] = BANNED
        bias_V[: vocabulary // 5] = BANNED
    before = logits_SV.clone()
    compare(
        read(logits_SV, CAP, heat_S, uniform_S, bias_V), said(before, heat_S, uniform_S, bias_V)
    )
    assert torch.equal(logits_SV, before)


def test_it_says_what_the_whole_reference_says() -> None:
    """`kernels.readout` itself, with a ban as the engine makes it."""
    hidden = torch.randn(2, 24, 32, generator=dice())
    table = torch.randn(5000, 32, generator=dice(1))
    bias_V = torch.zeros(5000).index_fill(0, torch.tensor([0, 7, 4999]), BANNED)
    heat_B = torch.tensor([0.8, 0.55])
    uniform_BL = torch.rand(2, 24, generator=dice(2), dtype=torch.float64)
    plain = readout(
        hidden, table, cap=5.0, scale=torch.tensor(4.0), temperature_B=heat_B,
        uniform_BL=uniform_BL, bias_V=bias_V,
    )  # fmt: skip
    logits_SV = hidden.flatten(0, 1) @ table.T
    heat_S = heat_B.repeat_interleave(24)
    found = read(logits_SV, 5.0, heat_S, uniform_BL.flatten(), bias_V)
    assert torch.equal(found.best_S, plain.best_BL.flatten())
    assert torch.equal(found.token_S, plain.token_BL.flatten())
    torch.testing.assert_close(found.entropy_S, plain.entropy_BL.flatten(), rtol=1e-4, atol=1e-5)


def test_of_equal_maxima_the_first_counts() -> None:
    vocabulary = 2 * TILE + 100
    logits_SV = torch.randn(5, vocabulary, generator=dice()).bfloat16()
    for row, places in enumerate(
        [(3, 4), (TILE - 1, TILE), (TILE, 2 * TILE), (2 * TILE + 98, 2 * TILE + 99), (0, 8000)]
    ):
        for place in places:
            logits_SV[row, place] = 20.0
    logits_SV = torch.cat([logits_SV, torch.zeros(1, vocabulary).bfloat16()])
    half_S = torch.full((6,), 0.5)
    found = read(logits_SV, CAP, half_S, half_S.double())
    assert found.best_S.tolist() == [3, TILE - 1, TILE, 2 * TILE + 98, 0, 0]
    assert found.token_S[5] == vocabulary // 2
    torch.testing.assert_close(found.entropy_S[5], torch.tensor(float(vocabulary)).log())


def test_draws_at_the_very_ends_fall_on_tokens_that_have_mass() -> None:
    vocabulary = 2 * TILE + 50
    logits_SV = torch.randn(8, vocabulary, generator=dice())
    bias_V = torch.zeros(vocabulary)
    bias_V[:5], bias_V[-60:] = BANNED, BANNED  # the last tile has none at all
    heat_S = torch.full((8,), 0.6)
    for uniform, token in ((0.0, 5), (1.0 - 2.0**-53, vocabulary - 61)):
        uniform_S = torch.full((8,), uniform, dtype=torch.float64)
        assert (read(logits_SV, CAP, heat_S, uniform_S, bias_V).token_S == token).all()
    peaked_SV = torch.full((2, vocabulary), -200.0)  # x spans more than float32's exponents
    peaked_SV[0, TILE + 3] = 200.0
    peaked_SV[1, vocabulary - 1] = 200.0
    for uniform in (0.0, 0.3, 1.0 - 2.0**-53):
        uniform_S = torch.full((2,), uniform, dtype=torch.float64)
        found = read(peaked_SV, CAP, heat_S[:2], uniform_S)
        assert found.best_S.tolist() == [TILE + 3, vocabulary - 1]
        if uniform:
            assert torch.equal(found.token_S, found.best_S)
    assert (found.entropy_S < 1e-30).all()


def test_draws_follow_the_probabilities() -> None:
    """A grid of uniforms gives each token its share, to within one cell."""
    logits_SV = (torch.randn(1, 40, generator=dice()) * 3).expand(60, 40).contiguous()
    heat_S = torch.full((60,), 0.8)
    uniform_S = (torch.arange(60, dtype=torch.float64) + 0.5) / 60
    found = read(logits_SV, CAP, heat_S, uniform_S)
    share = torch.bincount(found.token_S, minlength=40) / 60
    p_V = torch.softmax(torch.tanh(logits_SV[0] / CAP) * CAP / 0.8, dim=-1)
    assert (share - p_V).abs().max() <= 1 / 60
    assert (found.token_S.diff() >= 0).all()


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_a_row_s_bits_are_its_own(dtype: torch.dtype) -> None:
    logits_SV = logits_of(12, TILE + 333, dtype)
    heat_S = torch.linspace(0.4, 0.8, 12)
    uniform_S = torch.rand(12, generator=dice(1), dtype=torch.float64)
    whole = read(logits_SV, CAP, heat_S, uniform_S)
    for part in (slice(0, 1), slice(3, 8), slice(11, 12)):
        some = read(logits_SV[part], CAP, heat_S[part], uniform_S[part])
        for name in Statistics.__slots__:
            assert torch.equal(getattr(some, name), getattr(whole, name)[part])


def test_what_is_not_a_number_stays_within_bounds_and_is_seen() -> None:
    logits_SV = torch.full((2, 300), float("nan"))
    logits_SV[1] = 1.0
    logits_SV[1, 7] = float("nan")
    half_S = torch.full((2,), 0.5)
    found = read(logits_SV, CAP, half_S, half_S.double())
    assert found.entropy_S.isnan().all()
    for ids_S in (found.token_S, found.best_S):
        assert ((ids_S >= 0) & (ids_S < 300)).all()


@pytest.mark.parametrize(("kind", "biased"), [("*bf16", False), ("*fp32", True)])
def test_it_fits_a_hopper_gpu(kind: str, biased: bool) -> None:
    numbers = {"vocabulary": "i32", "tiles": "i32", "cap": "fp32"}
    given = {"logits": kind, "temperatures": "*fp32", "bias": "*fp32"}
    constants = {"BIASED": biased, "TILE": TILE}
    first = built(
        f"{HERE}:_tiles", {**given, "parts": "*fp32", **numbers}, constants, warps=TILE_WARPS
    )
    results = {"uniforms": "*fp64", "parts": "*fp32", "token": "*i64", "best": "*i64"}
    results |= dict.fromkeys(("entropy", "peaks", "log_totals"), "*fp32")
    second = built(
        f"{HERE}:_merge", {**given, **results, **numbers}, {**constants, "TILES": 64},
        warps=MERGE_WARPS,
    )  # fmt: skip
    for one in (first, second):
        assert one.spills == 0
        assert one.shared <= SHARED_BYTES
    assert first.registers <= 96  # five blocks of four warps a multiprocessor
