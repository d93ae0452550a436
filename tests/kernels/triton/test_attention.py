"""Attention over fixed buffers: interpreted against the reference, and compiled for sm_90."""

import pytest
import torch
from torch import Tensor

import right_interpreter
from cross_compile import SHARED_BYTES, built
from diffusiongemma.kernels.attention import attend
from diffusiongemma.kernels.quantised import quantise_rows
from diffusiongemma.kernels.triton import attention as ours
from diffusiongemma.kernels.triton.attention import Tile, attend_canvas, attend_causal
from diffusiongemma.model import masks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMATS = [torch.float32, torch.bfloat16]
HERE = "diffusiongemma.kernels.triton.attention"


@pytest.fixture(autouse=True)
def interpreter():
    with right_interpreter.right():
        yield


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles and shares: little to compute, and many borders between them."""
    for name in ("NARROW", "TEXT"):
        tile = Tile(rows=32, keys=16, halves=1, warps=4, stages=2)
        monkeypatch.setattr(ours, name, tile)
    monkeypatch.setattr(ours, "SHARE", 64)


def normal(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    dice = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=dice).to(dtype).to(DEVICE)


def close(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}


def numbers(*values: int) -> Tensor:
    return torch.tensor(values, device=DEVICE)


class Case:
    """Queries, and buffers that hold keys within each row's range, and elsewhere what must not be
    read."""

    def __init__(
        self,
        tokens: int,
        ranges: list[tuple[int, int]],
        *,
        heads: tuple[int, int] = (2, 1),
        capacity: int = 60,
        width: int = 16,
        dtype: torch.dtype = torch.float32,
        elsewhere: float = float("nan"),
    ) -> None:
        count, shared = heads
        self.ranges = ranges
        # Small enough that no key takes all: a mistake in any of them shows.
        self.q = normal(len(ranges), tokens, count, width, seed=0, dtype=dtype) / width**0.5
        self.k = torch.full((len(ranges), shared, capacity, width), elsewhere).to(self.q)
        self.v = self.k.clone()
        for row, (first, end) in enumerate(ranges):
            size = (shared, end - first, width)
            self.k[row, :, first:end] = normal(*size, seed=2 * row + 1, dtype=dtype)
            self.v[row, :, first:end] = normal(*size, seed=2 * row + 2, dtype=dtype)
        self.first = numbers(*(first for first, _ in ranges))
        self.end = numbers(*(end for _, end in ranges))

    def canvas(self) -> Tensor:
        return attend_canvas(self.q, self.k, self.v, self.first, self.end)

    def causal(self, window: int | None) -> Tensor:
        return attend_causal(self.q, self.k, self.v, self.first, self.end, window)

    def only(self, *rows: int) -> "Case":
        part = object.__new__(Case)
        for name in ("q", "k", "v", "first", "end"):
            setattr(part, name, getattr(self, name)[list(rows)].contiguous())
        part.ranges = [self.ranges[row] for row in rows]
        return part

    def said(self, causal: bool, window: int | None = None) -> Tensor:
        """The reference, row by row."""
        parts, tokens = [], self.q.shape[1]
        for row, (first, end) in enumerate(self.ranges):
            key_C = torch.arange(first, end, device=DEVICE)
            query_T = torch.arange(end - tokens, end, device=DEVICE)
            mask = None
            if causal:
                mask = masks.causal(query_T, key_C)
                mask = mask if window is None else masks.window(query_T, key_C, window)
            seen = slice(first, end)
            parts.append(attend(self.q[row], self.k[row, :, seen], self.v[row, :, seen], mask))
        return torch.stack(parts)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize(
    ("tokens", "heads", "capacity"),
    [
        (1, (2, 2), 50),
        (11, (4, 2), 60),  # one program for all keys
        (11, (4, 2), 150),  # three share them, and in short rows some have none
        (20, (4, 2), 150),  # two tiles of queries
        (10, (8, 1), 150),
    ],
)
def test_a_canvas(
    tokens: int, heads: tuple[int, int], capacity: int, dtype: torch.dtype, small: None
) -> None:
    """Ragged rows: full, with a context that has been forgotten in part, and without one."""
    ranges = [(0, capacity), (capacity // 3, capacity // 3 + 31), (0, tokens), (5, 5 + tokens)]
    case = Case(tokens, ranges, heads=heads, capacity=capacity, dtype=dtype)
    torch.testing.assert_close(case.canvas(), case.said(causal=False), **close(dtype))


@pytest.mark.parametrize("capacity", [100, 300], ids=["whole", "split"])
@pytest.mark.parametrize("causal", [False, True], ids=["canvas", "causal"])
@pytest.mark.parametrize("width", [16, 256, 512])
def test_true_tiles(width: int, causal: bool, capacity: int) -> None:
    """Those of the 26B model; of 512 channels two programs make a half each."""
    case = Case(17, [(4, 93)], capacity=capacity, heads=(8, 1), width=width, dtype=torch.bfloat16)
    out = case.causal(None) if causal else case.canvas()
    torch.testing.assert_close(out, case.said(causal), **close(torch.bfloat16))


@pytest.mark.parametrize(
    ("window", "dtype"),
    [
        (None, torch.float32), (1, torch.float32), (16, torch.float32), (50, torch.float32),
        (None, torch.bfloat16), (7, torch.bfloat16),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(("tokens", "capacity"), [(1, 60), (20, 60), (20, 150), (40, 150)])
def test_a_prompt(
    tokens: int, capacity: int, window: int | None, dtype: torch.dtype, small: None
) -> None:
    """Chunks longer and shorter than the window; the first, and later ones; forgotten tokens."""
    ranges = [(0, tokens), (0, capacity), (capacity // 4, capacity // 4 + tokens + 4)]
    case = Case(tokens, ranges, capacity=capacity, dtype=dtype)
    torch.testing.assert_close(case.causal(window), case.said(True, window), **close(dtype))


@pytest.mark.parametrize("capacity", [60, 150], ids=["whole", "split"])
def test_a_window_ends_where_it_should(capacity: int, small: None) -> None:
    """A query sees itself and W - 1 tokens before it: not the one before them, not the next."""
    case = Case(40, [(0, 55)], capacity=capacity)
    before = case.causal(12)
    for key in (4, 15, 31, 54):
        twin = case.only(0)
        twin.k[0, :, key], twin.v[0, :, key] = 30.0, 1e4
        changed = (twin.causal(12) != before).any(-1).any(-1)[0]
        index = torch.arange(15, 55, device=DEVICE)
        assert torch.equal(changed, (index >= key) & (index < key + 12))


@pytest.mark.parametrize("elsewhere", [float("nan"), 1e30])
@pytest.mark.parametrize("capacity", [60, 150], ids=["whole", "split"])
def test_what_is_out_of_range_does_not_leak(capacity: int, elsewhere: float, small: None) -> None:
    ranges = [(0, 50), (9, 32), (capacity - 20, capacity)]
    clean = Case(20, ranges, capacity=capacity, elsewhere=0.0)
    dirty = Case(20, ranges, capacity=capacity, elsewhere=elsewhere)
    assert torch.equal(dirty.canvas(), clean.canvas())
    assert torch.equal(dirty.causal(11), clean.causal(11))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("capacity", [60, 150], ids=["whole", "split"])
def test_a_row_s_bits_are_its_own(capacity: int, dtype: torch.dtype, small: None) -> None:
    """Alone, among others, in another order."""
    case = Case(20, [(0, 57), (7, 30), (35, 55)], capacity=capacity, dtype=dtype)
    for call in (lambda x: x.canvas(), lambda x: x.causal(18)):
        together = call(case)
        assert torch.equal(call(case.only(1)), together[[1]])
        assert torch.equal(call(case.only(2, 0)), together[[2, 0]])


@pytest.mark.parametrize("capacity", [60, 150], ids=["whole", "split"])
def test_where_the_keys_lie_does_not_matter(capacity: int, small: None) -> None:
    """A sliding layer's buffer is cut back and its keys move."""
    case, moved = Case(20, [(0, 40)], capacity=capacity), Case(20, [(13, 53)], capacity=capacity)
    assert torch.equal(case.canvas(), moved.canvas())
    assert torch.equal(case.causal(12), moved.causal(12))
    moved.first += 9  # what no window reaches may be forgotten
    assert torch.equal(case.causal(12), moved.causal(12))


@pytest.mark.parametrize("capacity", [60, 150], ids=["whole", "split"])
def test_a_row_without_keys(capacity: int, small: None) -> None:
    case = Case(20, [(40, 40), (0, 50)], capacity=capacity)
    for out in (case.canvas(), case.causal(None), case.causal(5)):
        assert (out[0] == 0).all() and out.isfinite().all()


def test_programs_of_the_26b_model_fill_an_h200_once() -> None:
    """Sliding layers have 4 tiles of queries for each of 8 key heads, full ones 16 for 2, twice."""
    for capacity, heads, group, tile in ((2558, 8, 2, ours.NARROW), (4096, 2, 8, ours.WIDE)):
        tiles = -(-256 * group // tile.rows) * heads * tile.halves
        assert tiles * ours.splits(256, heads, group, capacity, tile) == 128
        assert ours.splits(1024, heads, group, capacity, tile) == 1


@pytest.mark.parametrize(
    ("width", "causal", "window", "whole"),
    [
        (256, False, 0, False),
        (256, True, 1024, True),
        (512, False, 0, False),
        (512, True, 0, True),
    ],
)
def test_it_fits_a_hopper_gpu(width: int, causal: bool, window: int, whole: bool) -> None:
    narrow = ours.TEXT if causal else ours.NARROW
    tile, heads, group = (narrow, 8, 2) if width == 256 else (ours.WIDE, 2, 8)
    kinds = dict.fromkeys(["q", "k", "v"], "*bf16") | dict.fromkeys(["first", "end"], "*i64")
    kinds |= {"out": "*bf16" if whole else "*fp32", "peak": "*fp32", "mass": "*fp32"}
    made = built(
        f"{HERE}:_attend",
        kinds | {"tokens": "i32", "capacity": "i32:1"},
        {
            "HEADS": heads, "GROUP": group, "H": width, "CAUSAL": causal, "WINDOW": window,
            "WHOLE": whole, "HALVES": tile.halves, "BLOCK_M": tile.rows, "BLOCK_N": tile.keys,
        },
        warps=tile.warps, stages=tile.stages,
    )  # fmt: skip
    assert made.wgmma > 0 and made.mma == 0
    assert made.spills == 0 and made.shared <= SHARED_BYTES


@pytest.mark.parametrize("eight", [False, True], ids=["bfloat16", "e4m3"])
@pytest.mark.parametrize("width", [256, 512])
def test_the_second_kernel_fits_a_hopper_gpu(width: int, eight: bool) -> None:
    kind, parts = ("fp8e4nv" if eight else "bf16"), 2
    made = built(
        f"{HERE}:_combine",
        {"part": "*fp32", "peak": "*fp32", "mass": "*fp32", "out": f"*{kind}", "scales": "*fp32",
         "lines": "i32"},
        {"H": width, "SPLITS": parts, "EIGHT": eight,
         "BLOCK": 16 if eight else ours.COMBINED // width},
        warps=8 if eight else 4,
    )  # fmt: skip
    assert made.spills == 0 and made.shared <= SHARED_BYTES


@pytest.mark.parametrize("capacity", [60, 150], ids=["whole", "split"])
@pytest.mark.parametrize("heads", [(4, 2), (6, 2)], ids=["four heads", "six heads"])
def test_rows_in_e4m3_are_the_answer_s(heads: tuple[int, int], capacity: int, small: None) -> None:
    """All heads of a query have one scale."""
    ranges = [(0, capacity), (3, 40)]
    case = Case(11, ranges, heads=heads, capacity=capacity, dtype=torch.bfloat16)
    given = (case.q, case.k, case.v, case.first, case.end)
    for rows, whole in (
        (ours.canvas_rows(*given), case.canvas()),
        (ours.causal_rows(*given, 7), case.causal(7)),
    ):
        q, scale = quantise_rows(whole.flatten(0, 1).flatten(1))
        assert torch.equal(rows.scale, scale)
        assert torch.equal(rows.q.view(torch.uint8), q.view(torch.uint8))
