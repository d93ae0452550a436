"""The released files as far as they can be had, and transformers' tokenizer over them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffusiongemma.dialog.chat import Chat, SpecialIds
from diffusiongemma.dialog.tokenizer import Tokenizer
from real_files import LARGER, TEMPLATES, VOCABULARY, fetch

HERE = Path(__file__).parent


def read(name: str) -> dict[str, Any]:
    """One of the released JSON files."""
    return json.loads((HERE / name).read_text("utf-8"))


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the real vocabulary of Gemma 4, and its marks under their names."""
    plan = json.loads(fetch(VOCABULARY)["tokenizer.json"].read_text("utf-8"))
    names = dict(read("tokenizer_renames.json")["rename_ids"].values())
    vocabulary = plan["model"]["vocab"]
    plan["model"]["vocab"] = {names.get(piece, piece): n for piece, n in vocabulary.items()}
    plan["added_tokens"] = [
        {
            **token,
            "content": names.get(token["content"], token["content"]),
            "special": token["special"] or token["content"] in names,
        }
        for token in plan["added_tokens"]
        if token["id"] < len(vocabulary)
    ]
    folder = tmp_path_factory.mktemp("words")
    (folder / "tokenizer.json").write_text(json.dumps(plan), "utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")},
        "extra_special_tokens": {
            "image_token": "<|image|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "audio_token": "<|audio|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def tokenizer(words: Path) -> Tokenizer:
    found = Tokenizer.from_folder(words)
    assert found is not None
    return found


@pytest.fixture(scope="session")
def theirs(words: Path) -> Any:
    """transformers' tokenizer of the same file."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(words)


@pytest.fixture(scope="session")
def template() -> Callable[[str], str]:
    """The text of a chat template by its name."""

    def get(name: str) -> str:
        package = LARGER if name == "gemma-4" else TEMPLATES
        return fetch(package)[f"{name}.jinja"].read_text("utf-8")

    return get


@pytest.fixture(scope="session")
def chat(
    words: Path,
    tokenizer: Tokenizer,
    template: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Chat]:
    """Our chat over the real vocabulary and the named template."""
    config, made = read("config.json"), dict[str, Chat]()

    def get(name: str) -> Chat:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            shutil.copy(words / "tokenizer_config.json", folder)
            (folder / "chat_template.jinja").write_text(template(name), "utf-8")
            marks = ("image_token_id", "boi_token_id", "eoi_token_id")
            ids = SpecialIds(**{mark: config[mark] for mark in marks})
            made[name] = Chat.from_folder(folder, tokenizer, ids)
        return made[name]

    return get


@pytest.fixture(scope="session")
def known() -> dict[str, Any]:
    """Published ids, and the marks that Gemma 4 renames."""
    return read("tokenizer_renames.json")
