"""A run written down while it is followed, and what led to it.

Knows the door, the tokenizer and how a token reads; a trace itself needs neither.
"""

import operator
import os
import platform
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, SupportsIndex

from diffusiongemma import __version__
from diffusiongemma.core.letters import MASK
from diffusiongemma.core.numbers import whole
from diffusiongemma.dialog.stream import stop_strings
from diffusiongemma.dialog.tokenizer import Tokenizer
from diffusiongemma.engine.events import Committed, Event, Finished, Refined
from diffusiongemma.engine.gemma import Gemma
from diffusiongemma.engine.prompt import Asked, Ids, Messages, Text, token_ids
from diffusiongemma.engine.trace import LIMIT, About, Token, Trace, clean

DIGITS = 4  # of an entropy; stop rules look at the third
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Recorder:
    """Writes down what passes through `follow`.

    Args:
        about: what led to the run.
        tokenizer: the checkpoint's; None if it has none.
        limit: positions times steps to keep.
    """

    def __init__(self, about: About, tokenizer: Tokenizer | None, *, limit: int = LIMIT) -> None:
        self._about, self._tokenizer, self._room = about, tokenizer, limit
        self._events: list[Event] = []
        self._tokens: dict[int, Token] = {}
        self._skipped: Refined | None = None
        self._left_out = 0

    def follow(self, events: Iterable[Event]) -> Iterator[Event]:
        """Pass events on, unchanged."""
        for event in events:
            self._take(event)
            yield event

    def trace(self) -> Trace:
        """What was written down, once the run has finished."""
        assert self._events and isinstance(self._events[-1], Finished), "the run has not finished"
        return Trace(
            about=self._about,
            events=tuple(self._events),
            tokens=dict(self._tokens),
            left_out=self._left_out,
        )

    def _take(self, event: Event) -> None:
        if isinstance(event, Refined) and self._room < len(event.best):
            self._left_out += 1
            self._skipped = event
            return
        if isinstance(event, Committed) and self._skipped is not None:
            self._keep(self._skipped)  # a canvas is never without its last step
            self._left_out -= 1
        self._skipped = None
        if isinstance(event, Refined):
            self._room -= len(event.best)
            self._keep(event)
            return
        if isinstance(event, Committed):
            self._learn(event.tokens)
        if isinstance(event, Finished):
            pieces = tuple((text, round(doubt, DIGITS)) for text, doubt in event.reply.pieces)
            event = Finished(reply=replace(event.reply, pieces=pieces))
        self._events.append(event)

    def _keep(self, step: Refined) -> None:
        for ids in (step.before, step.best, step.after):
            self._learn(ids)
        entropy = tuple(round(one, DIGITS) for one in step.entropy)
        self._events.append(replace(step, entropy=entropy, temperature=round(step.temperature, 6)))

    def _learn(self, ids: Sequence[int]) -> None:
        for number in ids:
            if number not in self._tokens:
                self._tokens[number] = read_token(number, self._tokenizer)


def record(
    gemma: Gemma,
    prompt: Text | Messages | Ids,
    *,
    model: str | None = None,
    seed: SupportsIndex | None = None,
    limit: int = LIMIT,
    **options: Any,
) -> Trace:
    """Answer a prompt and write down how.

    Args:
        gemma: who answers.
        prompt: as in `Gemma.generate`.
        model: the name to note; the folder's if not given.
        seed: as in `Gemma.generate`.
        limit: positions times steps to keep; the steps beyond are counted, not kept.
        **options: as in `Gemma.generate`.
    """
    seed = secrets.randbits(32) if seed is None else seed
    events = gemma.stream(prompt, seed=seed, **options)
    about = describe(gemma, prompt, model=model, seed=seed, options=options)
    recorder = Recorder(about, gemma.chat and gemma.chat.tokenizer, limit=limit)
    for _ in recorder.follow(events):
        pass
    return recorder.trace()


def describe(
    gemma: Gemma,
    prompt: Text | Messages | Ids,
    *,
    model: str | None,
    seed: SupportsIndex,
    options: Mapping[str, Any],
) -> About:
    """What leads to a run, for its first line.

    Args:
        gemma: who answers.
        prompt: as given to it.
        model: the name as the user wrote it; a path is cut to its last part.
        seed: as given to it.
        options: as given to it; checked there.
    """
    import torch

    asked = {*Asked.__slots__, "stop", "rule"}
    sampling = {name: value for name, value in options.items() if name not in asked}
    config = gemma.sampler.with_options(**sampling)
    noted: dict[str, Any] = {name: getattr(config, name) for name in config.__slots__}
    noted["canvas_length"] = config.canvas_length or gemma.model.config.canvas_length
    for name in ("system", "think", "guard"):
        if given := options.get(name):
            noted[name] = given if isinstance(given, str) else True
    if options.get("image_tokens") is not None:
        noted["image_tokens"] = whole(options["image_tokens"])
    if stop := stop_strings(options.get("stop")):
        noted["stop"] = list(stop)
    for name in ("images", "tools"):
        given = options.get(name)
        count = len(given) if isinstance(given, list | tuple) else int(given is not None)
        noted |= {name: count} if count else {}
    if options.get("rule") is not None:
        noted["rule"] = type(options["rule"]).__name__
    dtype = str(gemma.device.dtype).removeprefix("torch.")
    return About(
        model=_name(gemma.folder if model is None else model),
        prompt=_said(prompt),
        seed=operator.index(seed),
        options=noted,
        device=f"{gemma.device.device} {dtype}",
        versions={
            "diffusiongemma": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
        },
    )


def read_token(number: int, tokenizer: Tokenizer | None) -> Token:
    """How a token reads when it stands alone."""
    name = None if tokenizer is None else tokenizer.token(number)
    if tokenizer is None or name is None:
        return Token("id", str(number))
    if tokenizer.is_control(number):
        return Token("mark", clean(name).replace("\n", MASK))
    text = tokenizer.decode([number], special=True)
    if "\N{REPLACEMENT CHARACTER}" in text:
        raw = _raw(name)
        if raw is not None:
            return Token("bytes", raw.hex().upper())
    if name.startswith("\N{LOWER ONE EIGHTH BLOCK}") and not text.startswith(" "):
        text = f" {text}"  # some decoders trim the start of a text
    return Token("text", clean(text))


def _raw(name: str) -> bytes | None:
    """The bytes behind a token's name, in either of the two ways to write them."""
    match = _BYTE.fullmatch(name)
    if match:
        return bytes.fromhex(match[1])
    # Byte-level tokenizers write each byte as a letter: itself, or one from 256 on if it is shy.
    plain = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    shy = [b for b in range(256) if b not in set(plain)]
    letters = {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(shy)}
    found = [letters.get(letter) for letter in name]
    return bytes(b for b in found if b is not None) if None not in found else None


def _name(model: str | os.PathLike[str]) -> str:
    """A hub id as it is; of a path the last part, or the hub id of the cache it points into."""
    path = Path(os.fspath(model))
    for part in path.parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    hub_id = isinstance(model, str) and len(path.parts) == 2 and not path.exists()
    return str(model) if hub_id and not path.is_absolute() else path.resolve().name


def _said(prompt: Text | Messages | Ids) -> str:
    if isinstance(prompt, str):
        return prompt
    ids = token_ids(prompt)
    if ids is not None:
        return "token ids " + " ".join(map(str, ids))
    parts: Sequence[Any] = prompt  # pyright: ignore[reportAssignmentType] (read by now)
    return "\n".join(f"{part.get('role')}: {_content(part.get('content'))}" for part in parts)


def _content(content: Any) -> str:
    if isinstance(content, list | tuple):
        kinds = (part if isinstance(part, Mapping) else {} for part in content)
        return " ".join(str(part.get("text", f"[{part.get('type')}]")) for part in kinds)
    return "" if content is None else str(content)
