"""Sheets: every example is there whole, and the loss of a sheet is the loss of its batch."""

import numpy as np
import pytest
import torch

from diffusiongemma.core.errors import InputError
from diffusiongemma.train import objective
from diffusiongemma.train.data import Example, pack
from diffusiongemma.train.objective import losses
from diffusiongemma.train.rows import noise, rows_losses
from diffusiongemma.train.sheet import Form
from train_toy import toy

CPU = torch.device("cpu")
FORM = Form(rows=3, length=30, width=4, eos=1, pad=0, prompt_weight=0.25)
EXAMPLES = [
    Example([7, 8, 9], [10, 11, 12, 13, 14, 3]), Example([20, 21, 22, 23, 24], [25, 3]),
    Example([30], [31, 32, 33, 3]), Example([6, 5], [4, 3, 9]), Example([15, 16], [17, 3]),
]  # fmt: skip


def test_every_example_is_there_whole() -> None:
    sheet = FORM.lay(EXAMPLES, 1)
    assert sheet.examples == 5 and sheet.left_out == 0
    found = []
    for ids, _, place, upto, text, canvas in sheet.numbers.transpose(1, 0, 2):
        for number in range(text.max() + 1):
            clean = ids[(text == number) & (canvas < 0)].tolist()
            drafts = (text == number) & (canvas >= 0)
            start = int(upto[drafts].min())
            assert ids[drafts].tolist() == clean[start:]
            assert place[drafts].tolist() == list(range(start, len(clean)))
            assert ((place[drafts] - start) // 4 * 4 + start == upto[drafts]).all()
            found.append((clean[:start], clean[start:]))
    wanted = [(list(e.prompt), [*e.answer, *[1] * (-len(e.answer) % 4)]) for e in EXAMPLES]
    assert sorted(found) == sorted(wanted)
    drafts = sheet.numbers[5] >= 0
    assert sheet.weight_BS[drafts].sum() == pytest.approx(1)
    assert sheet.weight_BS[~drafts].sum() == pytest.approx(1)
    assert (sheet.weight_BS[sheet.numbers[4] < 0] == 0).all()


def test_what_has_no_room_is_left_out_and_the_rest_counts_whole() -> None:
    sheet = Form(rows=1, length=28, width=4, eos=1, pad=0).lay(EXAMPLES, 1)
    assert (sheet.examples, sheet.left_out) == (2, 3)
    assert sheet.weight_BS.sum() == pytest.approx(2)


def test_where_an_example_stands_is_chance() -> None:
    first = [int(np.argmax((FORM.lay(EXAMPLES, n).numbers[0] == 7).any(1))) for n in range(30)]
    assert set(first) == {0, 1, 2}
    assert (FORM.lay(EXAMPLES, 4).numbers == FORM.lay(EXAMPLES, 4).numbers).all()


def test_what_does_not_fit_a_row_is_refused() -> None:
    with pytest.raises(InputError, match="takes 39 tokens with its canvases, and a row has 30"):
        FORM.lay([Example([7] * 31, [8])], 1)
    with pytest.raises(InputError, match="no token id from 0 to 32767"):
        FORM.lay([Example([7], [40_000])], 1)
    with pytest.raises(InputError, match="at least one token each"):
        FORM.lay([Example([7], [])], 1)


@pytest.mark.parametrize("conditioned", [0.0, 1.0])
def test_the_loss_of_a_sheet_is_that_of_its_batch(
    conditioned: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and every gradient, with the same noise."""
    network, rows = toy(), FORM.lay(EXAMPLES, 1).to(CPU)
    noised_BS = noise(rows, 40, 4, torch.Generator().manual_seed(4))
    batch = pack(EXAMPLES, 4, 1, 0)
    ids, texts, canvas = rows.ids_BS, rows.layout.text_BS, rows.layout.canvas_BS
    noised = batch.canvases().clone()
    for number, example in enumerate(EXAMPLES):
        start = torch.tensor(example.prompt)
        for row in range(3):
            for text in range(int(texts[row].max()) + 1):
                here = texts[row] == text
                if ids[row][here][: len(start)].tolist() == start.tolist():
                    drafts = noised_BS[row][here & (canvas[row] >= 0)].view(-1, 4)
                    noised[number, : len(drafts)] = drafts
    monkeypatch.setattr(objective, "corrupt", lambda *_: (noised, None))
    weights = {"conditioned": conditioned, "encoder_weight": 0.7}
    dice = torch.Generator().manual_seed(4)
    one = losses(network, batch, dice, prompt_weight=0.25, **weights)
    one.total.backward()
    wanted = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    two = rows_losses(network, rows, noised_BS, **weights)
    two.total.backward()
    torch.testing.assert_close(two.denoiser, one.denoiser)
    torch.testing.assert_close(two.encoder, one.encoder)
    for gradient, other in zip((p.grad for p in network.parameters()), wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)
    assert two.tokens == one.tokens


def test_noise_is_of_canvases_alone_and_each_has_a_level() -> None:
    form = Form(rows=200, length=100, width=32, eos=1, pad=0)
    sheet = form.lay([Example([7] * 4, [9] * 32) for _ in range(200)], 1)
    rows = sheet.to(CPU)
    noised = noise(rows, 1000, 32, torch.Generator().manual_seed(0))
    drafts = rows.layout.canvas_BS >= 0
    assert torch.equal(noised[~drafts], rows.ids_BS[~drafts])
    changed = (noised != rows.ids_BS)[drafts].view(200, 32).float().mean(1)
    assert abs(float(changed.mean()) - 0.5) < 0.06 and changed.std() > 0.2
