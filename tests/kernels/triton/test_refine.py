"""The GPU's noise has the bits of the reference's, its decisions are the same, and both fit."""

import pytest
import torch
from torch import Tensor

import right_interpreter
from cross_compile import SHARED_BYTES, built
from diffusiongemma.diffusion.config import SamplerConfig
from diffusiongemma.diffusion.drafts import DONE, Drafts
from diffusiongemma.diffusion.step import refine as reference
from diffusiongemma.kernels import philox as noise
from diffusiongemma.kernels.ops import Ops
from diffusiongemma.kernels.readout import Readout
from diffusiongemma.kernels.refine import within_bound
from diffusiongemma.kernels.triton import refine as ours
from diffusiongemma.kernels.triton.refine import (
    BESIDE,
    DRAW,
    DRAWN,
    NOISE,
    WARPS,
    WIDEST,
)
from places import drawn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HERE = "diffusiongemma.kernels.triton.refine"
WORD = 0xFFFFFFFF


@pytest.fixture(autouse=True)
def interpreter():
    with right_interpreter.right():
        yield


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes its time for each operation, however much is in it."""
    monkeypatch.setattr(ours, "BESIDE", 128)


def there(*given) -> list:
    """What was given, in the place where kernels run."""
    return [one.to(DEVICE) if isinstance(one, Tensor) else one for one in given]


def draws(*given) -> list[Tensor]:
    return [one.cpu() for one in ours.draws(*there(*given))]


def refine(*given) -> list[Tensor]:
    return [one.cpu() for one in ours.refine(*there(*given))]


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def words(seeds: list[int]) -> Tensor:
    return torch.tensor([[seed & WORD, (seed >> 32) & WORD] for seed in seeds])


@pytest.mark.parametrize(("width", "vocabulary"), [(256, 262144), (37, 279), (300, 1000)])
def test_draws_have_the_reference_s_bits(width: int, vocabulary: int) -> None:
    some = torch.randint(-(2**63), 2**63 - 1, (40,), generator=dice()).tolist()
    seeds = [0, 1, 2**32 - 1, 2**32, 2**63 - 1, 2**64 - 1, -1, *some]
    canvases = torch.randint(0, 50, (len(seeds),), generator=dice(1))
    steps = torch.randint(0, 49, (len(seeds),), generator=dice(2))
    steps[0], canvases[1] = noise.INITIAL_STEP, 2**32 - 1
    uniform_BL, noise_BL = draws(words(seeds), canvases, steps, width, vocabulary)
    for row, seed in enumerate(seeds):
        uniform_L, noise_L = drawn(seed, int(canvases[row]), int(steps[row]), width, vocabulary)
        assert torch.equal(uniform_BL[row], uniform_L)
        assert torch.equal(noise_BL[row], noise_L)


def test_the_purposes_are_those_of_the_noise() -> None:
    assert (DRAW.value, NOISE.value) == (noise.Purpose.DRAW, noise.Purpose.NOISE)


def start(rows: int, width: int, **options) -> Drafts:
    """Canvases before their first step."""
    drafts = Drafts(1000, torch.zeros(rows, width, 1))
    drafts.open([SamplerConfig(**options)] * rows, range(rows))
    return drafts


def both(entropy_BL: Tensor, best_BL: Tensor, drafts: Drafts, seed: int = 0) -> list[Tensor]:
    """What the kernel says of a step of the drafts, after the reference has taken it."""
    rows, width = entropy_BL.shape
    token_BL, noise_BL = torch.randint(0, 1000, (2, rows, width), generator=dice(seed))
    found = refine(
        token_BL, best_BL, entropy_BL, noise_BL, drafts.best_BL, drafts.repeats_B,
        drafts.bound_B, drafts.stable_B, drafts.sure_B,
    )  # fmt: skip
    read = Readout(
        token_BL=token_BL, best_BL=best_BL, entropy_BL=entropy_BL,
        soft_BLD=torch.zeros(rows, width, 1),
    )  # fmt: skip
    reference(drafts, read, noise_BL, Ops(name="reference"))
    canvas_BL, accepted_BL, repeats_B, done_B = found
    assert torch.equal(accepted_BL, drafts.accepted_BL)
    assert torch.equal(canvas_BL, drafts.canvas_BL)
    assert torch.equal(repeats_B, drafts.repeats_B)
    assert torch.equal(done_B, drafts.flags_B == DONE)
    return found


def canvases(rows: int, width: int, seed: int) -> Tensor:
    """Entropies over many magnitudes, with equal ones and zeros among them."""
    entropy_BL = torch.rand(rows, width, generator=dice(seed)).pow(8) * 5
    entropy_BL[:, 1::5] = entropy_BL[:, :1]
    entropy_BL[:, 2::7] = 0.0
    return entropy_BL


@pytest.mark.parametrize("width", [256, 1, 37, WIDEST])
def test_it_accepts_what_the_reference_accepts(width: int, quick) -> None:
    """The very same masks: the reference's sums are float64 on a CPU, rounded as ours are."""
    rows = 60 if width == 256 else 6
    entropy_BL = canvases(rows, width, width)
    best_BL = torch.zeros(rows, width, dtype=torch.int64)
    for bound in (0.1, 0.0, 1.0):
        both(entropy_BL, best_BL, start(rows, width, entropy_bound=bound))


@pytest.mark.parametrize("width", [4, 60])
def test_it_accepts_so_in_blocks_of_the_true_size(width: int) -> None:
    entropy_BL, rest = canvases(9, width, 1), torch.zeros(9, width, dtype=torch.int64)
    both(entropy_BL, rest, start(9, width))


def test_of_equal_entropies_those_further_left_come_first() -> None:
    entropy_BL = torch.full((1, 256), 0.03)
    rest = torch.zeros(1, 256, dtype=torch.int64)
    found = both(entropy_BL, rest, start(1, 256))
    assert found[1][0].nonzero().flatten().tolist() == [0, 1, 2, 3]


def test_rows_are_refined_by_themselves_and_in_a_float32_running_sum(quick) -> None:
    """A running sum in float32 puts few positions elsewhere, and only at the very bound."""
    entropy_BL = canvases(64, 256, 5)
    best_BL = torch.zeros(64, 256, dtype=torch.int64)
    found = both(entropy_BL, best_BL, start(64, 256))
    ascending, order = entropy_BL.sort(dim=-1, stable=True)
    total = torch.zeros(64)
    for place in range(256):
        own = ascending[:, place]
        total = total + own
        before = total - own
        clear = (before - 0.1).abs() > 1e-5
        said = found[1].gather(-1, order[:, place, None])[:, 0]
        assert torch.equal(said[clear], (before <= 0.1)[clear])
    alone = both(entropy_BL[7:9], best_BL[7:9], start(2, 256))
    assert torch.equal(alone[1], found[1][7:9])
    assert torch.equal(found[1], within_bound(entropy_BL, 0.1))


@pytest.mark.parametrize("stability", [1, 2])
@pytest.mark.parametrize("width", [256, 40])
def test_it_stops_where_the_reference_stops(width: int, stability: int, quick) -> None:
    """Steps on end, of rows that settle at different times and are sure at different times."""
    rows = 12
    drafts = start(rows, width, stability_threshold=stability, confidence_threshold=0.005)
    seen = set()
    for number in range(6):
        best_BL = torch.arange(rows)[:, None].expand(rows, width).contiguous()
        best_BL[number:, number % width] += number + 1  # later rows go on changing
        level_B = torch.where(torch.arange(rows) % 3 == number % 3, 0.02, 0.004)
        entropy_BL = level_B[:, None] * torch.rand(rows, width, generator=dice(number)) * 2
        *_, done_B = both(entropy_BL, best_BL, drafts, number)
        seen |= set(done_B.tolist())
    assert seen == {True, False}


def test_each_row_has_its_own_options(quick) -> None:
    rows = 8
    drafts = start(rows, 40)
    drafts.bound_B.copy_(torch.linspace(0.0, 1.0, rows))
    drafts.sure_B.copy_(torch.tensor([0.0, 9.0] * (rows // 2)))
    drafts.stable_B.copy_(torch.tensor([0, 0, 1, 1] * (rows // 4)))
    entropy_BL, rest = canvases(1, 40, 3).expand(rows, -1), torch.zeros(rows, 40).long()
    _, accepted_BL, _, done_B = both(entropy_BL.contiguous(), rest, drafts)
    assert done_B.tolist() == [False, True, False, False] * (rows // 4)
    assert len(set(accepted_BL.sum(1).tolist())) > 3
    *_, done_B = both(entropy_BL.contiguous(), rest, drafts)
    assert done_B.tolist() == [False, True] * (rows // 2)


def test_it_fits_a_hopper_gpu() -> None:
    pointers = dict.fromkeys(("seeds", "canvases", "steps"), "*i64")
    pointers |= {"uniforms": "*fp64", "noises": "*i64"}
    first = built(
        f"{HERE}:_draws", {**pointers, "width": "i32", "vocabulary": "i32"}, {"DRAWN": DRAWN}
    )
    given = dict.fromkeys(("tokens", "bests"), "*i64") | {"entropies": "*fp32"}
    given |= dict.fromkeys(("noises", "previous", "repeats", "canvases"), "*i64")
    given |= {"accepted": "*u8", "after": "*i64", "done": "*u8"}
    given |= {"bounds": "*fp32", "stables": "*i64", "sures": "*fp32", "width": "i32"}
    second = built(f"{HERE}:_refine", given, {"WIDTH": 256, "BESIDE": BESIDE}, warps=WARPS)
    for one in (first, second):
        assert one.spills == 0
        assert one.shared <= SHARED_BYTES
