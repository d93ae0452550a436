"""What the entropy bound buys: how often the small model is right, and in how many steps.

    python recipes/bound.py [--count 400] [-m FOLDER]

Problems are held out, and others than those of `diffusiongemma evaluate`, so that a bound may be
chosen by this table and judged by that one. Prints a Markdown table.
"""

import argparse
from statistics import mean

import torch

from diffusiongemma.engine.open import load
from diffusiongemma.evals.run import evaluate
from diffusiongemma.evals.tasks import TASKS

BOUNDS = (0.5, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)
SEED = 77


def main() -> None:
    """Ask, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=400, help="problems of each task")
    parser.add_argument("-m", "--model", help="a folder; the small model if none is given")
    given = parser.parse_args()
    gemma = load(given.model, device="cpu")
    torch.set_num_threads(1)
    print("| bound |", " | ".join(TASKS), "|")
    print("|--:|" + "--:|" * len(TASKS))
    for bound in BOUNDS:
        cells = []
        for name in TASKS:
            asked = list(
                evaluate(gemma, [name], given.count, by_shape=False, seed=SEED, entropy_bound=bound)
            )
            right = mean(record.right for record in asked)
            steps = mean(step for record in asked for step in record.steps)
            cells.append(f"{100 * right:.1f} %, {steps:.1f}")
        print(f"| {bound} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
