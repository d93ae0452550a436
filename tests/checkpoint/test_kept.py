"""What would be lost on save is kept: words, settings, keys and cards."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

import diffusiongemma as dg
import released_small
from diffusiongemma.checkpoint import card, folder
from diffusiongemma.checkpoint.folder import beside, destination, keep
from diffusiongemma.checkpoint.quantise import quantise_folder
from diffusiongemma.core.errors import CheckpointError
from diffusiongemma.core.reading import read_json

BESIDE = {
    "tokenizer.json": None,
    "tokenizer_config.json": None,
    "chat_template.jinja": None,
    "preprocessor_config.json": None,
    "special_tokens_map.json": b'{"bos_token": "<bos>"}',
    "processor_config.json": b'{"audio_seq_length": 750}',
    "model_index.json": b"{}",
    "rules.json": b"[ 1,\t2 ]",
    "tokenizer.model": b"\x00\xff",
    "LICENSE": b"of the weights",
    "Notice.md": b"of somebody",
    "README.md": b"---\nlicense: mit\n---\nmine\n",
    "additional_chat_templates/tools.jinja": b"{{ tools }}",
}
LEFT = ("optimizer.pt", "training_args.bin", "old.safetensors.index.json", "notes.md")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with all that may lie beside the weights; not to be changed."""
    made = tmp_path_factory.mktemp("kept") / "whole"
    released_small.write(made)
    (made / "additional_chat_templates").mkdir()
    for name, content in BESIDE.items():
        if content is not None:
            (made / name).write_bytes(content)
    for name in LEFT:
        (made / name).write_bytes(b"\x80")
    return made


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def listing(made: Path) -> dict[str, bytes]:
    found = {file.relative_to(made).as_posix(): file for file in made.rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in found.items()}


def test_all_files_beside_the_weights_come_along_though_the_folder_is_gone(
    copy: Path, tmp_path: Path
) -> None:
    before = listing(copy)
    assert set(beside(copy)) == BESIDE.keys()
    gemma = dg.load(copy)
    shutil.rmtree(copy)
    after = listing(gemma.save(tmp_path / "saved"))
    for name in BESIDE.keys() - {"README.md"}:
        assert after[name] == before[name], name
    assert after["README.source.md"] == before["README.md"]  # of weights that nobody can compare
    ours = {"config.json", "generation_config.json", "model.safetensors", "README.source.md"}
    assert after.keys() == BESIDE.keys() | ours
    again = dg.load(tmp_path / "saved")
    assert again.generate("a", seed=1).text == gemma.generate("a", seed=1).text


def test_it_is_what_was_opened_that_is_saved(copy: Path, tmp_path: Path) -> None:
    gemma = dg.load(copy)
    before = listing(copy)
    (copy / "chat_template.jinja").write_text("another model's")
    (copy / "added.json").write_text("{}")
    after = listing(gemma.save(tmp_path / "saved"))
    assert after["chat_template.jinja"] == before["chat_template.jinja"]
    assert "added.json" not in after
    gemma.save(copy, overwrite=True)  # the folder that it came from
    assert listing(copy) == after


def test_keys_of_both_configs_come_along(copy: Path, tmp_path: Path) -> None:
    raw, settings = (read_json(copy / name) for name in ("config.json", "generation_config.json"))
    raw |= {"mine": [1, {"deep": None}], "architectures": ["Other"]}
    raw["text_config"]["rope_parameters"]["full_attention"]["beta"] = 2
    settings |= {"mine": {"a": 1}, "t_max": 0.7}
    settings["sampler_config"]["kind"] = "x"
    (copy / "config.json").write_text(json.dumps(raw))
    (copy / "generation_config.json").write_text(json.dumps(settings))
    saved = dg.load(copy).save(tmp_path / "saved")
    back, said = (read_json(saved / name) for name in ("config.json", "generation_config.json"))
    assert back["mine"] == [1, {"deep": None}]
    assert back["text_config"]["rope_parameters"]["full_attention"]["beta"] == 2
    assert back["vision_config"]["global_head_dim"] == 16
    assert back["architectures"] == ["DiffusionGemmaForBlockDiffusion"]  # it is that, now
    assert said == settings
    assert read_json(dg.load(saved).save(tmp_path / "twice") / "config.json") == back


def test_a_copy_in_another_format_says_so_everywhere(copy: Path, tmp_path: Path) -> None:
    raw = read_json(copy / "config.json")
    assert raw["dtype"] == "float32" and raw["text_config"]["dtype"] == "bfloat16"
    back = read_json(dg.load(copy, dtype="float16").save(tmp_path / "saved") / "config.json")
    assert back["dtype"] == "float16" and "dtype" not in back["text_config"]


def test_what_is_too_large_or_private_is_named(
    copy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(folder, "_MOST", sum((copy / name).stat().st_size for name in BESIDE))
    with (copy / "log.txt").open("wb") as file:
        file.truncate(1 << 40)
    (copy / "pipe.json").unlink(missing_ok=True)
    os.mkfifo(copy / "pipe.json")  # no file; nothing of it could be kept
    with caplog.at_level(logging.WARNING, logger="diffusiongemma.files"):
        assert keep(copy).keys() == BESIDE.keys()
    (said,) = caplog.messages
    assert "cannot be read or are too large to keep: log.txt; a saved copy lacks them" in said


def test_a_card_is_written_where_there_was_none(copy: Path, tmp_path: Path) -> None:
    (copy / "README.md").unlink()
    text = (dg.load(copy).save(tmp_path / "my-gemma") / "README.md").read_text()
    data = ModelCard(text).data.to_dict()
    assert data == {
        "library_name": "diffusiongemma",
        "license": "unknown",
        "pipeline_tag": "image-text-to-text",
        "tags": ["text-diffusion", "diffusion-gemma", "mixture-of-experts"],
    }
    for words in ('dg.load("my-gemma")', 'from_pretrained("my-gemma")', "drafts 16 tokens at once"):
        assert words in text
    assert str(tmp_path) not in text


def test_the_base_and_its_licence_are_told() -> None:
    config = dg.load().model.config
    made = {"about": "About.", "base": "google/diffusiongemma-26B-A4B-it"}
    data = ModelCard(card.compose("me/mine", config, **made)).data
    assert (data.base_model, data.license) == ("google/diffusiongemma-26B-A4B-it", "apache-2.0")
    assert data.pipeline_tag == "text-generation"
    before = (
        b"---\nlicense: other\nlicense_name: mine\nlanguage: de\nbase_model: [a/b, c/d]\n---\n# x"
    )
    told = ModelCard(card.compose("m", config, about="About.", before=before, relation="quantized"))
    data = told.data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "mine")
    assert (data["base_model"], data["base_model_relation"]) == ("a/b", "quantized")
    assert data["language"] == ["de"]
    assert "from_pretrained" in told.text and "About." in told.text


@pytest.mark.parametrize(
    "before",
    [
        b"\xff\xfe---",
        b"---\n- a\n- list\n---\n",
        b"---\n{ : \n---\n",
        b"---\nlicense: [1, {a: 2}]\nbase_model: /home/me/secret\n---\n",
        b"---\nlicense: !!python/object/apply:os.system [exit]\n---\n",
        b"---\nbase_model: {a: 1}\nmodel-index: 3\nlicense: null\n---\n",
        b"---\na: &a [x,x]\nb: &b [*a,*a]\nlicense: *b\n---\n",
    ],
)
def test_a_strangers_card_spoils_nothing(before: bytes) -> None:
    text = card.compose("m", dg.load().model.config, about="About.", before=before)
    data = ModelCard(text).data
    assert isinstance(data.license, str) and data.base_model is None


def test_a_name_that_is_no_word_is_not_written_into_code() -> None:
    config = dg.load().model.config
    text = card.compose('a"); import os #', config, about="About.")
    assert 'dg.load("FOLDER")' in text and "import os" not in text


def test_a_card_by_hand_outlives_an_overwrite(copy: Path, tmp_path: Path) -> None:
    (copy / "README.md").unlink()
    gemma = dg.load(copy)
    target = gemma.save(tmp_path / "saved")
    made = (target / "README.md").read_bytes()
    assert card.by_hand(target) is None
    gemma.save(target, overwrite=True)
    assert (target / "README.md").read_bytes() == made
    edited = made.replace(b"license: unknown", b"license: mit")
    (target / "README.md").write_bytes(edited)
    assert card.by_hand(target) == edited
    gemma.save(target, overwrite=True)
    assert (target / "README.md").read_bytes() == edited


def test_a_card_stays_with_the_weights_that_it_speaks_of(copy: Path, tmp_path: Path) -> None:
    mine = (copy / "README.md").read_bytes()
    for dtype in ("float32", "bfloat16"):
        same = dg.load(copy, dtype=dtype).save(tmp_path / dtype)
        assert (same / "README.md").read_bytes() == mine
        assert not (same / "README.source.md").exists()
    gemma = dg.load(copy)
    with torch.no_grad():
        gemma.model.blocks[1].experts.down[2, 0, 0] += 1
    changed = gemma.save(tmp_path / "changed")
    text = (changed / "README.md").read_text()
    assert "license: mit" in text and "mine" not in text
    assert "README.source.md" in text and (changed / "README.source.md").read_bytes() == mine
    again = dg.load(changed).save(tmp_path / "again")
    for name in ("README.md", "README.source.md"):
        assert (again / name).read_bytes() == (changed / name).read_bytes()
    gemma.save(copy, overwrite=True)  # where the old card lies
    assert "mine" not in (copy / "README.md").read_text()
    gemma.save(tmp_path / "twice")
    assert "mine" not in (tmp_path / "twice/README.md").read_text()


def test_figures_of_the_small_model_are_not_those_of_one_trained_from_it(tmp_path: Path) -> None:
    gemma = dg.load()
    assert "| sorting |" in (gemma.save(tmp_path / "same") / "README.md").read_text()
    step = torch.optim.SGD(gemma.model.requires_grad_(True).parameters(), lr=1e-3)
    for weight in gemma.model.parameters():
        weight.grad = torch.ones_like(weight)
    step.step()
    text = (gemma.save(tmp_path / "trained") / "README.md").read_text()
    assert "| sorting |" not in text and "license: apache-2.0" in text


SECRET = "a private file"


def leads_to(secret: Path, file: Path, by: str) -> None:
    """Have a file of a folder lead to one outside."""
    file.unlink(missing_ok=True)
    if by == "a way up":
        file.symlink_to(os.path.relpath(secret, file.parent))
    elif by == "two links":
        (file.parent / "first").symlink_to(secret)
        file.symlink_to("first")
    else:
        file.symlink_to(secret)


@pytest.mark.parametrize("by", ["a link", "a way up", "two links"])
@pytest.mark.parametrize(
    "name",
    ["README.md", "README.source.md", "LICENSE", "chat_template.jinja", "rules.json", "notes.txt"],
)
def test_a_link_that_leads_out_is_not_copied(
    name: str, by: str, copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    leads_to(secret, copy / name, by)
    gemma = dg.load(copy)
    saved = gemma.save(tmp_path / "saved")
    quantised = quantise_folder(copy, tmp_path / "quantised")
    gemma.save(copy, overwrite=True)  # its own card is no reason to read it either
    for made in (saved, quantised, copy):
        assert SECRET.encode() not in listing(made).values()
    assert f"has links that lead out of it: {name}; a copy lacks them" in caplog.text


def test_settings_and_templates_of_somebody_else(
    copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Any JSON object opens as settings, with its keys named; a folder may be a link, too."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "credentials").write_text(json.dumps({"token": SECRET}))
    (secret / "private.jinja").write_text(SECRET)
    leads_to(secret / "credentials", copy / "generation_config.json", "a link")
    shutil.rmtree(copy / "additional_chat_templates")
    (copy / "additional_chat_templates").symlink_to(secret)
    saved = dg.load(copy).save(tmp_path / "saved")
    for made in (saved, quantise_folder(copy, tmp_path / "quantised")):
        assert not any(SECRET.encode() in content for content in listing(made).values())
    for name in ("generation_config.json", "additional_chat_templates/private.jinja"):
        assert name in caplog.text


def test_a_link_within_a_folder_is_its_own(copy: Path, tmp_path: Path) -> None:
    (copy / "deep").mkdir()
    (copy / "LICENSE").rename(copy / "deep" / "terms")
    (copy / "LICENSE").symlink_to("deep/terms")
    (tmp_path / "linked").symlink_to(copy)
    saved = dg.load(tmp_path / "linked").save(tmp_path / "saved")
    assert (saved / "LICENSE").read_bytes() == BESIDE["LICENSE"]
    assert not (saved / "LICENSE").is_symlink()


@pytest.mark.parametrize("storage", ["models--me--mine", "anything"])
def test_links_of_a_cache_are_those_to_its_blobs(
    storage: str, copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "secret").write_text(SECRET)
    blobs = tmp_path / storage / "blobs"
    snapshot = tmp_path / storage / "snapshots" / "c0ffee"
    blobs.mkdir(parents=True)
    shutil.copytree(copy, snapshot)
    for number, name in enumerate(BESIDE):
        (snapshot / name).rename(blobs / str(number))
        (snapshot / name).symlink_to(os.path.relpath(blobs / str(number), (snapshot / name).parent))
    leads_to(tmp_path / "secret", blobs / "x", "a link")
    (snapshot / "x.txt").symlink_to("../../blobs/x")
    saved = listing(dg.load(snapshot).save(tmp_path / "saved"))
    cached = storage.startswith("models--")
    assert (saved.keys() >= BESIDE.keys()) == cached
    assert (beside(snapshot) == sorted(BESIDE)) == cached
    assert SECRET.encode() not in saved.values()
    assert ("lead out of it: x.txt; a copy" in caplog.text) == cached  # else it is one of many


def test_names_of_folders(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gemma = dg.load(copy)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert gemma.save("~/deep/mine") == tmp_path / "home" / "deep" / "mine"
    assert (tmp_path / "home" / "deep" / "mine" / "config.json").is_file()
    for name, message in (
        ("a\0b", r"'a\\x00b' cannot be a folder: it holds a zero byte; name another"),
        ("~nobody-of-that-name/x", "names the home of an unknown user; check it"),
        ("x" * 300, "cannot be written: File name too long; check"),
    ):
        with pytest.raises(CheckpointError, match=message):
            gemma.save(name)
    assert destination(Path("a")) == Path("a")
