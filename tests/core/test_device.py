"""How many threads a program computes with."""

import os
import subprocess
import sys

import pytest
import torch

from diffusiongemma.cli.main import main

SCRIPT = """
import torch
from diffusiongemma.core.device import settle_threads
torch.set_num_threads(3)
settle_threads(torch.device({device!r}), {count})
print(torch.get_num_threads())
"""


@pytest.mark.parametrize(
    ("device", "count", "environment", "threads"),
    [
        ("cpu", 2_000_000, {}, 1),
        ("cpu", 2_000_000, {"OMP_NUM_THREADS": "2"}, 3),  # the user's word stands
        ("cpu", 500_000_000, {}, 3),
        ("meta", 2_000_000, {}, 3),
    ],
)
def test_small_networks_take_one(
    device: str, count: int, environment: dict[str, str], threads: int
) -> None:
    clean = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(device=device, count=count)],
        env=clean | environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) == threads


def test_a_verb_answers_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert main(["run", "Reverse: ab", "--device", "cpu"]) == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
