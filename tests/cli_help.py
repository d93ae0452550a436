"""What the tests of the command share: how it is called, and what it leaves behind."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
QUICK = ["--seed", "3", "--max-new-tokens", "20", "--max-denoising-steps", "4"]
ENDLESS = ["--max-denoising-steps", str(10**9)]  # the first canvas outlasts whoever watches it
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT / "src"),
    "PYTHONUNBUFFERED": "",  # as usual, output is written when it is flushed
    "OMP_NUM_THREADS": "1",
}
COMMAND = [sys.executable, "-W", "error", "-m", "diffusiongemma"]


def edit(file: Path, **changes: object) -> None:
    """Change keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str


Call = Callable[..., Done]


class Clock:
    """A clock of the test's own. Looking takes no time; a step takes what the test says."""

    def __init__(self) -> None:
        self.now, self.slept = 5.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now = round(self.now + seconds, 6)
        self.slept.append(round(seconds, 6))
