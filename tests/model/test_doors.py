"""The network's doors refuse what they cannot take, in one sentence."""

import pytest
import torch

from diffusiongemma.core.errors import ContextError, InputError
from diffusiongemma.core.patches import Patches
from train_toy import toy


@pytest.fixture(scope="module")
def model():
    return toy()


def test_ids(model) -> None:
    for ids in (torch.tensor([[40]]), torch.tensor([[-1]])):
        with pytest.raises(InputError, match="token ids must lie in 0 to 39, got"):
            model.embed(ids)
    with pytest.raises(InputError, match=r"shape \(rows, tokens\), not empty, got \(1, 0\)"):
        model.embed(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(InputError, match=r"not empty, got \(2, 0\)"):
        model.denoise(torch.zeros(2, 0, dtype=torch.long), None, model.context(2))


def test_images_need_a_tower(model) -> None:
    image = Patches(torch.zeros(4, 48), torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]]))
    with pytest.raises(
        InputError, match=r"1 image.* were given, but this checkpoint has no vision"
    ):
        model.embed(torch.tensor([[3]]), [image])


def test_rows_and_lengths(model) -> None:
    inputs = model.embed(torch.tensor([[3, 4], [5, 6]]))
    with pytest.raises(InputError, match="2 rows of tokens were given for a context of 1 rows"):
        model.encode(inputs, model.context(1))
    for lengths in ([0, 0], [3, 1]):
        with pytest.raises(InputError, match="lengths must lie in 0 to 2, not all of them 0"):
            model.encode(inputs, model.context(2), torch.tensor(lengths))
    with pytest.raises(InputError, match="2 canvas rows were given for a context of 1"):
        model.denoise(torch.tensor([[3], [4]]), None, model.context(1))
    with pytest.raises(InputError, match=r"shape \(1, 2, 32\), got \(1, 2, 31\)"):
        model.denoise(torch.tensor([[3, 4]]), torch.zeros(1, 2, 31), model.context(1))


def test_room(model) -> None:
    with pytest.raises(ContextError, match="at least one row, got 0"):
        model.context(0)
    with pytest.raises(ContextError, match="capacity 65 is out of range; this model holds 1 to 64"):
        model.context(1, capacity=65)
    context = model.context(1, capacity=3)
    model.encode(model.embed(torch.tensor([[3, 4]])), context)
    assert context.room == [1] and "lengths=[2]" in repr(context)
    with pytest.raises(ContextError, match=r"holds 2 tokens and 2 more .* room for 3"):
        model.encode(model.embed(torch.tensor([[3, 4]])), context)
    full = model.context(1)
    model.encode(model.embed(torch.full((1, 62), 3)), full)
    with pytest.raises(ContextError, match="a canvas of 4 would pass the longest context, 64"):
        model.denoise(torch.tensor([[3, 4, 5, 6]]), None, full)


def test_truncate_and_pick(model) -> None:
    context = model.context(2)
    model.encode(model.embed(torch.full((2, 40), 3)), context)
    with pytest.raises(ContextError, match="1 lengths were given for 2 rows"):
        context.truncate([3])
    with pytest.raises(ContextError, match="give a length from 0 to 40"):
        context.truncate([41, 40])
    with pytest.raises(ContextError, match="the shortest exact length is 36, or 0"):
        context.truncate([20, 40])
    with pytest.raises(ContextError, match="row 2 does not exist; this context has 2 rows"):
        context.pick([2])
    twice = context.pick([0, 0])
    with pytest.raises(ContextError, match="holds a row twice can be read, not written"):
        model.encode(model.embed(torch.tensor([[3], [4]])), twice)
    context.truncate([0, 36])
    assert context.lengths == [0, 36]


def test_an_interrupted_encode_is_not_read_from(model, monkeypatch) -> None:
    context = model.context(2)
    inputs = model.embed(torch.tensor([[3, 4], [5, 6]]))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model, "kernels", "reference")  # or no layer is asked by itself
        patch.setattr(model.blocks[1], "forward", _interrupt)
        model.encode(inputs, context, torch.tensor([2, 0]))
    with pytest.raises(ContextError, match="an encode of row 0 was interrupted"):
        model.encode(inputs, context)
    with pytest.raises(ContextError, match="an encode of row 0 was interrupted"):
        model.denoise(torch.tensor([[3], [4]]), None, context)
    context.truncate([0, 0])
    again, fresh = model.encode(inputs, context), model.encode(inputs, model.context(2))
    assert torch.equal(again, fresh)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_chunks_keep_images_whole(model) -> None:
    from diffusiongemma.model.model import Inputs

    span = torch.tensor([[-1, -1, 0, 0, 0, 0, -1, -1, -1, 1, -1]])
    inputs = Inputs(torch.zeros(1, 11, 4), span)
    for size in range(1, 12):
        pieces = list(inputs.chunks(size))
        assert torch.equal(torch.cat([piece.span_BT for piece in pieces], dim=1), span)
        for piece in pieces:
            assert piece.span_BT.shape[1] <= max(size, 4)
            assert int((piece.span_BT == 0).sum()) in (0, 4)
    with pytest.raises(InputError, match="must not begin or end inside an image, at 4"):
        inputs.cut(0, 4)
