"""How often a model is right on each shape of the second edition's tasks, the worst first.

    python recipes/shapes.py [--count 40] [-m FOLDER]

As `diffusiongemma evaluate`, which asks what the shipped model was taught. Prints Markdown tables.
"""

import argparse
from pathlib import Path

import torch

from diffusiongemma.engine.open import load
from diffusiongemma.evals.report import rows, shapes, table
from diffusiongemma.evals.run import evaluate
from diffusiongemma.evals.tasks import NEXT

SECOND = Path(__file__).parent / "second"


def main() -> None:
    """Ask, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=40, help="problems of each shape")
    parser.add_argument("-m", "--model", default=str(SECOND), help="a folder")
    given = parser.parse_args()
    gemma = load(given.model, device="cpu")
    torch.set_num_threads(1)
    records = list(evaluate(gemma, list(NEXT), given.count, tasks=NEXT, batch=64))
    print(f"{table(rows(records))}\n\n{table(shapes(records))}")


if __name__ == "__main__":
    main()
