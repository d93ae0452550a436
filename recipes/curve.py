"""The course of a run, or of several that went on from each other: the denoiser's loss by step.

pip install matplotlib
python recipes/curve.py recipes/small.jsonl recipes/small-again.jsonl recipes/small-third.jsonl \\
    docs/pictures/curve.svg
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot


def main() -> None:
    """Read the log, draw."""
    *logs, picture = map(Path, sys.argv[1:])
    lines, borders = [], [0]
    for log in logs:
        run = [json.loads(line) for line in log.read_text().splitlines()]
        lines += [line | {"step": line["step"] + borders[-1]} for line in run]
        borders.append(lines[-1]["step"])
    # Batches of records are told by their encoder: sentences and JSON are easier to guess.
    records = [line for line in lines if line["encoder"] < 0.3]
    short = [line for line in lines if line["encoder"] >= 0.3]
    pyplot.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "1", "font.family": "sans-serif"}
    figure, axes = pyplot.subplots(figsize=(7.2, 3.2), layout="constrained")
    for part, colour, name in (
        (short, "#e8710a", "sums, sorting, reversing, sudoku"),
        (records, "#1f5fbf", "records"),
    ):
        across = [line["step"] for line in part]
        axes.plot(
            across, [line["denoiser"] for line in part], ".", ms=2.5, color=colour, label=name
        )
    for border in borders[1:-1]:
        axes.axvline(border, color="#999999", lw=0.8, ls=":")
    axes.set(yscale="log", ylim=(3e-4, 6), xlabel="step", ylabel="denoiser's loss, nats a position")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, markerscale=4)
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    main()
