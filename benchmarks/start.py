"""How long the command takes to say its help: median of some runs, with Python's own start apart.

python benchmarks/start.py [RUNS]
"""

import os
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python itself": ["-c", "pass"],
    "diffusiongemma --help": ["-m", "diffusiongemma", "--help"],
    "diffusiongemma chat --help": ["-m", "diffusiongemma", "chat", "--help"],
}


def spent(words: list[str]) -> tuple[float, float]:
    """Seconds of the clock, and of a processor."""
    start, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    used = after.children_user + after.children_system
    return time.perf_counter() - start, used - before.children_user - before.children_system


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    for name, words in COMMANDS.items():
        clock, processor = zip(*(spent(words) for _ in range(runs)), strict=True)
        print(
            f"{name:28} {statistics.median(clock) * 1e3:5.0f} ms, "
            f"{statistics.median(processor) * 1e3:5.0f} ms of a processor, median of {runs}"
        )


if __name__ == "__main__":
    main()
