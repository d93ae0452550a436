"""What is unknown is named and tolerated, what is known and cannot be honoured is refused, what is
damaged is refused: of every small file of a checkpoint.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diffusiongemma as dg
import quantised_toys
import released_small
import toys
from diffusiongemma.checkpoint.quantise import quantise_folder
from diffusiongemma.cli.main import main
from diffusiongemma.core.errors import CheckpointError, DiffusionGemmaError
from diffusiongemma.core.log import warn_once
from diffusiongemma.core.reading import read_json


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with every file that one may have; not to be changed."""
    folder = tmp_path_factory.mktemp("policy") / "whole"
    released_small.write(folder)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is said of files; what was said before is said again."""
    warn_once.cache_clear()
    caplog.set_level(logging.WARNING, logger="diffusiongemma.files")
    return caplog


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file."""
    raw = read_json(path) if path.exists() else {}
    change(raw)
    path.write_text(json.dumps(raw))


IMAGES = {"max_soft_tokens": 70, "patch_size": 4, "pooling_kernel_size": 2}


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("config.json", {"mine": 1}, "mine"),
        ("generation_config.json", {"temperature": 0.7, "top_k": 64}, "temperature, top_k"),
        ("generation_config.json", {"sampler_config": {"entropy_bound": 0.1, "kind": "x"}},
         "sampler_config.kind"),
        ("preprocessor_config.json", {"mine": 1}, "mine"),
        ("processor_config.json", {"image_processor": IMAGES | {"mine": 1}},
         "image_processor.mine"),
        ("processor_config.json", {"image_processor": IMAGES, "mine": 1}, "mine"),
    ],
)  # fmt: skip
def test_what_is_unknown_is_named_in_one_line(
    copy: Path,
    warnings: pytest.LogCaptureFixture,
    name: str,
    change: dict[str, Any],
    named: str,
) -> None:
    edit(copy / name, lambda raw: raw.update(change))
    for _ in range(2):
        assert dg.load(copy).generate("a", max_new_tokens=1, seed=0) is not None
    (said,) = warnings.messages
    assert said.startswith(f"{copy / name} has keys that this version does not know: {named}; ")


def test_the_command_says_it_once_as_a_note(
    copy: Path, capsys: pytest.CaptureFixture[str], warnings: pytest.LogCaptureFixture
) -> None:
    edit(copy / "config.json", lambda raw: raw.update({"mine\x1b[2J": 1}))
    assert main(["-m", str(copy), "hello", "--max-new-tokens", "1"]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1 and "does not know: 'mine\\x1b[2J'; they" in notes[0]
    assert main(["doctor", "-m", str(copy)]) == 0


def test_of_a_quantised_one(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    toy = toys.Toy(seed=5, vision=False)
    quantised_toys.write(toy, tmp_path / "theirs")
    toys.write(toy, tmp_path / "plain")
    quantise_folder(tmp_path / "plain", tmp_path / "ours")
    dg.load(tmp_path / "theirs")
    dg.load(tmp_path / "ours")
    assert not warnings.messages

    def change(raw: dict[str, Any]) -> None:
        group = raw["quantization_config"]["config_groups"]["group_0"]
        raw["quantization_config"]["mine"] = group["yours"] = group["weights"]["ours"] = 1

    edit(tmp_path / "ours" / "config.json", change)
    dg.load(tmp_path / "ours")
    group = "quantization_config.config_groups.group_0"
    named = f"quantization_config.mine, {group}.yours, {group}.weights.ours;"
    assert named in warnings.messages[0]


def test_a_processor_that_hears_and_a_pipeline_are_tolerated(
    copy: Path, warnings: pytest.LogCaptureFixture
) -> None:
    from transformers import Gemma4AudioFeatureExtractor, Gemma4ImageProcessorPil

    images = json.loads(Gemma4ImageProcessorPil(**IMAGES).to_json_string())
    hears = json.loads(Gemma4AudioFeatureExtractor().to_json_string())
    whole = {
        "processor_class": "Gemma4Processor",
        "image_processor": images,
        "feature_extractor": hears,
        "video_processor": images | {"video_processor_type": "Gemma4VideoProcessor"},
        "image_seq_length": 280,
        "audio_seq_length": 750,
        "audio_ms_per_token": 40,
    }
    (copy / "processor_config.json").write_text(json.dumps(whole))
    pipeline = {
        "_class_name": "DiffusionGemmaPipeline",
        "_diffusers_version": "0.38.0",
        "model": ["transformers", "DiffusionGemmaForBlockDiffusion"],
        "processor": ["transformers", "Gemma4Processor"],
    }
    (copy / "model_index.json").write_text(json.dumps(pipeline))
    edit(copy / "tokenizer_config.json", lambda raw: raw.update(mine=1, added_tokens_decoder={}))
    chat = dg.load(copy).chat
    assert chat is not None and chat.settings.max_soft_tokens == 70
    (copy / "processor_config.json").unlink()
    (copy / "preprocessor_config.json").write_text(json.dumps(images))  # as it is kept alone
    dg.load(copy)
    assert not warnings.messages


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", {"tie_word_embeddings": False}, "tie_word_embeddings = False, only True"),
        ("config.json", {"quantization_config": {"quant_method": "gptq"}}, "quant_method = 'gptq'"),
        ("generation_config.json", {"t_max": "hot"}, "t_max must be a number"),
        ("generation_config.json", {"sampler_config": {"_cls_name": "Other"}}, "only EntropyBound"),
        ("preprocessor_config.json", {"do_normalize": True}, "do_normalize=True, and only False"),
        ("processor_config.json", {"image_processor": {"resample": 2}}, "resample=2, and only 3"),
        ("tokenizer_config.json", {"chat_template": 5}, "chat_template .* is int and not"),
    ],
)
def test_what_is_known_and_cannot_be_honoured_is_refused(
    copy: Path, name: str, change: dict[str, Any], message: str
) -> None:
    (copy / "chat_template.jinja").unlink()
    edit(copy / name, lambda raw: raw.update(change))
    with pytest.raises(DiffusionGemmaError, match=message):
        dg.load(copy)


@pytest.mark.parametrize("name", ["generation_config.json", "config.json", "text_config"])
@pytest.mark.parametrize(
    "said", [-1, [1, -1], "vocabulary", [1, 10**30], True, 1.0, "1", [[1]], {}]
)
def test_end_marks_are_ids_of_the_vocabulary(copy: Path, name: str, said: object) -> None:
    """Such as -1, which some write for none: transformers never ends an answer then, we do."""
    vocabulary = read_json(copy / "config.json")["text_config"]["vocab_size"]
    value = vocabulary if said == "vocabulary" else said
    end_marks_say(copy, name, value)
    file = "config.json" if name == "text_config" else name
    message = (
        f"{file} has eos_token_id = {value!r}, and must have ids from 0 to {vocabulary - 1}, one or"
        " a list of them; correct it, or remove it to end answers by the tokenizer's marks alone"
    )
    with pytest.raises(CheckpointError, match=re.escape(message)):
        dg.load(copy)
    assert main(["doctor", "-m", str(copy)]) != 0


@pytest.mark.parametrize("name", ["generation_config.json", "config.json", "text_config"])
@pytest.mark.parametrize(("said", "ids"), [(None, set()), ([], set()), (0, {0}), ([0, 7], {0, 7})])
def test_end_marks_add_to_those_of_the_tokenizer(
    copy: Path, name: str, said: object, ids: set[int]
) -> None:
    end_marks_say(copy, name, None)
    usual = dg.load(copy).eos
    end_marks_say(copy, name, said)
    assert dg.load(copy).eos == usual | ids


def end_marks_say(copy: Path, name: str, value: object) -> None:
    """Have one of the three places say it, and the others nothing."""
    for place in ("generation_config.json", "config.json", "text_config"):
        said = value if place == name else None
        file = "config.json" if place == "text_config" else place
        edit(
            copy / file,
            lambda raw, place=place, said=said: raw.get(place, raw).update(eos_token_id=said),
        )


SMALL_FILES = [
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json", "chat_template.jinja",
    "model.safetensors.index.json",
]  # fmt: skip


def make(path: Path, what: str) -> str:
    """Something damaged at a path; gives what is said of it."""
    path.unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(path)
        return "is no regular file"
    if what == "device":
        path.symlink_to("/dev/zero")
        return "is no regular file"
    if what == "link to nothing":
        path.symlink_to("gone")
        return "is a link to nothing"
    path.write_bytes(b"\xff\x00")
    words = {"tokenizer.json": "is not a tokenizer", "chat_template.jinja": "is no text in UTF-8"}
    return words.get(path.name, "is not valid JSON")


@pytest.mark.parametrize("what", ["pipe", "device", "link to nothing", "letters that are none"])
@pytest.mark.parametrize("name", SMALL_FILES)
def test_what_is_damaged_is_refused(copy: Path, name: str, what: str) -> None:
    if name.endswith(".index.json"):
        (copy / "model.safetensors").rename(copy / "model-00001-of-00001.safetensors")
    said = make(copy / name, what)
    if name == "config.json" and what != "letters that are none":
        said = "has no config.json"  # what a folder is, is asked before any file is opened
    if name.endswith(".index.json") and what == "link to nothing":
        said = "has neither model.safetensors nor"
    with pytest.raises(CheckpointError, match=said) as caught:
        dg.load(copy)
    assert "\n" not in str(caught.value)
