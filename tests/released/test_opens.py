"""The released config, whole and made small: it opens, and the network is transformers' network."""

import copy
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import diffusiongemma as dg
import toys
from diffusiongemma.checkpoint.config import from_hf
from parity_oracle import Denoise, Dice, Encode, furthest, open_pair, play_hf, play_ours

# Only sizes; every key of the released file stays, with its value.
SMALL_TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 1,
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 16,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_experts": 8,
    "top_k_experts": 2,
}
SMALL_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 16,
    "position_embedding_size": 256,
}
CANVAS = 16


@pytest.fixture(scope="session")
def released() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "config.json").read_text("utf-8"))


def made_small(config: dict[str, Any]) -> dict[str, Any]:
    """The released config with small sizes, one period of its layers, and no other change."""
    small = copy.deepcopy(config)
    small["canvas_length"] = CANVAS
    for section, sizes in (("text_config", SMALL_TEXT), ("vision_config", SMALL_VISION)):
        assert sizes.keys() <= small[section].keys()
        small[section] |= sizes
    layers = small["text_config"]["layer_types"]
    small["text_config"]["layer_types"] = layers[: SMALL_TEXT["num_hidden_layers"]]
    return small


def as_json(part: Any) -> dict[str, Any]:
    """A part of transformers' processor as it is written to a file."""
    return json.loads(part.to_json_string())


@pytest.fixture(scope="session")
def folder(
    words: Path,
    template: Callable[[str], str],
    released: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Small random weights in bfloat16 with all files that lie beside the released ones."""
    import transformers as hf

    small, made = made_small(released), tmp_path_factory.mktemp("released")
    torch.manual_seed(0)
    model = hf.DiffusionGemmaForBlockDiffusion(hf.DiffusionGemmaConfig.from_dict(small))
    toys.make_loud(model)
    model.to(torch.bfloat16).save_pretrained(made)
    (made / "config.json").write_text(json.dumps(small))
    for file in (Path(__file__).parent / "generation_config.json", *words.iterdir()):
        shutil.copy(file, made)
    (made / "chat_template.jinja").write_text(template("diffusion_gemma"), "utf-8")
    # As transformers writes its processor: it names ears, which this model has not.
    processor = {
        "processor_class": "Gemma4Processor",
        "image_seq_length": 280,
        "audio_seq_length": 750,
        "audio_ms_per_token": 40,
        "image_processor": as_json(hf.Gemma4ImageProcessorPil()),
        "feature_extractor": as_json(hf.Gemma4AudioFeatureExtractor()),
        "video_processor": {"video_processor_type": "Gemma4VideoProcessor", "num_frames": 32},
    }
    (made / "processor_config.json").write_text(json.dumps(processor))
    index = {"_class_name": "DiffusionGemmaPipeline", "scheduler": ["diffusers", "X"]}
    (made / "model_index.json").write_text(json.dumps(index))
    return made


@pytest.fixture(scope="session")
def gemma(folder: Path) -> dg.Gemma:
    return dg.load(folder)


def test_the_released_config(released: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "diffusiongemma"):
        config = from_hf(released)
    assert not caplog.records  # nothing in it is unknown
    assert (config.canvas_length, config.vocab_size, len(config.layers)) == (256, 262_144, 30)
    assert config.vision is not None
    assert (config.image_token_id, config.boi_token_id, config.eoi_token_id) == (
        258_880,
        255_999,
        258_882,
    )


def test_the_folder_opens_as_it_is(gemma: dg.Gemma, released: dict[str, Any]) -> None:
    assert next(gemma.model.parameters()).dtype == torch.bfloat16
    assert {1, 106, 50} <= set(gemma.eos)
    sampler = gemma.sampler
    assert (sampler.max_denoising_steps, sampler.entropy_bound) == (48, 0.1)
    assert (sampler.t_max, sampler.t_min) == (0.8, 0.4)
    assert (sampler.confidence_threshold, sampler.stability_threshold) == (0.005, 1)
    assert sampler.max_new_tokens is None  # the file says 256, one canvas, which is no answer
    assert gemma.chat is not None and gemma.chat.settings.max_soft_tokens == 280


def test_its_network_is_that_of_transformers(folder: Path, known: dict[str, Any]) -> None:
    """The published prompt, a picture and two canvases."""
    pair = open_pair(toys.Toy(vocabulary=262_144, canvas=CANVAS), folder)
    dice = Dice(pair.toy, 0)
    picture = patches()
    begin, mark, end = 255_999, 258_880, 258_882
    shown = torch.tensor([[begin, *[mark] * (len(picture.values_PX) // 9), end]])
    script = [
        Encode(torch.tensor([known["check"]["ids"]])),
        Denoise(dice.canvas()),
        Denoise(dice.canvas(), dice.logits()),
        Encode(shown, (picture,)),
        Denoise(dice.canvas(), dice.logits()),
    ]
    theirs = play_hf(pair.sdpa, script)
    allowed = max(1e-4, 2 * furthest(theirs, play_hf(pair.eager, script)))
    assert furthest(theirs, play_ours(pair.ours, script)) <= allowed
    assert all(float(said.abs().max()) > 1 for said in theirs)


def patches():
    from diffusiongemma.dialog.images import patches as cut

    image = Image.radial_gradient("L").convert("RGB")
    return cut(image, soft_tokens=70, patch_size=16, pooling=3)


@pytest.mark.parametrize("think", [False, True])
def test_it_answers(gemma: dg.Gemma, think: bool) -> None:
    """Random weights say random things; what was streamed is what the reply says."""
    image = Image.radial_gradient("L").convert("RGB")
    said = gemma.stream(
        "What is this?", images=[image], think=think, seed=1, max_new_tokens=40,
        max_denoising_steps=3,
    )  # fmt: skip
    events = list(said)
    reply = events[-1].reply
    assert reply.stats.new_tokens > 0
    assert "".join(e.text for e in events if isinstance(e, dg.Committed)) == reply.text
