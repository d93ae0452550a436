"""The released files open: as they are, and in small with words, pictures and equal logits."""

import json
import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

import diffusiongemma as dg
import parity_oracle as oracle
import released_small
import toys
from diffusiongemma.core.log import warn_once
from diffusiongemma.core.reading import read_json
from diffusiongemma.diffusion.config import SamplerConfig


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The released files in small; not to be changed."""
    folder = tmp_path_factory.mktemp("released") / "small"
    released_small.write(folder)
    return folder


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is said of files, and what was said before is said again."""
    warn_once.cache_clear()
    caplog.set_level(logging.WARNING, logger="diffusiongemma.files")
    return caplog


def paths(part: object, path: str = "") -> set[str]:
    """Every key of nested objects, but those of layers and labels."""
    if not isinstance(part, dict):
        return set()
    inside = [paths(value, f"{path}{key}.") for key, value in part.items()]
    return {path + key for key in part}.union(*inside)


def test_it_is_the_released_one_but_for_numbers(released: Path) -> None:
    for name, theirs in (
        ("config.json", released_small.CONFIG),
        ("generation_config.json", released_small.GENERATION),
    ):
        assert paths(read_json(released / name)) == paths(theirs)


def test_it_opens_without_a_word_and_answers(
    released: Path, warnings: pytest.LogCaptureFixture
) -> None:
    gemma = dg.load(released)
    assert not warnings.messages
    assert gemma.eos == {1, 5, 13}
    said = SamplerConfig.from_generation_config(released_small.GENERATION)
    assert gemma.sampler == said == SamplerConfig()
    picture = Image.new("RGB", (24, 24), "red")
    reply = gemma.generate("What is it?", images=[picture], seed=1, max_new_tokens=20)
    assert len(reply.tokens) > 0


@pytest.mark.usefixtures("plain")
def test_transformers_opens_it_with_equal_logits(released: Path) -> None:
    toy = toys.Toy(vocabulary=300, canvas=16)
    pair = oracle.open_pair(toy, released)
    dice = oracle.Dice(toy, 1)
    script = [
        oracle.Encode(dice.ids(40).clamp(min=32)),  # none of the marks of images
        oracle.Denoise(dice.canvas(), dice.logits()),
        oracle.Denoise(dice.canvas()),
    ]
    sdpa, eager = (oracle.play_hf(model, script) for model in (pair.sdpa, pair.eager))
    ours = oracle.play_ours(pair.ours, script)
    assert max(value.abs().max() for value in sdpa) > 10  # loud
    assert oracle.furthest(ours, sdpa) <= max(1e-4, 2 * oracle.furthest(sdpa, eager))


def test_the_whole_one_is_of_known_shape() -> None:
    from diffusiongemma.checkpoint.config import from_hf
    from diffusiongemma.model.model import DiffusionGemma

    with torch.device("meta"):
        model = DiffusionGemma(from_hf(released_small.CONFIG))
    assert len(model.state_dict()) == 1047


def test_a_trainers_marks_are_named_in_one_line_and_come_back(
    released: Path, tmp_path: Path, warnings: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "tuned"
    folder.mkdir()
    for file in released.iterdir():
        (folder / file.name).symlink_to(file)
    raw = read_json(folder / "config.json")
    raw |= {"unsloth_fixed": True, "model_name": "x/y", "auto_map": {"AutoModel": "x.py"}}
    raw["text_config"] |= {"trainer": {"steps": [1, 2]}, "torchscript": False}
    raw["vision_config"]["colour"] = "\ud800"  # half a letter, which JSON may spell
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(raw))
    gemma = dg.load(folder)
    (said,) = warnings.messages
    named = "model_name, unsloth_fixed, text_config.trainer, vision_config.colour"
    assert said.startswith(f"{folder / 'config.json'} has keys") and f": {named};" in said
    back = read_json(gemma.save(tmp_path / "saved") / "config.json")
    used = {"global_head_dim", "num_global_key_value_heads"}  # said by per_layer_config now
    for section, mine in ((back, raw), *((back[n], raw[n]) for n in ("text_config",))):
        kept = {key for key in mine if key not in used and not isinstance(mine[key], dict)}
        assert kept - {"dtype"} <= section.keys()
    assert back["text_config"]["trainer"] == {"steps": [1, 2]}
    assert back["vision_config"]["colour"] == "\ud800"
    assert back["auto_map"] == {"AutoModel": "x.py"}
