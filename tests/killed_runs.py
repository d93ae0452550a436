"""A training run that is killed before each call that touches a file, and then goes on.

A program of its own, on one thread, so that it can fork.
"""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import torch

from killed_writes import killed, moments
from train_run import log, names, run
from train_toy import CONFIG

FEW = dataclasses.replace(CONFIG, steps=3, batch=2, save_every=1)
NEVER = 1 << 30


def finish(folder: Path, said: Path) -> None:
    """Train to the end in a child, and have it say what came out."""

    def work() -> None:
        weights = run(folder, FEW).numpy().tobytes().hex()
        found = {"weights": weights, "log": log(folder), "names": names(folder)}
        said.write_text(json.dumps(found))

    assert not killed(work, NEVER, folder)


def main(place: Path) -> None:
    """Print, for each moment, what was there after the kill and whether the run came out right."""
    torch.set_num_threads(1)
    place.mkdir()
    folder, said = place / "run", place / "said"
    run(place / "warm", FEW)  # what a first step imports, the children have

    def begin() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    finish(folder, said)
    unbroken = said.read_text()
    for _ in moments(lambda: run(folder, FEW), begin, folder):
        there = names(folder) if folder.exists() else []
        whole = [path.parent.parent for path in folder.glob(".*.partial/whole/step-*")]
        finish(folder, said)
        same = said.read_text() == unbroken
        print(json.dumps({"there": there, "whole": len(whole), "same": same}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
