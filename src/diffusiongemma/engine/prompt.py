"""What a user hands in -> token ids and images, checked.

A prompt is a text, a list of messages, or token ids. Knows the checkpoint's words if it has any;
a checkpoint without a tokenizer takes ids only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
from torch import Tensor

from diffusiongemma.core.errors import InputError, OptionError
from diffusiongemma.core.numbers import whole
from diffusiongemma.core.patches import Patches
from diffusiongemma.dialog.chat import Chat
from diffusiongemma.dialog.settings import ImageSettings
from diffusiongemma.model.config import ModelConfig

Text = str
Messages = Sequence[Mapping[str, Any]]
Ids = Sequence[SupportsIndex] | Sequence[Sequence[SupportsIndex]] | Tensor | np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How a prompt is to be read.

    Attributes:
        system: a system message to put first.
        images: pictures that go before a text prompt, or into the placeholders of ids.
        think: have the model think before it answers.
        tools: declarations of tools it may call.
        image_tokens: soft tokens that an image may have: 70, 140, 280, 560 or 1120; as the
            checkpoint says if not given.
        guard: control tokens spelled in messages are read as plain letters.
    """

    system: str | None = None
    images: Sequence[Any] = ()
    think: bool = False
    tools: Sequence[Any] | None = None
    image_tokens: int | None = None
    guard: bool = False


def read(
    prompt: Text | Messages | Ids, asked: Asked, chat: Chat | None, config: ModelConfig
) -> tuple[list[int], list[Patches]]:
    """Token ids and images of a prompt.

    Raises:
        InputError: the prompt is empty, of an unknown kind, too long, or its ids are out of range.
        OptionError: an option that has no meaning for this prompt or checkpoint.
    """
    given = token_ids(prompt)
    if given is not None:
        ids, images = given, _pictures(asked, _settings(chat, config))
    elif chat is None:
        raise InputError(
            "this checkpoint has no tokenizer.json, so a prompt must be a list of token ids, got "
            f"{type(prompt).__name__}"
        )
    else:
        rendered = chat.render(
            _messages(prompt, asked),
            tools=asked.tools,
            think=asked.think,
            guard=asked.guard,
            image_tokens=asked.image_tokens,
        )
        ids, images = list(rendered.ids), rendered.images
    _check(ids, config)
    if asked.image_tokens is not None and not images:
        raise OptionError("image_tokens has no meaning for a prompt without images; leave it out")
    return ids, images


def token_ids(prompt: Any) -> list[int] | None:
    """The ids of a prompt that is ids: a list, an array or a tensor, (N) or one row (1, N).

    Returns:
        None for a prompt of another kind.

    Raises:
        InputError: an array or tensor that cannot be ids.
    """
    if isinstance(prompt, Tensor | np.ndarray):
        row = prompt.squeeze(0) if prompt.ndim == 2 and len(prompt) == 1 else prompt
        kind = str(prompt.dtype).removeprefix("torch.")
        if row.ndim != 1 or not kind.startswith(("int", "uint")):
            raise InputError(
                f"token ids must be one row of whole numbers, got shape {tuple(prompt.shape)} of "
                f"{prompt.dtype}; give several prompts to generate_many"
            )
        return row.tolist()
    if isinstance(prompt, str | bytes) or not isinstance(prompt, Sequence) or not len(prompt):
        return None
    if len(prompt) == 1 and isinstance(prompt[0], list | tuple | Tensor | np.ndarray):
        inner: Any = prompt[0]
        return token_ids(inner) if getattr(inner, "ndim", 1) == 1 else None
    ids = [whole(token) for token in prompt]
    return None if None in ids else [number for number in ids if number is not None]


def _settings(chat: Chat | None, config: ModelConfig) -> ImageSettings:
    """How images are cut; a checkpoint without words still has its tower's numbers."""
    if chat is not None or config.vision is None:
        return ImageSettings() if chat is None else chat.settings
    tower = config.vision
    return ImageSettings(patch_size=tower.patch_size, pooling_kernel_size=tower.pooling_kernel_size)


def _pictures(asked: Asked, settings: ImageSettings) -> list[Patches]:
    for name in ("system", "think", "tools", "guard"):
        if getattr(asked, name):
            raise OptionError(f"{name} has no meaning for a prompt of token ids; give text")
    return [_patches(image, settings, asked.image_tokens) for image in asked.images]


def _patches(image: Any, settings: ImageSettings, budget: int | None) -> Patches:
    if isinstance(image, Patches):
        return image
    from diffusiongemma.dialog import images

    return images.patches(
        images.load(image),
        patch_size=settings.patch_size,
        pooling=settings.pooling_kernel_size,
        soft_tokens=settings.max_soft_tokens if budget is None else budget,
    )


def _messages(prompt: Any, asked: Asked) -> list[Mapping[str, Any]]:
    if isinstance(prompt, str):
        if not prompt.strip() and not asked.images:
            raise InputError("the prompt is empty; give it some text")
        content: Any = prompt
        if asked.images:
            parts = [{"type": "image", "image": image} for image in asked.images]
            content = [*parts, {"type": "text", "text": prompt}]
        messages: list[Mapping[str, Any]] = [{"role": "user", "content": content}]
    elif isinstance(prompt, list | tuple) and all(isinstance(m, Mapping) for m in prompt):
        if asked.images:
            raise OptionError("images of a conversation belong into its messages, as parts")
        messages = list(prompt)
    else:
        raise InputError(
            "a prompt must be text, a list of messages, or a list of token ids, got "
            f"{type(prompt).__name__}"
        )
    if asked.system is not None:
        if messages and messages[0].get("role") == "system":
            raise OptionError("the conversation already begins with a system message")
        messages = [{"role": "system", "content": asked.system}, *messages]
    return messages


def _check(ids: list[int], config: ModelConfig) -> None:
    if not ids:
        raise InputError("the prompt is empty; give it at least one token")
    if min(ids) < 0 or max(ids) >= config.vocab_size:
        wrong = min(ids) if min(ids) < 0 else max(ids)
        raise InputError(
            f"token id {wrong} is not in the vocabulary; ids lie in 0 to {config.vocab_size - 1}"
        )
    if len(ids) >= config.max_position_embeddings:
        raise InputError(
            f"the prompt has {len(ids)} tokens, and this model's context holds "
            f"{config.max_position_embeddings} with the answer; shorten it, or "
            "begin a new conversation"
        )
