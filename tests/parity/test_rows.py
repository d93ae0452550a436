"""Rows of a batch are what they are alone: bit for bit in float32 on the CPU."""

import pytest
import torch

from diffusiongemma.model.model import Inputs
from parity_oracle import Dice, Encode, Pair, furthest, play_hf

pytestmark = pytest.mark.usefixtures("either")

LENGTHS = (3, 41, 1, 18, 17)


@torch.no_grad()
def _alone(pair: Pair, ids: torch.Tensor, canvas: torch.Tensor, logits: torch.Tensor):
    model, context = pair.ours, pair.ours.context()
    hidden = model.encode(model.embed(ids), context)
    first = model.denoise(canvas, None, context)
    later = model.denoise(canvas, model.soften(logits), context)
    return hidden, first, later


@torch.no_grad()
def test_ragged_rows_equal_their_rows_alone(pair: Pair) -> None:
    dice, model = Dice(pair.toy, seed=70), pair.ours
    rows = [dice.ids(n) for n in LENGTHS]
    canvases, logits = [dice.canvas() for _ in rows], [dice.logits() for _ in rows]
    context = model.context(rows=len(rows))
    padded = torch.cat(
        [torch.nn.functional.pad(ids, (0, max(LENGTHS) - ids.shape[1])) for ids in rows]
    )
    hidden = model.encode(model.embed(padded), context, torch.tensor(LENGTHS))
    first = model.denoise(torch.cat(canvases), None, context)
    soft = torch.cat([model.soften(one) for one in logits])
    later = model.denoise(torch.cat(canvases), soft, context)
    for n, ids in enumerate(rows):
        alone = _alone(pair, ids, canvases[n], logits[n])
        assert torch.equal(hidden[n, : LENGTHS[n]], alone[0][0])
        assert not hidden[n, LENGTHS[n] :].any()
        assert torch.equal(first[n], alone[1][0])
        assert torch.equal(later[n], alone[2][0])


@torch.no_grad()
def test_first_and_later_steps_share_a_batch(pair: Pair) -> None:
    """A zero row of soft embeddings is exactly no soft embeddings."""
    dice, model = Dice(pair.toy, seed=71), pair.ours
    context = model.context()
    model.encode(model.embed(dice.ids(20)), context)
    canvas, soft = dice.canvas(), model.soften(dice.logits())
    both = context.fork(0, 2)
    mixed = model.denoise(canvas.expand(2, -1), torch.cat([torch.zeros_like(soft), soft]), both)
    assert torch.equal(mixed[0], model.denoise(canvas, None, context)[0])
    assert torch.equal(mixed[1], model.denoise(canvas, soft, context)[0])


@torch.no_grad()
def test_denoise_writes_nothing(pair: Pair) -> None:
    dice, model = Dice(pair.toy, seed=72), pair.ours
    for capacity in (None, pair.toy.longest):
        context = model.context(capacity=capacity)
        model.encode(model.embed(dice.ids(30)), context)
        canvas = dice.canvas()
        before = model.denoise(canvas, None, context)
        model.denoise(dice.canvas(), model.soften(dice.logits()), context)
        assert context.lengths == [30]
        assert torch.equal(model.denoise(canvas, None, context), before)


@torch.no_grad()
@pytest.mark.parametrize("capacity", [None, 400])
def test_truncate_and_go_on(pair: Pair, capacity: int | None) -> None:
    """A canvas taken back leaves no trace, also after sliding layers have begun to forget."""
    dice, model = Dice(pair.toy, seed=73), pair.ours
    capacity = capacity and pair.toy.longest
    prompt, rejected, kept = (
        dice.ids(2 * pair.toy.window + 9),
        dice.ids(pair.toy.canvas),
        dice.ids(11),
    )
    context, straight = (model.context(capacity=capacity) for _ in range(2))
    for one in (context, straight):
        model.encode(model.embed(prompt), one)
    model.encode(model.embed(rejected), context)
    context.truncate([prompt.shape[1]])
    canvas = dice.canvas()
    for one in (context, straight):
        model.encode(model.embed(kept), one)
    assert context.lengths == straight.lengths
    assert torch.equal(model.denoise(canvas, None, context), model.denoise(canvas, None, straight))


@torch.no_grad()
@pytest.mark.parametrize("capacity", [None, 400])
def test_forks_do_not_meet(pair: Pair, capacity: int | None) -> None:
    dice, model = Dice(pair.toy, seed=74), pair.ours
    context = model.context(capacity=capacity and pair.toy.longest)
    model.encode(model.embed(dice.ids(25)), context)
    canvas = dice.canvas()
    before = model.denoise(canvas, None, context)
    twins = context.fork(0, 2)
    one, other = dice.ids(6), dice.ids(9)
    inputs, lengths_B = Inputs.stack([model.embed(one), model.embed(other)])
    model.encode(inputs, twins, lengths_B)
    assert context.lengths == [25] and twins.lengths == [31, 34]
    assert torch.equal(model.denoise(canvas, None, context), before)
    model.encode(model.embed(other), context)
    assert torch.equal(
        model.denoise(canvas, None, context), model.denoise(canvas, None, twins.pick([1]))
    )


@torch.no_grad()
def test_autoregressive_decoding_is_the_causal_pass(pair: Pair) -> None:
    """Token by token through the door, against one pass over the whole text."""
    dice, model = Dice(pair.toy, seed=75), pair.ours
    ids = dice.ids(pair.toy.window + 20)
    whole = model.logits(model.encode(model.embed(ids), model.context()))
    context, said = model.context(), []
    prompt = model.encode(model.embed(ids[:, :9]), context)
    said.append(model.logits(prompt[:, -1:]))
    for place in range(9, ids.shape[1]):
        said.append(model.logits(model.encode(model.embed(ids[:, place : place + 1]), context)))
    # The same sums in another order: what transformers' two attention kernels differ by is allowed.
    script = [Encode(ids)]
    floor = furthest(play_hf(pair.sdpa, script), play_hf(pair.eager, script))
    difference = float((torch.cat(said, dim=1) - whole[:, 8:]).abs().max())
    assert difference <= max(3e-4, 2 * floor)


@torch.no_grad()
def test_training_can_reach_everything(pair: Pair) -> None:
    """A growing context is safe for autograd, from the canvas back into the encoded prompt."""
    dice, model = Dice(pair.toy, seed=76), pair.ours
    with torch.enable_grad():
        inputs = model.embed(dice.ids(2 * pair.toy.window))
        inputs = Inputs(inputs.embedded_BTD.clone().requires_grad_(), inputs.span_BT)
        context = model.context()
        for chunk in inputs.chunks(7):
            model.encode(chunk, context)
        model.denoise(dice.canvas(), None, context).square().sum().backward()
    assert inputs.embedded_BTD.grad is not None
    assert inputs.embedded_BTD.grad[:, -pair.toy.window + 1 :].abs().amax(-1).min() > 0


@torch.no_grad()
def test_images_in_ragged_rows(pair: Pair) -> None:
    """Rows with two images, one and none, of different lengths, are what they are alone."""
    dice, model = Dice(pair.toy, seed=77), pair.ours
    small, wide = dice.image(2, 2), dice.image(6, 4)
    rows = [(dice.with_images(small, wide), [small, wide]), (dice.ids(4), [])]
    rows.append((dice.with_images(wide), [wide]))
    lengths = [ids.shape[1] for ids, _ in rows]
    pad = [torch.nn.functional.pad(ids, (0, max(lengths) - ids.shape[1])) for ids, _ in rows]
    inputs = model.embed(torch.cat(pad), [image for _, images in rows for image in images])
    context = model.context(rows=3)
    hidden = model.encode(inputs, context, torch.tensor(lengths))
    canvases = torch.cat([dice.canvas() for _ in rows])
    drafted = model.denoise(canvases, None, context)
    for n, (ids, images) in enumerate(rows):
        alone = model.context()
        assert torch.equal(
            model.encode(model.embed(ids, images), alone)[0], hidden[n, : lengths[n]]
        )
        assert torch.equal(model.denoise(canvases[n : n + 1], None, alone)[0], drafted[n])
