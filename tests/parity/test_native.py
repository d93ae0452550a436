"""A small network in one call is no further from exact arithmetic than transformers is.

Its sums run in an order of their own, so on networks that magnify rounding it differs from
transformers by more than transformers' own kernels differ from each other. The judge is the same
network in float64.
"""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from diffusiongemma.kernels.native import build
from diffusiongemma.model.model import DiffusionGemma
from parity_oracle import Denoise, Dice, Encode, Pair, Script, play_hf, play_ours

pytestmark = pytest.mark.skipif(build.library() is None, reason=f"no library: {build.reason()}")


def script_for(dice: Dice) -> Script:
    """Text in two pieces, a first and a later step."""
    length = 2 * dice.toy.window + 5
    text = Encode(dice.ids(length), chunks=(dice.toy.window,))
    return [text, Denoise(dice.canvas()), Denoise(dice.canvas(), dice.logits())]


def exact(model: DiffusionGemma, script: Script, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The modules in float64: what they widen to float32 stays as wide as it is."""
    softmax = Tensor.softmax
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        patch.setattr(Tensor, "softmax", lambda x, *axes, **_: softmax(x, *axes))
        wide = [
            act
            if isinstance(act, Encode)
            else Denoise(act.canvas, None if act.before is None else act.before.double())
            for act in script
        ]
        judge = copy.deepcopy(model).double()
        judge.kernels = "reference"
        return play_ours(judge, wide)


def squared(said: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    pairs = zip(said, truth, strict=True)
    return float(torch.stack([(a.double() - b).pow(2).mean() for a, b in pairs]).mean())


def test_it_is_as_near_to_float64_as_transformers(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, record_property
) -> None:
    with torch.no_grad():
        if pair.ours.choice.trunk != "native":
            pytest.skip("this one is not for the compiled trunk")
    script = script_for(Dice(pair.toy, seed=70))
    truth = exact(pair.ours, script, monkeypatch)
    ours = squared(play_ours(pair.ours, script), truth) ** 0.5
    theirs = max(squared(play_hf(one, script), truth) for one in (pair.sdpa, pair.eager)) ** 0.5
    record_property("native", ours / theirs)
    assert 0 < ours < 2 * theirs
