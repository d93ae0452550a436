"""What all tests share: kernels that run without a GPU, and the closing summary with the figures
that the suite measured.
"""

import os
import signal
import statistics

import pytest
import torch

from diffusiongemma.kernels.native import build
from settled import Settled

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is made

# A shell starts background jobs with Ctrl-C ignored, and nohup so with SIGHUP. What is started from
# there would ignore them too, and the tests send them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)  # ours alone: a new program has the default


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks go through torch's operations, as large ones do, and not in one call."""
    monkeypatch.setattr(build, "_found", lambda: (None, "off in this test"))


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> Settled:
    """What is put on the disk, and when."""
    if not os.path.exists("/proc/self/fd"):
        pytest.skip("needs /proc to see what is settled")
    return Settled(monkeypatch)


@pytest.fixture(params=["in one call", "by operations"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of a small network through its layers."""
    if request.param == "by operations":
        request.getfixturevalue("plain")
    elif build.library() is None:
        pytest.skip(f"no compiled trunk here: {build.reason()}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the exactness suite found, beside what it allows."""
    found: dict[str, list] = {}
    for kind in ("passed", "failed"):
        for report in terminalreporter.getreports(kind):
            for name, value in report.user_properties:
                found.setdefault(name, []).append((value, report.nodeid))
    if "exactness" in found:
        pairs = [(value, node) for value, node in found["exactness"]]
        (difference, allowance), node = max(pairs, key=lambda x: x[0][0] / x[0][1])
        largest = max(value[0] for value, _ in pairs)
        terminalreporter.section("exactness against transformers")
        terminalreporter.line(
            f"{len(pairs)} comparisons of logits; largest difference {largest:.1e}; nearest to its "
            f"allowance: {difference:.1e} of {allowance:.1e}, {node.rpartition('::')[2]}"
        )
    for ratio, _ in found.get("bfloat16", []):
        terminalreporter.line(
            f"bfloat16: median error {ratio:.2f} times that of transformers (1.10 is allowed)"
        )
    ratios = [ratio for ratio, _ in found.get("native", [])]
    if ratios:
        terminalreporter.line(
            f"small networks in one call: median error {statistics.median(ratios):.2f} times that "
            f"of transformers, both against float64; {len(ratios)} networks"
        )
    for (name, broken, allowance), _ in found.get("break", []):
        terminalreporter.line(f"broken on purpose: {name}: {broken:.1e}, allowed {allowance:.1e}")
    for line, _ in found.get("measured", []):
        terminalreporter.line(line)
    runs = [value for value, _ in found.get("generate", [])]
    if runs:
        ended, early = sum(run[0] for run in runs), sum(run[1] for run in runs)
        terminalreporter.line(
            f"{len(runs)} answers equal to transformers' generate token by token: {ended} reached "
            f"an end mark, {early} stopped a canvas early, {sum(run[2] for run in runs)} canvases"
        )
