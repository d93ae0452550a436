"""The released config and vocabulary with small random weights: they open, and they answer.

`tests/checkpoint/test_released.py` has the same in a toy's words, without anything fetched.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import diffusiongemma as dg
import released_small
import toys
from diffusiongemma.dialog.images import patches
from parity_oracle import Denoise, Dice, Encode, furthest, open_pair, play_hf, play_ours

PICTURE = Image.radial_gradient("L").convert("RGB")


@pytest.fixture(scope="session")
def folder(
    words: Path, template: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What lies beside the released weights, and small ones in bfloat16."""
    made = tmp_path_factory.mktemp("released")
    released_small.write(made, words=words)
    (made / "chat_template.jinja").write_text(template("diffusion_gemma"), "utf-8")
    return made


@pytest.fixture(scope="session")
def gemma(folder: Path) -> dg.Gemma:
    return dg.load(folder)


def test_its_words_and_its_network_know_each_other(gemma: dg.Gemma) -> None:
    assert gemma.chat is not None
    assert gemma.chat.tokenizer.size == gemma.model.config.vocab_size == 262_144
    assert gemma.eos == {1, 106, 50}
    (shown,) = gemma.chat.render([{"role": "user", "content": [image()]}]).images
    assert shown.values_PX.shape[1] == 3 * 16 * 16


def image() -> dict[str, Any]:
    return {"type": "image", "image": PICTURE}


@pytest.mark.usefixtures("plain")
def test_its_network_is_that_of_transformers(folder: Path, known: dict[str, Any]) -> None:
    """The published prompt, a picture and three canvases of the whole vocabulary."""
    toy = toys.Toy(vocabulary=262_144, canvas=16)
    pair, dice = open_pair(toy, folder), Dice(toy, 0)
    shown = patches(PICTURE, soft_tokens=70, patch_size=16, pooling=3)
    begin, mark, end = 255_999, 258_880, 258_882
    span = torch.tensor([[begin, *[mark] * (len(shown.values_PX) // 9), end]])
    script = [
        Encode(torch.tensor([known["check"]["ids"]])),
        Denoise(dice.canvas()),
        Denoise(dice.canvas(), dice.logits()),
        Encode(span, (shown,)),
        Denoise(dice.canvas(), dice.logits()),
    ]
    sdpa, eager = (play_hf(model, script) for model in (pair.sdpa, pair.eager))
    assert max(said.abs().max() for said in sdpa) > 10  # loud
    assert furthest(play_ours(pair.ours, script), sdpa) <= max(1e-4, 2 * furthest(sdpa, eager))


@pytest.mark.parametrize("think", [False, True])
def test_it_answers(gemma: dg.Gemma, think: bool) -> None:
    """Random weights say random things; what was streamed is what the reply says."""
    asked = [{"role": "user", "content": [image(), "What is this?"]}]
    options = {"seed": 1, "max_new_tokens": 40, "max_denoising_steps": 3}
    *events, finished = gemma.stream(asked, think=think, **options)
    reply = finished.reply
    assert reply.stats.new_tokens > 0
    assert "".join(e.text for e in events if isinstance(e, dg.Committed)) == reply.text
