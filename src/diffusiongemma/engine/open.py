"""Open a checkpoint: find it, read its files, put its weights in place, hand back the door."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diffusiongemma.checkpoint import hub
from diffusiongemma.checkpoint.config import read_config
from diffusiongemma.checkpoint.folder import CONFIG, GENERATION, Kept, is_own, keep, origin
from diffusiongemma.checkpoint.load import load_model
from diffusiongemma.core.device import choose
from diffusiongemma.core.errors import CheckpointError
from diffusiongemma.core.letters import brief
from diffusiongemma.core.reading import find_json, name_unknown
from diffusiongemma.dialog.chat import Chat, SpecialIds
from diffusiongemma.dialog.settings import ImageSettings
from diffusiongemma.dialog.tokenizer import Tokenizer
from diffusiongemma.diffusion.config import SamplerConfig
from diffusiongemma.engine.gemma import Gemma
from diffusiongemma.kernels.ops import reference_asked
from diffusiongemma.model.config import ModelConfig

SHIPPED = Path(__file__).resolve().parent.parent / "small"
"""The small model inside the package; its README.md is its card."""

# Marks that stand for pictures and sound. The model reads them; an answer never holds them.
_PLACEHOLDERS = (
    "<|image>", "<|image|>", "<image|>", "<|audio>", "<|audio|>", "<audio|>", "<|video|>"
)  # fmt: skip


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    token: str | None = None,
    offline: bool | None = None,
    progress: bool | None = None,
    kernels: str = "auto",
) -> Gemma:
    """Open a DiffusionGemma checkpoint.

    Args:
        model: a folder in Hugging Face's layout, or a hub id such as
            `google/diffusiongemma-26B-A4B-it`; the small model inside the package if not given.
        device: `cpu`, `cuda` or `cuda:N`; the first GPU if there is one.
        dtype: `bfloat16`, `float32` or `float16`; as the checkpoint stores it if not given.
        revision: branch, tag or commit on the hub.
        token: for gated repositories; by default the one that the hub's tools have stored.
        offline: take nothing from the network.
        progress: show bars on standard error; by default if that is a terminal.
        kernels: `auto` for the fastest there is; `reference` for layers and ops as they are
            written, on any device: slow, and what hooks and replaced modules need.

    Raises:
        CheckpointError: files are missing, damaged, or cannot be fetched.
        ConfigError: the checkpoint asks for something that this code cannot honour.
        DeviceError: the machine lacks the device or format.
        OptionError: `kernels`, or the environment's DIFFUSIONGEMMA_KERNELS, is something else.
    """
    reference_asked(kernels)
    shown = sys.stderr is not None and sys.stderr.isatty() if progress is None else progress
    folder = hub.find(
        SHIPPED if model is None else model,
        revision=revision,
        token=token,
        offline=offline,
        progress=shown,
    )
    described = read_config(folder)
    config = described.config
    place = choose(device, dtype, config.dtype)
    settings = read_settings(folder)
    eos = end_marks(settings, described.raw, config.vocab_size)
    tokenizer = Tokenizer.from_folder(folder)
    chat = None if tokenizer is None else open_chat(folder, tokenizer, config, eos)
    network = load_model(folder, config, device=place.device, dtype=place.dtype, progress=shown)
    network.kernels = kernels
    return Gemma(
        network,
        chat=chat,
        sampler=SamplerConfig.from_generation_config(settings),
        eos=frozenset(eos) if chat is None else chat.marks.ends,
        banned=_placeholders(config, tokenizer),
        device=place,
        folder=folder,
        kept=_kept(folder, described.kept, settings, model),
    )


def _kept(folder: Path, config: Mapping[str, Any], settings: Mapping[str, Any], model: Any) -> Kept:
    """What a copy of the checkpoint will need."""
    return Kept(
        config=config,
        generation=settings if is_own(folder, GENERATION) else {},
        files=keep(folder),
        origin=None if model is None else origin(model, folder),
    )


def read_settings(folder: Path) -> dict[str, Any]:
    """A folder's `generation_config.json`; keys that nobody here knows are named once.

    Raises:
        CheckpointError: the file is no JSON object.
    """
    path = folder / GENERATION
    settings = find_json(path) or {}
    name_unknown(path, SamplerConfig.unknown(settings))
    return settings


def end_marks(
    settings: Mapping[str, Any], raw: Mapping[str, Any], vocabulary: int
) -> tuple[int, ...]:
    """Ids that end an answer by the files: the generation config's, else the config's.

    Where there is a tokenizer they add to the marks that always do, see `dialog.marks`.

    Args:
        settings: the parsed `generation_config.json`.
        raw: the parsed `config.json`.
        vocabulary: number of tokens.

    Raises:
        CheckpointError: something else than ids of the vocabulary stands there.
    """
    text = raw.get("text_config") or {}
    for name, source in ((GENERATION, settings), (CONFIG, raw), (CONFIG, text)):
        value = source.get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(type(one) is int and 0 <= one < vocabulary for one in ids):
            raise CheckpointError(
                f"{name} has eos_token_id = {brief(value)}, and must have ids from 0 to "
                f"{vocabulary - 1}, one or a list of them; correct it, or remove it to end answers "
                "by the tokenizer's marks alone"
            )
        return tuple(ids)
    return ()


def open_chat(
    folder: Path, tokenizer: Tokenizer, config: ModelConfig, eos: tuple[int, ...]
) -> Chat:
    """The words of a checkpoint.

    Raises:
        CheckpointError: tokenizer, image processor and network do not belong together.
        ConfigError: an image processor that is not built.
    """
    if tokenizer.size > config.vocab_size:
        raise CheckpointError(
            f"the tokenizer in {folder} has {tokenizer.size} tokens, the network "
            f"{config.vocab_size}; check that both come from the same checkpoint"
        )
    has_vision = config.vision is not None
    ids = SpecialIds(
        image_token_id=config.image_token_id if has_vision else None,
        boi_token_id=config.boi_token_id if has_vision else None,
        eoi_token_id=config.eoi_token_id if has_vision else None,
        eos_token_id=eos,
    )
    if config.vision is None:
        return Chat.from_folder(folder, tokenizer, ids)
    tower = (config.vision.patch_size, config.vision.pooling_kernel_size)
    usual = ImageSettings(patch_size=tower[0], pooling_kernel_size=tower[1])
    chat = Chat.from_folder(folder, tokenizer, ids, usual)
    cut = (chat.settings.patch_size, chat.settings.pooling_kernel_size)
    if cut != tower:
        raise CheckpointError(
            f"the image processor in {folder} cuts patches of {cut[0]} pixels pooled by {cut[1]}, "
            f"the vision tower takes {tower[0]} and {tower[1]}; check that both come from the same "
            "checkpoint"
        )
    return chat


def _placeholders(config: ModelConfig, tokenizer: Tokenizer | None) -> list[int]:
    ids = {config.image_token_id, config.boi_token_id, config.eoi_token_id}
    if tokenizer is not None:
        ids |= {tokenizer.id(name) for name in _PLACEHOLDERS}
    return sorted(one for one in ids if one is not None and 0 <= one < config.vocab_size)
