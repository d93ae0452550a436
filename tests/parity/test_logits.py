"""The network is the reference: logits against transformers on twenty random checkpoints.

Allowed is 1e-4, or twice the distance between transformers' own two attention kernels on the same
input, whichever is larger. The worst of each checkpoint is printed at the end of the run.
"""

from collections.abc import Callable

import pytest
import torch

import toys
from parity_oracle import Denoise, Dice, Encode, Pair, Script, furthest, play_hf, play_ours

pytestmark = pytest.mark.usefixtures("plain")

SMALLEST_ALLOWANCE = 1e-4


def short_context(dice: Dice) -> Script:
    """Less than a window of text, a first and a later step."""
    return [
        Encode(dice.ids(max(1, dice.toy.window - 2))),
        Denoise(dice.canvas()),
        Denoise(dice.canvas(), dice.logits()),
    ]


def one_token(dice: Dice) -> Script:
    """The shortest prompt."""
    return [Encode(dice.ids(1)), Denoise(dice.canvas()), Denoise(dice.canvas(), dice.logits())]


def window_borders(dice: Dice) -> Script:
    """Contexts of exactly W - 1, W and W + 1 tokens, where an off-by-one would show."""
    script: list[Encode | Denoise] = [Encode(dice.ids(dice.toy.window - 1)), Denoise(dice.canvas())]
    for _ in range(2):
        script += [Encode(dice.ids(1)), Denoise(dice.canvas(), dice.logits())]
    return script


def long_context(dice: Dice) -> Script:
    """Several windows of text."""
    return [
        Encode(dice.ids(5 * dice.toy.window + 3)),
        Denoise(dice.canvas()),
        Denoise(dice.canvas(), dice.logits()),
    ]


def committed_canvases(dice: Dice) -> Script:
    """Three canvases, each drafted in two steps and then encoded."""
    script: list[Encode | Denoise] = [Encode(dice.ids(dice.toy.window + 1))]
    for _ in range(3):
        script += [Denoise(dice.canvas()), Denoise(dice.canvas(), dice.logits())]
        script += [Encode(dice.canvas().clamp(max=dice.toy.vocabulary - 4))]
    return [*script, Denoise(dice.canvas())]


def any_chunking(dice: Dice) -> Script:
    """Our side reads the prompt in uneven pieces, theirs at once."""
    length = 3 * dice.toy.window + 7
    cuts = (1, 2, dice.toy.window, dice.toy.window + 1, length - 1)
    chunks = tuple(sorted({c for c in cuts if 0 < c < length}))
    return [Encode(dice.ids(length), chunks=chunks), Denoise(dice.canvas(), dice.logits())]


def images(dice: Dice) -> Script:
    """Two images in one prompt, of different shapes, then text, then another image."""
    first, second, third = dice.image(4, 2), dice.image(2, 6), dice.image(4, 4)
    return [
        Encode(dice.with_images(first, second), (first, second)),
        Encode(dice.ids(3)),
        Encode(dice.with_images(third), (third,)),
        Denoise(dice.canvas(), dice.logits()),
    ]


def long_image(dice: Dice) -> Script:
    """One image with more soft tokens than the window; our side cuts the text around it."""
    image = dice.image(10, 16) if dice.toy.window < 36 else dice.image(16, 16)
    ids = dice.with_images(image)
    soft = len(image.values_PX) // 4
    return [
        Encode(ids, (image,), chunks=(3, 6, 6 + soft, 8 + soft)),
        Denoise(dice.canvas()),
        Denoise(dice.canvas(), dice.logits()),
    ]


CASES: list[Callable[[Dice], Script]] = [
    short_context, one_token, window_borders, long_context, committed_canvases, any_chunking,
    images, long_image,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_logits_equal_the_reference(
    pair: Pair, case: Callable[[Dice], Script], record_property: Callable[[str, object], None]
) -> None:
    script = case(Dice(pair.toy, seed=CASES.index(case)))
    truth, twin = play_hf(pair.sdpa, script), play_hf(pair.eager, script)
    allowance = max(SMALLEST_ALLOWANCE, 2 * furthest(truth, twin))
    difference = furthest(play_ours(pair.ours, script), truth)
    record_property("exactness", (difference, allowance))
    assert difference <= allowance


@pytest.mark.parametrize("width", [8, 13, 32, 100, 256])
def test_canvas_of_any_size(pairs, width: int) -> None:

    pair = pairs(toys.Toy(seed=13, layers="ssssf", window=32, canvas=16))
    dice = Dice(pair.toy, seed=width)
    script = [Encode(dice.ids(50)), Denoise(dice.canvas(width), dice.logits(width))]
    truth = play_hf(pair.sdpa, script)
    allowance = max(SMALLEST_ALLOWANCE, 2 * furthest(truth, play_hf(pair.eager, script)))
    assert furthest(play_ours(pair.ours, script), truth) <= allowance


def test_fixed_storage_is_growing_storage(pair: Pair) -> None:
    script = committed_canvases(Dice(pair.toy, seed=50))
    fixed = play_ours(pair.ours, script, capacity=pair.toy.longest)
    assert furthest(fixed, play_ours(pair.ours, script)) == 0.0


def test_checkpoints_are_loud(pair: Pair) -> None:
    """With quiet checkpoints even a missing softcap would pass."""
    dice = Dice(pair.toy, seed=60)
    script = long_context(dice)
    logits = torch.cat([said.flatten() for said in play_hf(pair.sdpa, script)])
    assert logits.max() > 15 and logits.min() < -15
    model, decided = pair.ours, []
    hooks = [
        block.router.register_forward_pre_hook(lambda r, x: decided.append(_first_choice(r, x[0])))
        for block in model.blocks
    ]
    play_ours(model, script)
    for hook in hooks:
        hook.remove()
    assert torch.cat(decided).mean() > 0.4


def _first_choice(router, residual: torch.Tensor) -> torch.Tensor:
    from diffusiongemma.kernels.norm_rope import rms_norm

    normed = rms_norm(residual, None, router.eps) * router.scale
    scores = normed * residual.shape[1] ** -0.5 @ router.weight.T
    return scores.softmax(-1).max(-1).values
