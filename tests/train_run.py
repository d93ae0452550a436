"""What the tests of training share: a run, and whether two of them are the same."""

import json
from pathlib import Path
from typing import Any

import torch

from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.train.config import TrainConfig
from diffusiongemma.train.loop import train
from train_toy import CONFIG, source, toy

PACE = ("tokens_per_second", "left_minutes")
HIDDEN = ".lock"


def run(folder: Path, config: TrainConfig = CONFIG, **options: Any) -> torch.Tensor:
    """Train a toy in a folder; its weights, and the averaged ones."""
    model = options.pop("model", None) or toy()
    average = train(model, options.pop("source", source), config, folder, eos=1, pad=0, **options)
    return flat(model, average.weights)


def flat(model: DiffusionGemma, averaged: dict[str, torch.Tensor]) -> torch.Tensor:
    """All weights in a row."""
    every = [*model.parameters(), *averaged.values()]
    return torch.cat([p.detach().flatten() for p in every])


def log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a log, without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if name not in PACE} for line in lines]


def names(folder: Path) -> list[str]:
    """What lies in a run's folder."""
    return sorted(path.name for path in folder.iterdir() if path.name != HIDDEN)
