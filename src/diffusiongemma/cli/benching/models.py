"""The networks that are measured: what ships, a middling one made on the fly, or any checkpoint."""

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from diffusiongemma.checkpoint import hub
from diffusiongemma.checkpoint.config import read_config
from diffusiongemma.checkpoint.load import load_model
from diffusiongemma.checkpoint.save import save_model
from diffusiongemma.engine.open import SHIPPED
from diffusiongemma.model.config import LayerConfig, ModelConfig
from diffusiongemma.model.init import initialise
from diffusiongemma.model.model import DiffusionGemma

_SLIDING = LayerConfig(sliding=True, head_dim=64, num_key_value_heads=4)
_FULL = LayerConfig(sliding=False, head_dim=128, num_key_value_heads=2)
MID = ModelConfig(
    vocab_size=16_384,
    hidden_size=512,
    intermediate_size=1024,
    layers=(*[_SLIDING] * 5, _FULL, _SLIDING, _FULL),
    num_attention_heads=8,
    sliding_window=256,
    num_experts=32,
    top_k_experts=4,
    moe_intermediate_size=256,
    max_position_embeddings=8192,
    canvas_length=256,
)


@contextmanager
def folder_of(name: str, dtype: torch.dtype) -> Iterator[tuple[Path, str]]:
    """A checkpoint's folder with weights in a format, and what to call it.

    Args:
        name: `shipped`, `mid`, a folder or a hub id.
        dtype: of the weights of a model that is made here; a folder keeps its own.
    """
    if name == "mid":
        config = dataclasses.replace(MID, dtype=str(dtype).removeprefix("torch."))
        with tempfile.TemporaryDirectory(prefix="diffusiongemma-bench-") as scratch:
            model = initialise(DiffusionGemma(config).to(dtype), seed=0)
            yield save_model(model, Path(scratch) / "model"), "mid, random weights"
    else:
        folder = hub.find(SHIPPED if name == "shipped" else name)
        yield folder, Path(name).name or folder.resolve().name


def opened(folder: Path, dtype: torch.dtype) -> DiffusionGemma:
    """The folder's network."""
    config = read_config(folder).config
    return load_model(folder, config, device=torch.device("cpu"), dtype=dtype)


def prompts(config: ModelConfig, rows: int, tokens: int) -> Int[Tensor, "B T"]:
    """Random text, the same at every call, without placeholders of images."""
    dice = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(0, config.vocab_size, (rows, tokens), generator=dice)
    mark = -1 if config.image_token_id is None else config.image_token_id
    return ids_BT.masked_fill(ids_BT == mark, 0)
