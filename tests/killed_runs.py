"""A training run that is killed before each call that touches a file, and then goes on.

A program of its own, on one thread, so that it can fork.
"""

import contextlib
import dataclasses
import json
import shutil
import sys
from pathlib import Path

import torch

from diffusiongemma.train.config import TrainConfig
from killed_writes import killed, moments
from train_run import log, names, run
from train_toy import CONFIG

FEW = dataclasses.replace(CONFIG, steps=3, batch=2, save_every=1)
ONE = dataclasses.replace(FEW, steps=1)
NEVER = 1 << 30


class _LeftError(Exception):
    pass


def _leave(line: dict) -> None:
    if line["step"] == FEW.steps:
        raise _LeftError


def finish(folder: Path, said: Path, config: TrainConfig) -> None:
    """Train to the end in a child, and have it say what came out."""

    def work() -> None:
        weights = run(folder, config).numpy().tobytes().hex()
        found = {"weights": weights, "log": log(folder), "names": names(folder)}
        said.write_text(json.dumps(found))

    assert not killed(work, NEVER, folder)


def main(place: Path) -> None:
    """Print, for each moment, what was there after the kill and whether the run came out right.

    A run's first checkpoint, and one that has two before it, of which it removes one.
    """
    torch.set_num_threads(1)
    place.mkdir()
    folder, said, before = place / "run", place / "said", place / "before"
    with contextlib.suppress(_LeftError):  # and what a first step imports, the children have
        run(before, FEW, report=_leave)
    for config, start in ((ONE, None), (FEW, before)):

        def begin(start: Path | None = start) -> None:
            shutil.rmtree(folder, ignore_errors=True)
            if start is not None:
                shutil.copytree(start, folder)

        begin()
        finish(folder, said, config)
        unbroken = said.read_text()
        for _ in moments(lambda config=config: run(folder, config), begin, folder):
            there = names(folder) if folder.exists() else []
            whole = [path.parent.parent for path in folder.glob(".*.partial/whole/step-*")]
            finish(folder, said, config)
            same = said.read_text() == unbroken
            print(json.dumps({"there": there, "whole": len(whole), "same": same}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
