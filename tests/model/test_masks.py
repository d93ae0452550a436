"""The masks are what their docstrings draw: the pictures are parsed and compared."""

import inspect

import pytest
import torch

from diffusiongemma.model import masks


def picture(function) -> torch.Tensor:
    """The matrix of zeros and ones in a docstring."""
    lines = [line.split() for line in inspect.getdoc(function).splitlines()]
    rows = [line for line in lines if line and set(line) <= {"0", "1"}]
    return torch.tensor([[int(mark) for mark in row] for row in rows]).bool()


def test_causal() -> None:
    assert torch.equal(masks.causal(torch.arange(2, 5), torch.arange(5)), picture(masks.causal))


def test_window() -> None:
    drawn = masks.window(torch.arange(2, 5), torch.arange(5), 3)
    assert torch.equal(drawn, picture(masks.window))


def test_overlay() -> None:
    span = torch.tensor([-1, 0, 0, 0, 0, -1])
    place = torch.arange(6)
    drawn = masks.overlay(masks.window(place, place, 3), span, span)
    assert torch.equal(drawn, picture(masks.overlay))


def test_canvas_sees() -> None:
    drawn = torch.zeros(3, 7, dtype=torch.bool)
    drawn[:, masks.canvas_sees(4, 3)] = True
    drawn[:, 4:] = True
    assert torch.equal(drawn, picture(masks.canvas_sees))
    assert masks.canvas_sees(9, None) == slice(0, 9)
    assert masks.canvas_sees(2, 8) == slice(0, 2)


def test_spans_number_the_runs() -> None:
    is_image = torch.tensor([1, 1, 0, 1, 0, 0, 1, 1]).bool()
    assert masks.spans(is_image).tolist() == [0, 0, -1, 1, -1, -1, 2, 2]
    assert masks.spans(torch.zeros(3).bool()).tolist() == [-1, -1, -1]


def test_joint() -> None:
    assert torch.equal(masks.joint(6, 2, 2, 2, 3), picture(masks.joint))
    wide = masks.joint(6, 2, 2, 2, None)
    assert torch.equal(wide[:6, :6], torch.ones(6, 6).tril().bool())
    assert wide[8:, :4].all() and not wide[8:, 4:8].any()


def test_packed() -> None:
    """The picture: two tokens of prompt and a canvas of two, then one and a canvas of two."""
    place = torch.tensor([[0, 1, 2, 3, 2, 3, 0, 1, 2, 1, 2]])
    upto = torch.tensor([[1, 2, 3, 4, 2, 2, 1, 2, 3, 1, 1]])
    text = torch.tensor([[*[0] * 6, *[1] * 5]])
    canvas = torch.tensor([[*[-1] * 4, 0, 0, *[-1] * 3, 1, 1]])
    (drawn,) = masks.packed(place, upto, text, canvas, 3)
    assert torch.equal(drawn, picture(masks.packed))


@pytest.mark.parametrize("size", [3, 5, None])
def test_packed_sees_of_each_text_what_joint_sees(size: int | None) -> None:
    clean, start, width, canvases = 9, 3, 2, 3
    across = torch.arange(canvases * width)
    place = torch.cat([torch.arange(clean), start + across])
    upto = torch.cat([torch.arange(clean) + 1, start + across // width * width])
    canvas = torch.cat([torch.full((clean,), -1), across // width])
    one = torch.stack([place, upto, torch.zeros_like(place), canvas])
    two = torch.stack(
        [place, upto, torch.ones_like(place), torch.where(canvas < 0, -1, canvas + 3)]
    )
    mixed = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    columns = torch.cat([one, two], dim=1)[:, mixed][:, None]
    (drawn,) = masks.packed(*columns, size)
    whole = torch.block_diag(*[masks.joint(clean, start, width, canvases, size)] * 2).bool()
    assert torch.equal(drawn, whole[mixed][:, mixed])
