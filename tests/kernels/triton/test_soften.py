"""The GPU's expected embedding is the reference's, skipped tiles are tiny, and it fits."""

import pytest
import torch
from torch import Tensor

import right_interpreter
from cross_compile import SHARED_BYTES, built
from diffusiongemma.kernels.readout import BANNED, expected_embedding
from diffusiongemma.kernels.triton import readout
from diffusiongemma.kernels.triton import soften as kernels
from diffusiongemma.kernels.triton.soften import NEGLIGIBLE

CAP = 30.0
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMATS = [torch.float32, torch.bfloat16]
HERE = "diffusiongemma.kernels.triton.soften"


@pytest.fixture(autouse=True)
def interpreter():
    with right_interpreter.right():
        yield


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks: little to compute, and many borders between them."""
    for name, size in {"ROWS": 64, "COLUMNS": 32, "DEPTH": 16, "WIDE": 64}.items():
        monkeypatch.setattr(kernels, name, size)


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def case(rows: int, vocabulary: int, dtype: torch.dtype, sharp: float = 12.0):
    """Logits from flat to peaked, temperatures, and a bias that bans every third token."""
    sharpness = torch.linspace(0.0, sharp, rows)[:, None]
    logits_SV = (torch.randn(rows, vocabulary, generator=dice()) * sharpness).to(dtype)
    bias_V = torch.randn(vocabulary, generator=dice(1))
    bias_V[::3] = BANNED
    return logits_SV, torch.linspace(0.4, 0.8, rows), bias_V


def table(vocabulary: int, width: int) -> Tensor:
    return torch.randn(vocabulary, width, generator=dice(2)).bfloat16()


def said(logits_SV, heat_S, bias_V=None) -> Tensor:
    x_SV = torch.tanh(logits_SV.float() / CAP) * CAP
    x_SV = x_SV if bias_V is None else x_SV + bias_V
    return torch.softmax(x_SV / heat_S[:, None], dim=-1)


def there(*given) -> list:
    """What was given, in the place where kernels run."""
    return [one.to(DEVICE) if isinstance(one, Tensor) else one for one in given]


def total(logits_SV, heat_S, bias_V=None) -> Tensor:
    half_S = torch.full((len(logits_SV),), 0.5, dtype=torch.float64)
    given = there(logits_SV, CAP, heat_S, half_S, bias_V)
    return readout.read(*given).log_total_S.cpu()


def soften(*given, skip: float | None = None) -> Tensor:
    """From the CPU and back to it. The logits given stay as they are."""
    logits_SV, *rest = there(*given)
    return kernels.soften(logits_SV.clone(), *rest, skip=skip).cpu()


def probabilities(logits_SV, *rest) -> Tensor:
    written = logits_SV.to(DEVICE, copy=True)
    found = kernels.probabilities_(written, *there(*rest))
    assert found is written
    return found.cpu()


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("banned", [False, True], ids=["free", "banned"])
def test_probabilities_are_the_reference_s(dtype: torch.dtype, banned: bool) -> None:
    logits_SV, heat_S, bias_V = case(21, 700, dtype)
    bias_V = bias_V if banned else None
    wanted = said(logits_SV, heat_S, bias_V)
    found = probabilities(logits_SV, CAP, heat_S, total(logits_SV, heat_S, bias_V), bias_V)
    exact = {"rtol": 1e-4, "atol": 1e-9}
    rounded = {"rtol": 2**-7, "atol": 1e-9}  # a rounding may fall to the other side
    torch.testing.assert_close(
        found.float(), wanted, **(exact if dtype == torch.float32 else rounded)
    )


def close(rows: int, vocabulary: int, width: int, banned: bool, dtype: torch.dtype) -> None:
    logits_SV, heat_S, bias_V = case(rows, vocabulary, dtype)
    bias_V = bias_V if banned else None
    embedding_VD, scale = table(vocabulary, width), torch.tensor(width**0.5).bfloat16()
    wanted = expected_embedding(said(logits_SV, heat_S, bias_V), embedding_VD, scale)
    log_total_S = total(logits_SV, heat_S, bias_V)
    found = soften(logits_SV, CAP, heat_S, log_total_S, bias_V, embedding_VD, scale)
    assert found.dtype == torch.bfloat16
    error = (found.float() - wanted.float()).norm() / wanted.float().norm()
    assert error < 4e-3  # two results rounded to bfloat16
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("banned", [False, True], ids=["free", "banned"])
@pytest.mark.parametrize(("rows", "vocabulary", "width"), [(7, 79, 32), (70, 192, 64)])
def test_it_is_the_reference_s_product(
    rows: int, vocabulary: int, width: int, banned: bool, dtype: torch.dtype, small
) -> None:
    close(rows, vocabulary, width, banned, dtype)


@pytest.mark.parametrize(("vocabulary", "width"), [(448, 256), (500, 300)])
def test_it_is_the_reference_s_product_in_blocks_of_the_true_size(
    vocabulary: int, width: int
) -> None:
    close(40, vocabulary, width, True, torch.bfloat16)


def test_of_the_same_probabilities_only_the_last_bit_differs(small) -> None:
    """The product by itself: float32 sums in another order, the same two roundings."""
    logits_SV, heat_S, _ = case(24, 1500, torch.bfloat16)
    embedding_VD, scale = table(1500, 64), torch.tensor(8.3).bfloat16()
    log_total_S = total(logits_SV, heat_S)
    p_SV = probabilities(logits_SV, CAP, heat_S, log_total_S)
    found = soften(logits_SV, CAP, heat_S, log_total_S, None, embedding_VD, scale)
    exact = (p_SV.double() @ embedding_VD.double()).bfloat16() * scale
    # A sum beside a border between two bfloat16 may be rounded to either.
    assert (found == exact).float().mean() > 0.99
    torch.testing.assert_close(found, exact, rtol=2**-6, atol=1e-6)


def test_a_row_s_bits_are_its_own(small) -> None:
    logits_SV, heat_S, bias_V = case(72, 300, torch.bfloat16)
    embedding_VD, scale = table(300, 40), torch.tensor(6.3).bfloat16()
    log_total_S = total(logits_SV, heat_S, bias_V)

    def of(part: slice) -> Tensor:
        given = (logits_SV[part], CAP, heat_S[part], log_total_S[part], bias_V)
        return soften(*given, embedding_VD, scale)

    whole = of(slice(0, 72))
    for part in (slice(0, 1), slice(3, 8), slice(60, 72)):
        assert torch.equal(of(part), whole[part])


@pytest.mark.parametrize(("rows", "vocabulary"), [(20, 1024), (37, 1000)])
def test_tiles_without_mass_are_left_out(rows: int, vocabulary: int, small) -> None:
    """Poisoned rows of the table show which tiles were read, and the rest is as it was."""
    logits_SV, heat_S, _ = case(rows, vocabulary, torch.bfloat16, 0.5)
    tiles = -(-vocabulary // kernels.DEPTH)
    dead = torch.rand(tiles, generator=dice(3)) < 0.6
    dead[0], dead[-1] = True, False
    dead_V = dead.repeat_interleave(kernels.DEPTH)[:vocabulary]
    logits_SV[:, dead_V] = -90.0
    embedding_VD, scale = table(vocabulary, 32), torch.tensor(5.6).bfloat16()
    given = (logits_SV, CAP, heat_S, total(logits_SV, heat_S), None)
    whole = soften(*given, embedding_VD, scale)
    poisoned_VD = embedding_VD.clone()
    poisoned_VD[dead_V] = float("nan")
    found = soften(*given, poisoned_VD, scale, skip=NEGLIGIBLE)
    torch.testing.assert_close(found, whole, rtol=2**-7, atol=2e-2)
    dense = soften(*given, embedding_VD, scale, skip=0.0)
    assert torch.equal(dense, whole)  # nothing is below zero


def test_what_is_not_a_number_is_never_skipped(small) -> None:
    logits_SV = torch.zeros(2, 512).bfloat16()
    logits_SV[1, 300] = float("nan")
    half_S = torch.full((2,), 0.5)
    given = (logits_SV, CAP, half_S, total(logits_SV, half_S), None, table(512, 32))
    found = soften(*given, torch.tensor(5.6).bfloat16(), skip=10.0)
    assert found[1].isnan().all()


@pytest.mark.parametrize("skip", [False, True], ids=["dense", "skipping"])
def test_the_product_fits_a_hopper_gpu(skip: bool) -> None:
    given = {"p": "*bf16", "table": "*bf16", "kept": "*i32", "parts": "*fp32"}
    given |= dict.fromkeys(("positions", "vocabulary", "width", "tiles"), "i32")
    given |= dict.fromkeys(("down", "across"), "i32:1")
    names = ("ROWS", "COLUMNS", "DEPTH", "SPLITS")
    one = built(
        f"{HERE}:_product", given,
        {"SKIP": skip, "WHOLE": True, **{name: getattr(kernels, name) for name in names}},
        warps=kernels.WARPS, stages=kernels.SKIP_STAGES if skip else kernels.STAGES,
    )  # fmt: skip
    assert one.wgmma > 0 and one.mma == 0
    assert one.spills == 0
    buffers = 4 * (kernels.ROWS + kernels.COLUMNS) * kernels.DEPTH * 2
    assert buffers <= one.shared <= SHARED_BYTES


def test_the_rest_fits_a_hopper_gpu() -> None:
    names = ("TOGETHER", "WIDE", "DEPTH")
    given = {"logits": "*bf16", "out": "*bf16"}
    given |= dict.fromkeys(("temperatures", "log_totals", "bias", "masses"), "*fp32")
    given |= dict.fromkeys(("positions", "vocabulary", "strips"), "i32") | {"cap": "fp32"}
    sizes = {name: getattr(kernels, name) for name in names}
    first = built(f"{HERE}:_probabilities", given, {"BIASED": True, "WEIGH": True, **sizes})
    given = {"masses": "*fp32", "kept": "*i32"}
    given |= dict.fromkeys(("tiles", "groups", "line"), "i32") | {"skip": "fp32"}
    second = built(f"{HERE}:_kept", given, {"TILES": 4096}, warps=kernels.WARPS)
    given = {"parts": "*fp32", "scale": "*bf16", "out": "*bf16", "count": "i32"}
    third = built(f"{HERE}:_sum", given, {"SPLITS": kernels.SPLITS, "FLAT": kernels.FLAT})
    for one in (first, second, third):
        assert one.spills == 0
        assert one.shared <= SHARED_BYTES
