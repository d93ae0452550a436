"""In bfloat16 nobody is exact; we are no further from the float32 truth than transformers is."""

import statistics

import torch

import toys
from parity_oracle import Denoise, Dice, Encode, play_hf, play_ours


def _errors(pairs, toy) -> tuple[float, float]:
    exact, rounded = pairs(toy), pairs(toy, torch.bfloat16)
    ours, theirs = [], []
    for seed in range(3):
        dice = Dice(toy, seed=80 + seed)
        script = [
            Encode(dice.ids(toy.window + 9)),
            Denoise(dice.canvas()),
            Denoise(dice.canvas(), dice.logits()),
        ]
        truth = play_hf(exact.sdpa, script)
        for said, errors in (
            (play_hf(rounded.sdpa, script), theirs),
            (play_ours(rounded.ours, script), ours),
        ):
            errors += [(a - b).abs().flatten() for a, b in zip(said, truth, strict=True)]
    return float(torch.cat(ours).median()), float(torch.cat(theirs).median())


def test_median_error_is_no_larger_than_the_reference(pairs, record_property) -> None:
    errors = [_errors(pairs, toy) for toy in toys.TWENTY]
    ratio = statistics.median(ours / theirs for ours, theirs in errors)
    record_property("bfloat16", ratio)
    assert ratio <= 1.1
