"""Time on a device: pieces of work replayed as graphs where that is possible, and the limits.

On a CPU everything runs as it is, for rehearsal.
"""

import gc
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

Work = Callable[[], object]


class Clock:
    """Times work on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"

    def wait(self) -> None:
        """Until the device has done all that it was told."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def once(self, work: Work) -> float:
        """Seconds on the wall, until the device is done."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def captured(self, work: Work) -> Work:
        """The same work as a graph, or itself on a CPU, or where it cannot be captured."""
        if not self.cuda:
            return work
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.no_grad(), torch.cuda.stream(side):
            work()
            work()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            work()
        return graph.replay

    def seconds(self, work: Work, rounds: int = 20) -> float:
        """Median seconds of work that runs many times, one after the other."""
        with torch.no_grad():
            ready = self.captured(work)
            for _ in range(2):
                ready()
            if not self.cuda:
                return statistics.median(self.once(ready) for _ in range(min(rounds, 3)))
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
            marks[0].record()
            for mark in marks[1:]:
                ready()
                mark.record()
            self.wait()
            pairs = itertools.pairwise(marks)
            return statistics.median(one.elapsed_time(two) for one, two in pairs) / 1e3

    def release(self) -> None:
        """Give back memory that nobody uses: transformers' networks hold themselves in a circle."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def peak(self) -> int | None:
        """Most bytes of device memory held since `forget`; None on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.cuda else None

    def forget(self) -> None:
        """Count the peak from here on."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)


def limits(clock: Clock) -> dict[str, float]:
    """Bytes a second that are read, operations a second of bfloat16 and FP8 products, and seconds
    that an empty kernel of a graph takes.
    """
    big = 8 << 30 if clock.cuda else 64 << 20
    found = {"read_bytes_per_second": big / _reading(clock, big)}
    size = 8192 if clock.cuda else 512
    found["bfloat16_flops_per_second"] = 2 * size**3 / clock.seconds(_product(size, clock.device))
    eight = _product_fp8(size, clock.device)
    if eight is not None:
        found["fp8_flops_per_second"] = 2 * size**3 / clock.seconds(eight)
    few, many = torch.zeros(1, device=clock.device), 350
    found["launch_seconds"] = clock.seconds(lambda: [few.zero_() for _ in range(many)]) / many
    return found


# What the makers promise: bytes read a second, operations a second of bfloat16 and FP8 products.
_SHEETS = {
    "H200": (4.8e12, 989e12, 1979e12),
    "H100": (3.35e12, 989e12, 1979e12),
    "RTX 5090": (1.79e12, 210e12, 419e12),
}


def data_sheet(device: torch.device) -> dict[str, float]:
    """The same from the maker's data sheet, for floors where measuring the limits failed; empty for
    a device that is not known.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    for part, figures in _SHEETS.items():
        if part in name:
            names = ("read_bytes_per_second", "bfloat16_flops_per_second", "fp8_flops_per_second")
            return dict(zip(names, figures, strict=True))
    return {}


def _reading(clock: Clock, size: int) -> float:
    data = torch.ones(size // 4, dtype=torch.float32, device=clock.device)
    return clock.seconds(lambda: _read(data))


def _read(data: Tensor) -> Tensor:
    """Read everything, write next to nothing."""
    if data.is_cuda and not _plain(data.device):
        from diffusiongemma.kernels.triton.probe import read

        return read(data)
    return data.view(-1, 1 << 14).amax(-1)


def _plain(device: torch.device) -> bool:
    from diffusiongemma.kernels.ops import no_triton

    return no_triton(device) is not None


def _product(size: int, device: torch.device) -> Work:
    one, two = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    return lambda: one @ two


def _product_fp8(size: int, device: torch.device) -> Work | None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        return None
    one, two = (torch.randn(size, size, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    row, column = torch.ones(size, 1, device=device), torch.ones(1, size, device=device)
    return lambda: torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
        one, two.t(), scale_a=row, scale_b=column, out_dtype=torch.bfloat16, use_fast_accum=True
    )
