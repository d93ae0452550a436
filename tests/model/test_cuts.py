"""A text's bits do not depend on where it was cut: whole, in pieces, token by token."""

import dataclasses
import itertools
import random

import pytest
import torch

from diffusiongemma.core.patches import Patches
from diffusiongemma.kernels.attention import TILE, attend, tiles
from diffusiongemma.model import masks
from diffusiongemma.model.config import LayerConfig, ModelConfig, VisionConfig
from diffusiongemma.model.init import initialise
from diffusiongemma.model.model import DiffusionGemma, Inputs

SLIDING = LayerConfig(sliding=True, head_dim=32, num_key_value_heads=2)
FULL = LayerConfig(sliding=False, head_dim=64, num_key_value_heads=1)
SMALL = ModelConfig(
    vocab_size=279,
    hidden_size=64,
    intermediate_size=128,
    layers=(SLIDING, SLIDING, FULL),
    num_attention_heads=4,
    sliding_window=64,
    num_experts=8,
    top_k_experts=2,
    moe_intermediate_size=64,
    max_position_embeddings=4096,
    canvas_length=32,
)
IMAGE = 278


def _network(dtype: torch.dtype, **changes) -> DiffusionGemma:
    config = dataclasses.replace(SMALL, dtype=str(dtype).removeprefix("torch."), **changes)
    return initialise(DiffusionGemma(config).to(dtype), seed=1).requires_grad_(False)


def _ids(tokens: int) -> torch.Tensor:
    return torch.randint(0, IMAGE, (1, tokens), generator=torch.Generator().manual_seed(tokens))


def _read(model: DiffusionGemma, inputs: Inputs, cuts: list[int], capacity: int | None = None):
    """Hidden states of the text, then of a canvas, and what the layers kept of the text's end."""
    context = model.context(capacity=capacity)
    hidden = [
        model.encode(inputs.cut(*both), context)
        for both in itertools.pairwise([0, *cuts, inputs.span_BT.shape[1]])
    ]
    canvas = model.denoise(_ids(32), None, context)
    end = max(0, context.lengths[0] - model.config.sliding_window + 1)
    kept = [part for store in context.rows[0].stores for part in store.read(end) or ()]
    return [torch.cat(hidden, dim=1), canvas, *kept]


def _equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def _cuts(dice: random.Random, tokens: int) -> list[int]:
    """Some at random, some beside the borders of tiles."""
    near = [n + d for n in range(0, tokens, TILE) for d in (-1, 0, 1) if 0 < n + d < tokens]
    some = dice.sample(range(1, tokens), min(tokens - 1, dice.randint(1, 5)))
    return sorted({*some, *dice.sample(near, min(len(near), 3))})


@torch.no_grad()
@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [5, 64, 300])
def test_a_cut_changes_no_bit(dtype: torch.dtype, threads: int, window: int) -> None:
    before, dice = torch.get_num_threads(), random.Random(window)
    torch.set_num_threads(threads)
    try:
        model = _network(dtype, sliding_window=window)
        inputs = model.embed(_ids(700))
        whole = _read(model, inputs, [])
        for capacity in (None, None, None, 1000):
            cuts = _cuts(dice, 700)
            assert _equal(_read(model, inputs, cuts, capacity), whole), cuts
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
@pytest.mark.usefixtures("plain")
def test_token_by_token_changes_no_bit() -> None:
    model = _network(torch.float32)
    inputs = model.embed(_ids(150))
    assert _equal(_read(model, inputs, [*range(1, 150)]), _read(model, inputs, []))


@torch.no_grad()
@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("window", [5, 64])
def test_cuts_around_images_change_no_bit(window: int) -> None:
    """An image within a tile, one over the borders of three, two side by side."""
    tower = VisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, patch_size=2, pooling_kernel_size=1,
        position_embedding_size=40,
    )  # fmt: skip
    model = _network(torch.float32, sliding_window=window, vision=tower, image_token_id=IMAGE)
    images, dice = [_image(8, 5), _image(8, 35), _image(3, 3), _image(6, 5)], random.Random(3)
    sizes = [len(image.values_PX) for image in images]
    spaces = (20, 45, 3, 1, 200)
    tokens, places = [], []
    for size, space in zip((*sizes, 0), spaces, strict=True):
        tokens += _ids(space)[0].tolist()
        places.append((len(tokens), len(tokens) + size))
        tokens += [IMAGE] * size
    inputs = model.embed(torch.tensor([tokens]), images)
    whole = _read(model, inputs, [])
    assert not torch.equal(whole[0], _read(model, model.embed(_ids(len(tokens))), [])[0])
    for number in range(8):
        cuts = {cut for cut in _cuts(dice, len(tokens)) if not inputs.splits(cut)}
        cuts |= {places[number % 4][number % 2]}
        assert _equal(_read(model, inputs, sorted(cuts)), whole), cuts


def _image(columns: int, rows: int) -> Patches:
    dice, place = torch.Generator().manual_seed(rows), torch.arange(columns * rows)
    values = torch.rand(columns * rows, 12, generator=dice)
    return Patches(values, torch.stack([place % columns, place // columns], dim=1))


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 1, 100, 129, 500])
@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 300), (5, 127), (130, 131), (250, 700)])
def test_tiles_are_the_whole_masked_square(window: int | None, start: int, stop: int) -> None:
    dice = torch.Generator().manual_seed(start)
    q, k, v = (torch.randn(stop, 4, 16, generator=dice) for _ in "qkv")
    k, v = k[:, :2].transpose(0, 1), v[:, :2].transpose(0, 1)
    place = torch.arange(stop)
    draw = masks.causal if window is None else lambda *at: masks.window(*at, window)
    square = attend(q[start:], k, v, draw(place[start:], place))
    kept = 0 if window is None else max(0, start - window + 1)  # what lies before is forgotten
    parts = []
    for tile in tiles(start, stop, window):
        mask = draw(
            torch.arange(tile.origin, tile.origin + TILE), torch.arange(tile.first, tile.end)
        )
        parts.append(tile.attend(q[tile.start : tile.stop], k[:, kept:], v[:, kept:], mask, stop))
    torch.testing.assert_close(torch.cat(parts), square)
