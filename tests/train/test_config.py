"""A run's settings: every field by type and range, before anything is begun.

The tests' own type checks would refuse most of this first, so it is tried in a process without.
"""

import json
import subprocess
import sys
from dataclasses import fields

import pytest
import torch

from cli_help import ENVIRONMENT
from diffusiongemma.train.config import TrainConfig
from diffusiongemma.train.optim import optimizer
from train_toy import toy

SCRIPT = """
import json, math, sys
import numpy as np
from diffusiongemma.core.errors import OptionError
from diffusiongemma.train.config import TrainConfig

def outcome(given):
    try:
        return TrainConfig(**({"steps": 1} | given)).as_dict()
    except OptionError as error:
        return str(error)

"""
REFUSED = {
    "steps": ("0, -1, 1.5, 2.0, 2**31", "a whole number from 1 to 2147483647"),
    "batch": ("0, 1.5", "a whole number from 1 to 2147483647"),
    "canvas_length": ("0, math.inf", "a whole number from 1 to 2147483647"),
    "warmup": ("-1, 0.5", "a whole number from 0 to 2147483647"),
    "save_every": ("0,", "a whole number from 1 to 2147483647"),
    "log_every": ("0,", "a whole number from 1 to 2147483647"),
    "seed": ("-1, 2**64", "a whole number from 0 to 18446744073709551615"),
    "lr": ("0, -1e-3, math.inf, 10**400", "a finite number above 0"),
    "clip": ("0.0, -1, math.inf", "a finite number above 0"),
    "weight_decay": ("-0.1, math.inf", "a finite number of at least 0"),
    "encoder_weight": ("-1,", "a finite number of at least 0"),
    "balance": ("-1, -math.inf", "a finite number of at least 0"),
    "lr_end": ("-0.1, 1.1", "from 0 to 1"),
    "ema": ("-0.1, 1.5", "from 0 to 1"),
    "conditioned": ("-0.1, 2", "from 0 to 1"),
    "prompt_weight": ("-0.1, 2", "from 0 to 1"),
    "betas": ("2, (0.9, 1.0), (0.9,), (0.9, 0.9, 0.9), (-0.1, 0.9)", "two numbers from 0 to below"),
}
ALWAYS = "math.nan, np.float32('nan'), None, True, np.True_, '1', [], 1j, (math.nan, 0.9)"


def outcomes(code: str) -> list:
    """What a script found that ends in a list called `found`."""
    words = [sys.executable, "-c", f"{SCRIPT}{code}\nprint(json.dumps(found))"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    return json.loads(done.stdout)


@pytest.mark.parametrize("field", REFUSED)
def test_every_field_has_a_type_and_a_range(field: str) -> None:
    values, said = REFUSED[field]
    value = f"({values.rstrip(',')}, {ALWAYS})"
    found = outcomes(f"found = [(outcome({{{field!r}: v}}), repr(v)) for v in {value}]")
    for sentence, value in found:
        assert isinstance(sentence, str), f"{field} took {value}"
        assert sentence.startswith(f"{field} must be {said}") and sentence.endswith(value[-20:])


def test_no_field_is_forgotten() -> None:
    assert {field.name for field in fields(TrainConfig)} == set(REFUSED)


def test_numpy_s_numbers_are_numbers() -> None:
    usual = json.loads(json.dumps(TrainConfig(steps=1).as_dict()))
    kinds = {n: "np.int64" if isinstance(v, int) else "np.float64" for n, v in usual.items()}
    given = {n: f"{kinds[n]}({v})" for n, v in usual.items() if n != "betas"}
    given["betas"] = "[np.float64(0.95), np.float64(0.99)]"
    code = ", ".join(f"{name}={value}" for name, value in given.items())
    assert outcomes(f"found = [outcome(dict({code}))]") == [usual]


def test_the_ends_of_the_ranges_are_taken() -> None:
    least = {"warmup": 0, "weight_decay": 0.0, "encoder_weight": 0.0, "balance": 0.0, "lr": 1e-30}
    found = TrainConfig(steps=1, batch=1, seed=2**64 - 1, betas=(0.0, 0.0), **least)
    torch.Generator().manual_seed(found.seed)
    optimizer(toy(), found)
    for share in (0.0, 1.0):
        TrainConfig(steps=1, lr_end=share, ema=share, conditioned=share)
