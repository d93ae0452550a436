"""The released checkpoint's files in small: the same keys, and numbers that a test can afford."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import toys
from toys_words import SIZE, write_words

RELEASED = Path(__file__).parent / "released"
CONFIG: dict[str, Any] = json.loads((RELEASED / "config.json").read_text())
GENERATION: dict[str, Any] = json.loads((RELEASED / "generation_config.json").read_text())

_SLIDING, _FULL = "sliding_attention", "full_attention"
_TEXT = {
    "global_head_dim": 32,
    "head_dim": 16,
    "hidden_size": 64,
    "intermediate_size": 96,
    "layer_types": [*[_SLIDING] * 2, _FULL, *[_SLIDING] * 2, _FULL],
    "max_position_embeddings": 1024,
    "moe_intermediate_size": 32,
    "num_attention_heads": 4,
    "num_experts": 8,
    "num_global_key_value_heads": 1,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "sliding_window": 16,
    "top_k_experts": 2,
}
_VISION = {
    "global_head_dim": 16,
    "head_dim": 16,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "patch_size": 4,
    "pooling_kernel_size": 2,
    "position_embedding_size": 64,
}


def write(folder: Path, words: Path | None = None) -> dict[str, Any]:
    """A checkpoint with words and loud random weights.

    Args:
        folder: where it is put.
        words: a folder with the real vocabulary, for the released ids and size of patches; words
            of a toy if not given.

    Returns:
        its config.json.
    """
    from transformers import DiffusionGemmaConfig

    raw = copy.deepcopy(CONFIG)
    raw["text_config"] |= _TEXT
    raw["vision_config"] |= _VISION
    raw |= {"canvas_length": 16, "dtype": "float32"}
    if words is None:
        _speak_as_a_toy(raw, folder)
    else:
        shutil.copytree(words, folder, dirs_exist_ok=True)
        raw["text_config"]["vocab_size"] = CONFIG["text_config"]["vocab_size"]
        for name in ("patch_size", "pooling_kernel_size"):
            raw["vision_config"][name] = CONFIG["vision_config"][name]
    toys.loud(
        DiffusionGemmaConfig.from_dict(copy.deepcopy(raw)), seed=7, calm=True
    ).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(raw, indent=1))
    settings = GENERATION | {"eos_token_id": raw["eos_token_id"]}
    (folder / "generation_config.json").write_text(json.dumps(settings, indent=1))
    (folder / "preprocessor_config.json").write_text('{"max_soft_tokens": 70}')
    return raw


def _speak_as_a_toy(raw: dict[str, Any], folder: Path) -> None:
    marks = write_words(folder)
    raw["text_config"]["vocab_size"] = SIZE
    raw |= {
        "boi_token_id": marks["<|image>"],
        "eoi_token_id": marks["<image|>"],
        "eos_token_id": [marks["<eos>"], marks["<turn|>"], marks["<|tool_response>"]],
        "image_token_id": marks["<|image|>"],
    }
