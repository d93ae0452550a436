"""The door: a network, its words and its defaults, behind four verbs.

`generate` answers, `generate_many` answers several prompts together, `stream` shows how, `steps`
hands every step to a researcher. All of them are readers of `engine.engine`.
"""

import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, SupportsIndex, Unpack

import numpy as np

from diffusiongemma.checkpoint.folder import Kept, keep
from diffusiongemma.core.device import Device
from diffusiongemma.core.errors import InputError, OptionError, unknown_name
from diffusiongemma.core.letters import brief
from diffusiongemma.core.numbers import whole
from diffusiongemma.core.patches import Patches
from diffusiongemma.dialog.chat import Chat
from diffusiongemma.dialog.reply import ReplyStream
from diffusiongemma.dialog.stream import stop_strings
from diffusiongemma.diffusion.accept import AcceptRule, wanted
from diffusiongemma.diffusion.commit import Commit
from diffusiongemma.diffusion.config import SamplerConfig
from diffusiongemma.diffusion.loop import DraftStep, Recipe
from diffusiongemma.engine.conversation import Conversation
from diffusiongemma.engine.engine import Engine, Look, Request
from diffusiongemma.engine.events import Event, Finished
from diffusiongemma.engine.options import ConversationOptions, Options
from diffusiongemma.engine.prompt import Asked, Ids, Messages, Text, read
from diffusiongemma.engine.reply import Reply
from diffusiongemma.engine.request import Hearing
from diffusiongemma.engine.saving import Copy
from diffusiongemma.kernels.readout import Ask, banning
from diffusiongemma.model.count import parameters
from diffusiongemma.model.model import DiffusionGemma

_KNOWN = {
    *Asked.__slots__,
    *(field.name for field in fields(SamplerConfig)),
    "rule",
    "seed",
    "stop",
}


class Gemma:
    """An opened checkpoint. Made by `diffusiongemma.load`.

    Attributes:
        model: the network.
        chat: its words; None for a checkpoint without a tokenizer.
        sampler: the checkpoint's sampling defaults.
        eos: ids that end an answer.
        device: where it computes, in which format, and why.
        folder: where it came from.
    """

    def __init__(
        self,
        model: DiffusionGemma,
        *,
        chat: Chat | None,
        sampler: SamplerConfig,
        eos: frozenset[int],
        banned: Sequence[int],
        device: Device,
        folder: Path,
        kept: Kept | None = None,
    ) -> None:
        self.model, self.chat, self.sampler = model, chat, sampler
        self._engine = Engine(model)
        self._kept = kept or Kept(files=keep(folder))
        self.eos, self.device, self.folder = eos, device, folder
        self._bias_V = banning(banned, model.config.vocab_size, device.device)

    def __repr__(self) -> str:
        count = parameters(self.model.config)
        where, kind = self.device.device, str(self.model.dtype).removeprefix("torch.")
        return f"Gemma({self.folder.name!r:.60}, {count:,} parameters, {where}, {kind})"

    def generate(
        self,
        prompt: Text | Messages | Ids,
        *,
        seed: SupportsIndex | None = None,
        stop: str | Sequence[str] | None = None,
        rule: AcceptRule | None = None,
        **options: Unpack[Options],
    ) -> Reply:
        """Answer a prompt.

        Args:
            prompt: a text, a list of messages, or token ids.
            seed: the same seed gives the same answer; drawn at random if not given, and reported.
            stop: a text, or several, that end the answer and are not part of it.
            rule: which positions a step accepts, instead of the entropy bound.
            **options: `system`, `images`, `image_tokens`, `think`, `tools`, `guard` (see
                `engine.prompt.Asked`) and every field of `SamplerConfig`.

        Raises:
            InputError: a prompt, message or image that cannot be taken.
            OptionError: an option that does not exist or has no meaning here.
        """
        heard = self._request(prompt, seed, stop, rule, None, options)
        for event in heard.tell(self._engine.answer([heard.request])):
            if isinstance(event, Finished):
                return event.reply
        raise AssertionError("a stream ends with Finished")

    def stream(
        self,
        prompt: Text | Messages | Ids,
        *,
        seed: SupportsIndex | None = None,
        stop: str | Sequence[str] | None = None,
        rule: AcceptRule | None = None,
        **options: Unpack[Options],
    ) -> Iterator[Event]:
        """Answer a prompt and tell of every step; arguments as in `generate`.

        Yields:
            `Refined` for each step, `Committed` for each finished canvas, `Finished` at the end.
        """
        heard = self._request(prompt, seed, stop, rule, None, options)
        return heard.tell(self._engine.answer([heard.request], look=Look.EVENTS, paced=True))

    def steps(
        self,
        prompt: Text | Messages | Ids,
        *,
        seed: SupportsIndex | None = None,
        rule: AcceptRule | None = None,
        ask: Ask | None = None,
        **options: Unpack[Options],
    ) -> Iterator[DraftStep]:
        """Every step with its canvas, hidden states and readout, for research.

        `step.replace(canvas)` has the next step see another canvas. Arguments as in `generate`,
        and `ask`, which has readouts report more (see `kernels.readout.Ask`).
        """
        request = self._request(prompt, seed, None, rule, ask, options).request
        items = self._engine.answer([request], look=Look.STEPS, paced=True)
        return (item for _, item in items if isinstance(item, DraftStep))

    def converse(self, **options: Unpack[ConversationOptions]) -> Conversation:
        """A conversation that remembers what was said, and reads only what is new in each turn.

        Args:
            **options: for all its turns, as in `generate`; a turn may have others.

        Raises:
            InputError: this checkpoint has no words.
            OptionError: an option that does not exist or has no meaning here.
        """
        if self.chat is None:
            raise InputError("a conversation needs words, and this checkpoint has no tokenizer")
        if "images" in options or "seed" in options:
            raise OptionError("images and seeds belong to a turn; give them to its generate")
        usual = {"stop": None, "rule": None} | options
        given = {name: value for name, value in options.items() if name not in ("stop", "rule")}
        stop, rule = options.get("stop"), options.get("rule")
        self._request("?", None, stop, rule, None, given)  # refused now, or never
        return Conversation(self._engine, self._request, usual)

    def generate_many(
        self,
        prompts: Sequence[Text | Messages | Ids],
        *,
        seed: SupportsIndex | Sequence[SupportsIndex] | np.ndarray | None = None,
        stop: str | Sequence[str] | None = None,
        rule: AcceptRule | None = None,
        **options: Unpack[Options],
    ) -> list[Reply]:
        """Answer several prompts together. Each gets the answer it would get alone.

        Args:
            prompts: one or more.
            seed: one for all, or one for each; with one for all, equal prompts get equal answers.
            stop: as in `generate`.
            rule: as in `generate`.
            **options: as in `generate`, the same for all.
        """
        if isinstance(prompts, str):
            raise InputError("prompts must be a list of prompts, got one text; use generate")
        prompts = list(prompts)
        seeds = _seeds(seed, len(prompts))
        heard = [
            self._request(prompt, one, stop, rule, None, options)
            for prompt, one in zip(prompts, seeds, strict=True)
        ]
        if not heard:
            return []
        replies: dict[int, Reply] = {}
        items = self._engine.answer([one.request for one in heard])
        for row, item in items:
            assert isinstance(item, Commit)  # nobody looks at steps
            heard[row].take(item)
            if heard[row].ended:
                items.end(row)
                replies[row] = heard[row].reply()
        return [replies[row] for row in range(len(heard))]

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write a checkpoint folder that transformers opens too.

        It has the files that lay beside the weights when this was opened, and the keys of both
        configs that the network and its sampler do not decide, known here or not. A card is
        written where there was none.

        Args:
            folder: where to; it must not exist, or be empty, unless `overwrite`.
            overwrite: replace a checkpoint that is there, with all that its folder holds but a
                card that a person wrote.

        Returns:
            the folder.

        Raises:
            CheckpointError: the folder is in the way, or cannot be written.
        """
        return self._copy().save(folder, overwrite=overwrite)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        message: str | None = None,
    ) -> str:
        """Save to a temporary folder, and upload that to the Hugging Face hub in one commit.

        The folder lies where `tempfile` puts it (TMPDIR) and needs room for all weights.

        Args:
            repo_id: `organisation/name`; made if it does not exist.
            private: a new repository is private unless this is False; one that exists stays as it
                is, and must be as is said here.
            token: with the right to write; by default the one that the hub's tools have stored.
            revision: a branch, made if it does not exist; the main one if not given.
            message: of the commit.

        Returns:
            the address of the commit.

        Raises:
            CheckpointError: the hub cannot be reached or refuses, or the disk is full.
            OptionError: an option that has no meaning here.
        """
        return self._copy().push(
            repo_id, private=private, token=token, revision=revision, message=message
        )

    def _copy(self) -> Copy:
        return Copy(self.model, self.sampler, self.eos, self.folder, self._kept)

    def _request(
        self,
        prompt: Text | Messages | Ids,
        seed: SupportsIndex | None,
        stop: Any,
        rule: AcceptRule | None,
        ask: Ask | None,
        options: Mapping[str, Any],
    ) -> Hearing:
        """Check everything before any work is done."""
        started = time.perf_counter()
        for name in options.keys() - _KNOWN:
            raise OptionError(unknown_name("option", name, _KNOWN))
        reading = {name: options[name] for name in Asked.__slots__ if name in options}
        reading["images"] = _several(reading.get("images"))
        sampling = {name: value for name, value in options.items() if name not in reading}
        config = self.sampler.with_options(**sampling)
        stop = stop_strings(stop)
        if stop and self.chat is None:
            raise OptionError("stop needs a tokenizer, and this checkpoint has none")
        asked = wanted(rule, ask)
        ids, images = read(prompt, Asked(**reading), self.chat, self.model.config)
        marks = None if self.chat is None else self.chat.marks
        spoken = ReplyStream(marks, stop, marks.opening(ids) if marks else None)
        recipe = Recipe(
            config=config,
            seed=_seeds(seed, 1)[0],
            vocabulary=self.model.config.vocab_size,
            canvas_length=self._canvas_length(config),
            longest=self.model.config.max_position_embeddings,
            eos=self.eos,
            bias_V=self._bias_V,
            rule=rule,
            ask=None if asked == Ask() else asked,
        )
        request = Request(ids=tuple(ids), images=tuple(images), recipe=recipe)
        return Hearing(request=request, chat=self.chat, spoken=spoken, started=started)

    def _canvas_length(self, config: SamplerConfig) -> int:
        length = config.canvas_length or self.model.config.canvas_length
        if length > self.model.config.max_position_embeddings:
            raise OptionError(
                f"canvas_length {length} is longer than the context of this model, "
                f"{self.model.config.max_position_embeddings}"
            )
        return length


def _several(images: Any) -> Sequence[Any]:
    """Images as a sequence: none, one alone, or several."""
    if images is None:
        return ()
    several = isinstance(images, list | tuple) and not isinstance(images, Patches)
    return images if several else (images,)


def _seeds(seed: Any, count: int) -> list[int]:
    if seed is None:
        return [secrets.randbits(32) for _ in range(count)]
    several = isinstance(seed, list | tuple) or getattr(seed, "ndim", 0) == 1
    seeds: list[Any] = list(seed) if several else [seed] * count
    if len(seeds) != count:
        raise OptionError(f"{len(seeds)} seeds were given for {count} prompts")
    return [_seed(one) for one in seeds]


def _seed(given: Any) -> int:
    number = whole(given)
    if number is None or not 0 <= number < 2**64:
        raise OptionError(f"a seed must be a whole number from 0 to 2**64 - 1, got {brief(given)}")
    return number
