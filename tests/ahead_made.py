"""What `train.ahead` is tested with: functions that other processes find by their names."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from diffusiongemma.train.ahead import Ahead


@dataclass
class Marked:
    """The number and who made it, of some size; a file says that it was made."""

    folder: Path
    size: int = 0

    def __call__(self, number: int) -> tuple[int, int, bytes]:
        (self.folder / str(number)).touch()
        return number, os.getpid(), bytes(self.size)


class Failing:
    """Knows even numbers."""

    def __call__(self, number: int) -> int:
        if number % 2:
            raise ValueError("odd")
        return number


def read(folder: str) -> None:
    """Say who makes, then read on; being told to end, read some more and leave."""
    told: list[int] = []
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, _: told.append(number))
    # Larger than a pipe, or what is read on would have been there already.
    with Ahead(Marked(Path(folder), size=1 << 20), 2) as ahead:
        print(ahead(0)[1], ahead(1)[1], flush=True)
        number = 2
        while not told:
            ahead(number)
            number += 1
            time.sleep(0.01)
        for further in range(number, number + 6):
            ahead(further)
    print("went on, then ended", flush=True)
