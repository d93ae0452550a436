"""The folder of the small model in the hands of transformers' users: silent, small, and back."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer, DiffusionGemmaForBlockDiffusion

import diffusiongemma as dg
from diffusiongemma.checkpoint import stand_in
from diffusiongemma.engine.open import SHIPPED

MB = 1_000_000
pytestmark = pytest.mark.filterwarnings("ignore:.*script_method. is deprecated:DeprecationWarning")


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def opened(folder: Path, caplog: pytest.LogCaptureFixture) -> DiffusionGemmaForBlockDiffusion:
    """Theirs, after it is seen that nothing was missing and nothing said."""
    from transformers.utils import logging

    logging.enable_propagation()
    try:
        kind = DiffusionGemmaForBlockDiffusion
        model, report = kind.from_pretrained(folder, output_loading_info=True)
    finally:
        logging.disable_propagation()
    assert not any(report.values()), report
    assert not [record for record in caplog.records if record.name.startswith("transformers")]
    return model


def test_it_opens_silently_saves_small_and_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = opened(SHIPPED, caplog)
    ours = dg.load()
    count = sum(weight.numel() for weight in ours.model.parameters())
    assert sum(weight.numel() for weight in theirs.parameters()) == count + 133
    theirs.save_pretrained(tmp_path / "theirs")
    assert size(tmp_path / "theirs") < 8 * MB
    back = dg.load(tmp_path / "theirs")
    assert back.model.config == ours.model.config and back.model.config.vision is None
    weights = back.model.state_dict()
    for name, value in ours.model.state_dict().items():
        assert torch.equal(weights[name], value)
    opened(ours.save(tmp_path / "ours"), caplog)
    assert size(tmp_path / "ours") < 8 * MB


def test_whoever_asks_for_a_processor_gets_the_tokenizer() -> None:
    turns = [{"role": "user", "content": "Reverse: abc"}]
    words, processor = (kind.from_pretrained(SHIPPED) for kind in (AutoTokenizer, AutoProcessor))
    told = [
        one.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
        for one in (words, processor)
    ]
    chat = dg.load().chat
    assert chat is not None
    assert told[0] == told[1] == chat.render(turns).ids


def test_pictures_are_refused_as_before() -> None:
    from PIL import Image

    with pytest.raises(dg.DiffusionGemmaError, match="this checkpoint takes none"):
        dg.load().generate("What is it?", images=[Image.new("RGB", (8, 8))])


def test_a_tower_without_layers_is_only_this_one(tmp_path: Path) -> None:
    raw = json.loads((SHIPPED / "config.json").read_text())
    assert raw["vision_config"] == stand_in.CONFIG
    for file in SHIPPED.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    raw["vision_config"]["patch_size"] = 16
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(dg.DiffusionGemmaError, match=r"patch_size = 16, only 1 is built"):
        dg.load(tmp_path)
    raw["vision_config"] = None  # as it was written before: nothing stands in, and none is missed
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert dg.load(tmp_path).model.config.vision is None
