"""Two sides, the same work, in turns: what it takes in time and memory.

Sides take turns so that whatever else the machine does hits both. Times are of the wall clock; the
processor's time stands beside them and tells how much of the wall was waiting for another process.
"""

import contextlib
import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

AT_LEAST = 0.25  # seconds of steps in a turn; a step of the small model is a thousandth of that


@runtime_checkable
class Side(Protocol):
    """What is measured."""

    name: str

    def prepare(self, ids_BT: Tensor, steps: int) -> None:
        """Encode prompts, so that steps can follow."""
        ...

    def step(self) -> None:
        """One denoising step of every row."""
        ...

    def generate(self, ids_BT: Tensor, steps: int, canvases: int) -> int:
        """Whole answers; gives the steps of a canvas."""
        ...


@dataclass
class Samples:
    """What was seen of one side in one case.

    Attributes:
        step: seconds of each step.
        step_cpu: processor seconds of each step.
        answer: seconds of each whole generation.
        working_bytes: memory of a step beyond what is held between steps; None where unknown.
        peak_bytes: the process's memory at that peak, weights of all sides included.
    """

    step: list[float] = field(default_factory=list)
    step_cpu: list[float] = field(default_factory=list)
    answer: list[float] = field(default_factory=list)
    working_bytes: int | None = None
    peak_bytes: int | None = None

    def report(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "step_seconds": spread(self.step),
            "step_cpu_seconds": spread(self.step_cpu),
            "answer_seconds": spread(self.answer),
            "working_bytes": self.working_bytes,
            "peak_bytes": self.peak_bytes,
        }


def spread(samples: Sequence[float]) -> dict[str, float | int]:
    """Minimum, median, maximum, and of how many."""
    if not samples:
        return {"count": 0}
    return {
        "count": len(samples),
        "min": min(samples),
        "median": statistics.median(samples),
        "max": max(samples),
    }


def compare(
    sides: Sequence[Side],
    ids_BT: Tensor,
    *,
    steps: int,
    canvases: int,
    rounds: int,
    tell: Callable[[str], None],
) -> dict[str, Samples]:
    """Measure all sides in turns.

    Args:
        sides: who takes part; each has its network open.
        ids_BT: the prompts.
        steps: denoising steps of a canvas.
        canvases: of a whole answer; 0 generates none.
        rounds: turns of each side.
        tell: is given a word on what runs now.
    """
    seen = {side.name: Samples() for side in sides}
    for side in sides:
        tell(f"{side.name}: warm-up")
        side.prepare(ids_BT, steps)
        for _ in range(3):
            side.step()
        seen[side.name].working_bytes, seen[side.name].peak_bytes = memory_of(side.step)
    for turn in range(rounds):
        for side in sides:
            tell(f"{side.name}: steps, {turn + 1} of {rounds}")
            _steps(side, seen[side.name])
    for turn in range(min(rounds, 3) if canvases else 0):
        for side in sides:
            tell(f"{side.name}: answers, {turn + 1} of {min(rounds, 3)}")
            start = time.perf_counter()
            taken = side.generate(ids_BT, steps, canvases)
            seen[side.name].answer.append(time.perf_counter() - start)
            assert taken == steps, f"{side.name} took {taken} steps a canvas, not {steps}"
    return seen


def _steps(side: Side, seen: Samples) -> None:
    begun = time.perf_counter()
    while time.perf_counter() - begun < AT_LEAST:
        wall, cpu = time.perf_counter(), time.process_time()
        side.step()
        seen.step.append(time.perf_counter() - wall)
        seen.step_cpu.append(time.process_time() - cpu)


def memory_of(work: Callable[[], None]) -> tuple[int | None, int | None]:
    """Bytes that some work needs at its peak beyond what is held before, and the whole peak.

    Linux alone can say; elsewhere both are None.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # so that what was freed before does not hide the need
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
        before = _status("VmRSS")
        work()
        peak = _status("VmHWM")
    except OSError:
        work()
        return None, None
    if before is None or peak is None:
        return None, None
    return peak - before, peak


def _status(name: str) -> int | None:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return None
