"""Messages as users write them, checked and made plain.

Knows roles, parts and the shapes that OpenAI clients send. Does not know templates or tokens, and
does not open pictures: it only notes where they stand.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusiongemma.core.errors import InputError, unknown_name
from diffusiongemma.core.letters import brief
from diffusiongemma.core.numbers import real, whole
from diffusiongemma.dialog.tools import check_calls

# What a role is called for the template. Templates know the names that OpenAI uses.
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
}
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")
_KEYS = {
    "role", "content", "name", "tool_calls", "tool_call_id", "tool_responses", *_THOUGHTS,
}  # fmt: skip
_IMAGE_KEYS = ("image", "url", "path", "base64")
_PART_KEYS = {
    "text": {"type", "text"},
    "image": {"type", *_IMAGE_KEYS},
    "image_url": {"type", "image_url"},
    "video": {"type", "video", "frames", "timestamps", "fps"},
}
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Media:
    """A picture or a video that a message holds.

    Attributes:
        kind: `image` or `video`.
        source: the picture as it was given, or the whole video part.
    """

    kind: str
    source: Any


def flatten(messages: Any) -> tuple[list[dict[str, Any]], list[Media]]:
    """Messages of plain JSON values for the template, and the media in order of appearance.

    A video stands in the plain messages as one image.

    Raises:
        InputError: a message is not one.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
        raise InputError(
            "messages must be a list of {'role': ..., 'content': ...}, "
            f"got {type(messages).__name__}"
        )
    media: list[Media] = []
    turns = [_turn(m, f"message {n}", media) for n, m in enumerate(messages, start=1)]
    if not turns:
        raise InputError("there are no messages; pass at least one of role 'user'")
    return turns, media


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy made of JSON values only, so that a template is never handed a live object."""
    if depth > _MAX_DEPTH:
        raise InputError(f"{where} is nested deeper than {_MAX_DEPTH} levels; flatten it")
    if value is None or type(value) in (str, int, float, bool):
        return value
    number = whole(value)
    number = real(value) if number is None else number
    if number is not None:
        return number
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, where, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, where, depth + 1) for item in value]
    raise InputError(
        f"{where} holds a value of type {type(value).__name__}; use texts, numbers, lists and "
        "dictionaries"
    )


def _turn(message: Any, where: str, media: list[Media]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InputError(
            f"{where} must be {{'role': ..., 'content': ...}}, got {type(message).__name__}"
        )
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise InputError(f"{where}: {unknown_name('role', str(role), _ROLES)}")
    for key, value in message.items():
        if key not in _KEYS and value:  # clients send empty fields that mean nothing
            raise InputError(f"{where}: {unknown_name('key', str(key), _KEYS)}")
    turn: dict[str, Any] = {"role": _ROLES[role]}
    turn["content"] = _content(message.get("content"), where, media)
    calls = check_calls(message["tool_calls"], where) if message.get("tool_calls") else []
    if message.get("content") is None and not calls and not message.get("tool_responses"):
        raise InputError(f"{where} has no content; give a text or a list of parts")
    for key in _KEYS - {"role", "content", "tool_calls", *_THOUGHTS}:
        if message.get(key) is not None:
            turn[key] = plain(message[key], where)
    if calls:
        turn["tool_calls"] = plain(calls, where)
    for key in _THOUGHTS:
        if message.get(key) is not None:
            thought = plain(message[key], where)
            # As the reference: whatever name it came under, templates find it under these two.
            turn.setdefault("reasoning_content", thought)
            turn.setdefault("thinking", message.get("thinking") or thought)
            turn[key] = thought
    return turn


def _content(content: Any, where: str, media: list[Media]) -> Any:
    if content is None:
        return ""
    if isinstance(content, str):
        return str.__str__(content)
    if not isinstance(content, list | tuple):
        raise InputError(
            f"{where}: content must be a text or a list of parts, got {type(content).__name__}"
        )
    return [_part(p, f"{where}, part {n}", media) for n, p in enumerate(content, start=1)]


def _part(part: Any, where: str, media: list[Media]) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": str.__str__(part)}
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or not isinstance(kind, str) or kind not in _PART_KEYS:
        raise InputError(
            f"{where} must be {{'type': 'text' | 'image' | 'image_url' | 'video', ...}}, got "
            f"{f'type {brief(kind)}' if isinstance(part, Mapping) else type(part).__name__}"
        )
    for key, value in part.items():
        if key not in _PART_KEYS[kind] and value is not None:
            raise InputError(f"{where}: {unknown_name('key', str(key), _PART_KEYS[kind])}")
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise InputError(
                f"{where}: 'text' must be a text, got {type(part.get('text')).__name__}"
            )
        return {"type": "text", "text": str.__str__(part["text"])}
    media.append(_medium(kind, part, where))
    return {"type": "image"}


def _medium(kind: str, part: Mapping[str, Any], where: str) -> Media:
    if kind == "video":
        given = {key: value for key, value in part.items() if value is not None}
        if ("video" in given) == ("frames" in given):
            raise InputError(
                f"{where}: a video needs either 'video' or 'frames'; give one of the two"
            )
        if "video" in given and given.keys() & {"fps", "timestamps"}:
            raise InputError(
                f"{where}: 'fps' and 'timestamps' belong to 'frames'; a file is sampled at one "
                "frame per second, so leave them out"
            )
        return Media("video", given)
    if kind == "image_url":
        source = part.get("image_url")
        source = source.get("url") if isinstance(source, Mapping) else source
        return Media("image", _address(source, "'image_url'", where))
    given = {key: part[key] for key in _IMAGE_KEYS if part.get(key) is not None}
    if len(given) != 1:
        got = " and ".join(map(repr, given)) or "no 'image'"
        raise InputError(
            f"{where} has {got}; give one of 'image' (a path, bytes, an array, a PIL image or a "
            "data: URI), 'path', 'base64' and 'url' (a data: URI)"
        )
    ((key, source),) = given.items()
    if key == "url":
        return Media("image", _address(source, "'url'", where))
    if key == "path":
        if not isinstance(source, str | os.PathLike):
            raise InputError(f"{where}: 'path' must be a path, got {type(source).__name__}")
        return Media("image", Path(source))
    if key == "base64":
        if not isinstance(source, str):
            raise InputError(f"{where}: 'base64' must be a text, got {type(source).__name__}")
        source = source if source[:5].lower() == "data:" else f"data:;base64,{source}"
    return Media("image", source)


def _address(source: Any, name: str, where: str) -> str:
    # A path here would let a stranger's request open files of this machine.
    if not isinstance(source, str) or source[:5].lower() != "data:":
        raise InputError(
            f"{where}: only data: URIs are taken as {name}, since this package fetches nothing "
            "from the network; download the picture first, and pass {'type': 'image', 'path': ...}"
        )
    return source
