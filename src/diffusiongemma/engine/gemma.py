"""The door: a network, its words and its defaults, behind four verbs.

`generate` answers, `generate_many` answers several prompts together, `stream` shows how, `steps`
hands every step to a researcher. One prompt goes through the plain loop of `diffusion.loop`.
"""

import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusiongemma.checkpoint.save import save_model
from diffusiongemma.core.device import Device
from diffusiongemma.core.errors import InputError, OptionError
from diffusiongemma.core.patches import Patches
from diffusiongemma.dialog.chat import Chat
from diffusiongemma.diffusion.accept import AcceptRule
from diffusiongemma.diffusion.config import SamplerConfig
from diffusiongemma.diffusion.loop import Commit, DraftStep, Recipe, answer
from diffusiongemma.engine.events import Event, Finished, committed, refined
from diffusiongemma.engine.many import answer_many
from diffusiongemma.engine.prompt import Asked, Ids, Messages, Text, read
from diffusiongemma.engine.reply import Reply, stats_of
from diffusiongemma.engine.spoken import Spoken
from diffusiongemma.kernels.readout import BANNED, Ask
from diffusiongemma.model.model import DiffusionGemma, Inputs

PROMPT_CHUNK = 1024  # tokens of a prompt that are encoded in one pass


class Ban:
    """A shaper: these tokens are never predicted. Noise may still hold them, as in training."""

    def __init__(self, ids: Sequence[int], device: torch.device) -> None:
        self.ids = torch.tensor(sorted(ids), dtype=torch.int64, device=device)

    def __call__(self, logits_LV: Tensor) -> Tensor:
        """Give the banned tokens no probability."""
        return logits_LV.index_fill(-1, self.ids, BANNED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a checkpoint's files say that this package does not use, and a copy must say too.

    Attributes:
        generation: the parsed `generation_config.json`.
        config: keys of `config.json`, as nested objects.
    """

    generation: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """A prompt, read and embedded, and what decides its answer."""

    inputs: Inputs
    recipe: Recipe
    spoken: Spoken
    tokens: int
    started: float


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
        self._kept = kept or Kept()
        self.eos, self.device, self.folder = eos, device, folder
        self._ban = Ban(banned, device.device)

    def __repr__(self) -> str:
        count = sum(weight.numel() for weight in self.model.parameters())
        return f"Gemma({str(self.folder)!r}, {count:,} parameters, {self.device.reason})"

    def generate(
        self,
        prompt: Text | Messages | Ids,
        *,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        rule: AcceptRule | None = None,
        **options: Any,
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
        for event in self.stream(prompt, seed=seed, stop=stop, rule=rule, **options):
            if isinstance(event, Finished):
                return event.reply
        raise AssertionError("a stream ends with Finished")

    def stream(
        self,
        prompt: Text | Messages | Ids,
        *,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        rule: AcceptRule | None = None,
        **options: Any,
    ) -> Iterator[Event]:
        """Answer a prompt and tell of every step; arguments as in `generate`.

        Yields:
            `Refined` for each step, `Committed` for each finished canvas, `Finished` at the end.
        """
        request = self._request(prompt, seed, stop, rule, None, options)
        return self._stream(request)

    def steps(
        self,
        prompt: Text | Messages | Ids,
        *,
        seed: int | None = None,
        rule: AcceptRule | None = None,
        ask: Ask | None = None,
        **options: Any,
    ) -> Iterator[DraftStep]:
        """Every step with its canvas, hidden states and readout, for research.

        `step.replace(canvas)` has the next step see another canvas. Arguments as in `generate`,
        and `ask`, which has readouts report more (see `kernels.readout.Ask`).
        """
        request = self._request(prompt, seed, (), rule, ask, options)
        return (item for item in self._answer(request) if isinstance(item, DraftStep))

    def generate_many(
        self,
        prompts: Sequence[Text | Messages | Ids],
        *,
        seed: int | Sequence[int] | None = None,
        stop: str | Sequence[str] = (),
        rule: AcceptRule | None = None,
        **options: Any,
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
        requests = [
            self._request(prompt, one, stop, rule, None, options)
            for prompt, one in zip(prompts, seeds, strict=True)
        ]
        if not requests:
            return []
        commits: list[list[Commit]] = [[] for _ in requests]
        replies: dict[int, Reply] = {}
        inputs = [request.inputs for request in requests]
        recipes = [request.recipe for request in requests]
        with torch.no_grad():
            for row, item in answer_many(self.model, inputs, recipes, PROMPT_CHUNK, replies):
                if isinstance(item, Commit):
                    commits[row].append(item)
                    requests[row].spoken.push(item.tokens)
                    if item.reason or requests[row].spoken.stopped:
                        replies[row] = self._reply(requests[row], commits[row])
        return [replies[row] for row in range(len(requests))]

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write a checkpoint folder that transformers opens too.

        Raises:
            CheckpointError: the folder is in the way, or cannot be written.
        """
        eos = {"eos_token_id": sorted(self.eos)} if self.eos else {}
        files = [
            *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
            *("chat_template.jinja", "processor_config.json", "preprocessor_config.json"),
        ]
        return save_model(
            self.model,
            folder,
            extra={
                "generation_config.json": dict(self._kept.generation)
                | self.sampler.to_generation_config()
                | eos
            },
            keys=self._kept.config,
            copy=tuple(self.folder / name for name in files if (self.folder / name).is_file()),
            overwrite=overwrite,
        )

    def _request(
        self,
        prompt: Text | Messages | Ids,
        seed: int | None,
        stop: str | Sequence[str],
        rule: AcceptRule | None,
        ask: Ask | None,
        options: dict[str, Any],
    ) -> _Request:
        """Check everything before any work is done."""
        started = time.perf_counter()
        reading = {name: options[name] for name in Asked.__slots__ if name in options}
        reading["images"] = _several(reading.get("images"))
        sampling = {name: value for name, value in options.items() if name not in reading}
        config = self.sampler.with_options(**sampling)
        stop = (stop,) if isinstance(stop, str) else stop
        if stop and self.chat is None:
            raise OptionError("stop needs a tokenizer, and this checkpoint has none")
        if rule is not None and not callable(rule):
            raise OptionError(f"a rule must be callable with a Readout, got {rule!r}")
        spoken = Spoken(None if self.chat is None else self.chat.tokenizer, stop)
        ids, images = read(prompt, Asked(**reading), self.chat, self.model.config)
        with torch.no_grad():
            ids_BT = torch.tensor([ids], device=self.model.device)
            inputs = self.model.embed(ids_BT, images)
        recipe = Recipe(
            config=config,
            seed=_seeds(seed, 1)[0],
            vocabulary=self.model.config.vocab_size,
            canvas_length=self._canvas_length(config),
            longest=self.model.config.max_position_embeddings,
            eos=self.eos,
            shaper=self._ban,
            rule=rule,
            ask=ask,
        )
        return _Request(
            inputs=inputs, recipe=recipe, spoken=spoken, tokens=len(ids), started=started
        )

    def _canvas_length(self, config: SamplerConfig) -> int:
        length = config.canvas_length or self.model.config.canvas_length
        if length > self.model.config.max_position_embeddings:
            raise OptionError(
                f"canvas_length {length} is longer than the context of this model, "
                f"{self.model.config.max_position_embeddings}"
            )
        return length

    def _answer(self, request: _Request) -> Iterator[DraftStep | Commit]:
        context = self.model.context()
        for chunk in request.inputs.chunks(PROMPT_CHUNK):
            with torch.no_grad():
                self.model.encode(chunk, context)
        items = answer(self.model, context, request.recipe)
        while True:
            # Not around the yield: whoever reads the stream keeps the mode he had.
            with torch.no_grad():
                item = next(items, None)
            if item is None:
                return
            yield item

    def _stream(self, request: _Request) -> Iterator[Event]:
        commits: list[Commit] = []
        for item in self._answer(request):
            if isinstance(item, DraftStep):
                yield refined(item)
                continue
            commits.append(item)
            text = request.spoken.push(item.tokens)
            last = bool(item.reason or request.spoken.stopped)
            yield committed(item, text + (request.spoken.finish() if last else ""))
            if last:
                break
        yield Finished(reply=self._reply(request, commits))

    def _reply(self, request: _Request, commits: list[Commit]) -> Reply:
        spoken = request.spoken
        spoken.finish()
        tokens = tuple(token for commit in commits for token in commit.tokens)
        tokens = tokens[: spoken.tokens_kept]
        parsed = None if self.chat is None else self.chat.parse(tokens)
        text = "" if parsed is None else parsed.text
        return Reply(
            text=spoken.text if spoken.stopped is not None else text,
            thought=None if parsed is None else parsed.thought,
            tool_calls=() if parsed is None else tuple(parsed.tool_calls),
            tokens=tokens,
            finish_reason="stop" if spoken.stopped is not None else commits[-1].reason or "stop",
            stats=stats_of(
                commits,
                tokens,
                seed=request.recipe.seed,
                prompt=request.tokens,
                seconds=time.perf_counter() - request.started,
            ),
        )


def _several(images: Any) -> Sequence[Any]:
    """Images as a sequence: none, one alone, or several."""
    if images is None:
        return ()
    several = isinstance(images, list | tuple) and not isinstance(images, Patches)
    return images if several else (images,)


def _seeds(seed: int | Sequence[int] | None, count: int) -> list[int]:
    if seed is None:
        return [secrets.randbits(32) for _ in range(count)]
    seeds: list[Any] = list(seed) if isinstance(seed, list | tuple) else [seed] * count
    if len(seeds) != count:
        raise OptionError(f"{len(seeds)} seeds were given for {count} prompts")
    for one in seeds:
        whole = isinstance(one, int) and not isinstance(one, bool)
        if not whole or not 0 <= one < 2**64:
            raise OptionError(f"a seed must be a whole number from 0 to 2**64 - 1, got {one!r}")
    return seeds
