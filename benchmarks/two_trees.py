"""Two source trees in turns: processor time of answers at fixed steps, and what they go through.

    python benchmarks/two_trees.py OLD/src NEW/src [--rows 1 8] [--repeats 5]

Each figure is of a process of its own, one thread, the shipped model, eight steps a canvas; old and
new take turns, and the median of each is printed with their ratio. Processor time is measured, so
that a busy machine matters less; an idle one is still better. Then the named functions and files of
the package that one `generate` calls.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ASKED = [
    "What is 17 + 25?", "Sort: 31 13 33 11 3 1 30 10", "Reverse: stone", "483 - 277 =",
    "Sort: 8 5 9", "What is 905 + 88?", "Repair: the cta sat", "Reverse: an apple",
]  # fmt: skip
FIXED = {"max_denoising_steps": 8, "confidence_threshold": 0.0, "max_new_tokens": 64}


def timed(rows: int, dtype: str, turns: int) -> float:
    """Median seconds of an answer, or of several together."""
    import diffusiongemma as dg

    gemma, found = dg.load(dtype=dtype), []
    for seed in range(turns + 2):
        start = time.process_time()
        if rows == 1:
            gemma.generate(ASKED[seed % len(ASKED)], seed=seed, **FIXED)
        else:
            gemma.generate_many(ASKED[:rows], seed=seed, **FIXED)
        found.append(time.process_time() - start)
    return statistics.median(found[2:])


def counted() -> list[int]:
    """Named functions, and files, of the package that one answer calls."""
    import diffusiongemma as dg

    gemma, root, seen = dg.load(), str(Path(dg.__file__).parent), set()
    gemma.generate(ASKED[0], seed=0)

    def look(frame, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(root) and code.co_name[0] != "<":
            seen.add((code.co_filename, code.co_qualname))

    sys.setprofile(look)
    gemma.generate(ASKED[4], seed=1)
    sys.setprofile(None)
    return [len(seen), len({file for file, _ in seen})]


def of(tree: Path, *asked: str) -> list[float]:
    """What a process says that runs this file on a tree."""
    variables = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", *asked]
    return json.loads(subprocess.run(command, env=variables, check=True, stdout=-1).stdout)


def main() -> None:
    """Take turns and print."""
    if sys.argv[1:2] == ["--child"]:
        _, _, *asked = sys.argv
        print(json.dumps([timed(int(asked[0]), asked[1], int(asked[2]))] if asked else counted()))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trees", type=Path, nargs=2)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(f"Python {platform.python_version()}, {platform.machine()}; milliseconds, old and new")
    for rows in args.rows:
        for dtype in ("float32", "bfloat16"):
            both: tuple[list[float], list[float]] = ([], [])
            for _ in range(args.repeats):
                for side, tree in zip(both, args.trees, strict=True):
                    side += of(tree, str(rows), dtype, str(24 // rows))
            old, new = map(statistics.median, both)
            print(f"{rows} rows {dtype:8} {old * 1e3:7.1f} {new * 1e3:7.1f}  {old / new:.3f}")
    for name, tree in zip(("old", "new"), args.trees, strict=True):
        functions, files = of(tree)
        print(f"{name}: {functions} functions in {files} files")


if __name__ == "__main__":
    main()
