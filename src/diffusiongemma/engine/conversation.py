"""A chat: what was said so far, and the context that holds it encoded.

Each turn renders the whole conversation with the checkpoint's template, as `generate` would, and
encodes only what the context does not hold already. Knows nothing of how a prompt is read.

The prompt of the last turn is kept as it was before the answer, too: most templates write an answer
into the history in another way than the network wrote it, and further back than the answer's last
canvases a context cannot be cut exactly. Nothing is copied for that before the answer grows.
"""

import itertools
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, Unpack

import torch

from diffusiongemma.core.errors import InputError
from diffusiongemma.core.letters import brief
from diffusiongemma.core.patches import Patches
from diffusiongemma.dialog.reply import ReplyStream
from diffusiongemma.engine.engine import Engine, Look, Request
from diffusiongemma.engine.events import Committed, Event, Finished
from diffusiongemma.engine.options import ConversationOptions, Pictures
from diffusiongemma.engine.prompt import Messages, Text
from diffusiongemma.engine.reply import Reply
from diffusiongemma.engine.request import Hearing
from diffusiongemma.engine.runner import read
from diffusiongemma.model.context import Context


@dataclass(frozen=True, slots=True)
class Held:
    """What a context holds encoded: these tokens, and these images in them."""

    context: Context
    ids: list[int]
    images: Sequence[Patches]


class Conversation:
    """Made by `Gemma.converse`.

    A turn that is cut off, by closing its stream or by Ctrl-C, stays with what was committed of its
    answer, as that was seen; if nothing was, it is as if it had never been. So is a turn that an
    error ended.

    Attributes:
        messages: what was said, without the system message. It may be changed freely, and saved as
            JSON where no pictures are in it: what can be reused is found out in each turn anew.
        reused: tokens of the last turn's prompt that did not have to be encoded.
    """

    def __init__(
        self,
        engine: Engine,
        read: Callable[..., Hearing],
        options: Mapping[str, Any],
    ) -> None:
        self.messages: list[Mapping[str, Any]] = []
        self.reused = 0
        self._engine, self._model, self._read = engine, engine.model, read
        self._options = dict(options)
        self._held: list[Held] = []
        self._turns = threading.RLock()  # one at a time; not held while a stream waits
        self._running: weakref.ref[Generator[Event, None, None]] | None = None

    def __repr__(self) -> str:
        held = max((len(held.ids) for held in self._held), default=0)
        return f"Conversation({len(self.messages)} messages, {held} tokens encoded)"

    def generate(
        self,
        prompt: Text | Messages,
        *,
        seed: SupportsIndex | None = None,
        images: Pictures | None = (),
        **options: Unpack[ConversationOptions],
    ) -> Reply:
        """Answer the next turn. Threads that ask at once are answered one after the other.

        Args:
            prompt: a text, or messages to add, such as the answers of tools.
            seed: the same seed gives the same answer; drawn at random if not given, and reported.
            images: pictures that go before the text.
            **options: as in `Gemma.generate`, for this turn only.

        Raises:
            InputError: a prompt, message or image that cannot be taken.
            OptionError: an option that does not exist or has no meaning here.
        """
        with self._turns:
            for event in self.stream(prompt, seed=seed, images=images, **options):
                if isinstance(event, Finished):
                    return event.reply
        raise InputError("this turn was closed before its answer was there; ask again")

    def stream(
        self,
        prompt: Text | Messages,
        *,
        seed: SupportsIndex | None = None,
        images: Pictures | None = (),
        **options: Unpack[ConversationOptions],
    ) -> Generator[Event, None, None]:
        """Answer the next turn and tell of every step; arguments as in `generate`.

        A turn that is still being answered is closed, unless another thread is at work on it.

        Yields:
            the events of `Gemma.stream`.
        """
        with self._turns:
            self._close()
            said = _messages(prompt, images)
            given = self._options | options
            stop, rule = given.pop("stop"), given.pop("rule")
            heard = self._read([*self.messages, *said], seed, stop, rule, None, given)
            turn = self._turn(heard, said)
            self._running = weakref.ref(turn)  # or the turn would keep itself from being closed
            return turn

    def _close(self) -> None:
        """Close the turn that is still being answered, if there is one."""
        running = self._running() if self._running else None
        if running is None:
            return
        try:
            running.close()
        except ValueError as error:  # it is at work this very moment
            raise InputError(
                "this conversation is busy with a turn, in another thread or below this call; "
                "wait for its end, or begin another conversation"
            ) from error

    def undo(self) -> bool:
        """Take the last turn back, question and answer; False if there is none."""
        for place in range(len(self.messages) - 1, -1, -1):
            if self.messages[place].get("role") == "user":
                del self.messages[place:]
                return True
        return False

    def forget(self) -> None:
        """Begin anew."""
        self.messages.clear()
        self._held = []
        self.reused = 0

    def _turn(self, heard: Hearing, said: list[Mapping[str, Any]]) -> Generator[Event, None, None]:
        request = heard.request
        context, images = self._resume(request)
        heard.reused = self.reused = context.lengths[0]
        ids, earlier, answer = list(request.ids), self._held, None
        try:
            read(self._model, context, request.ids, request.images, images)
            self._held = [Held(context.fork(0, 1), list(ids), request.images)]
            items = self._engine.answer([request], look=Look.EVENTS, paced=True, context=context)
            for event in heard.tell(items):
                if isinstance(event, Committed):
                    ids += event.tokens
                if isinstance(event, Finished):
                    answer = _answered(event.reply)
                    self.messages += [*said, answer]
                yield event
        except (GeneratorExit, KeyboardInterrupt):
            if answer is None and heard.spoken.text.strip():
                answer = _answered(heard.spoken)
                self.messages += [*said, answer]
            raise
        finally:
            if answer is None:
                self._held = earlier
            else:
                self._hold(context, ids, request.images)

    def _hold(self, context: Context, ids: list[int], images: Sequence[Patches]) -> None:
        """Keep the answer's canvases, too, unless the last of them was torn."""
        row = context.rows[0]
        # The last canvas of an answer is not encoded, so there may be none.
        if not row.torn and row.length > self._held[0].context.lengths[0]:
            self._held.append(Held(context, ids[: row.length], images))

    def _resume(self, request: Request) -> tuple[Context, int]:
        """A context that holds the beginning of the prompt, and the number of images in it."""
        best, longest, images = None, 0, 0
        for held in self._held:
            length, pictures = self._common(held, request)
            row = held.context.rows[0]
            if length > longest and length >= min(row.shortest, row.length):
                best, longest, images = held, length, pictures
        if best is None:
            return self._model.context(), 0
        context = best.context.fork(0, 1)  # a turn that fails leaves what was held
        context.truncate([longest])
        return context, images

    def _common(self, held: Held, request: Request) -> tuple[int, int]:
        """Leading tokens that are the same, whole and equal images only, and these images."""
        pairs = zip(held.ids, request.ids, strict=False)
        length = next((n for n, (a, b) in enumerate(pairs) if a != b), None)
        if length is None:
            length = min(len(held.ids), len(request.ids))
        images = 0
        for start, stop in _spans(request.ids, self._model.config.image_token_id):
            if start >= length:
                break
            if stop > length or not _same(held.images[images], request.images[images]):
                return start, images
            images += 1
        return length, images


def _messages(prompt: Any, images: Any) -> list[Mapping[str, Any]]:
    several = isinstance(images, list | tuple) and not isinstance(images, Patches)
    pictures = list(images) if several else [] if images is None else [images]
    if isinstance(prompt, str):
        if not prompt.strip() and not pictures:
            raise InputError("the prompt is empty; give it some text")
        parts = [{"type": "image", "image": picture} for picture in pictures]
        content = [*parts, {"type": "text", "text": prompt}] if parts else prompt
        return [{"role": "user", "content": content}]
    whole = isinstance(prompt, list | tuple) and all(isinstance(m, Mapping) for m in prompt)
    if not whole or not prompt:
        raise InputError(
            f"a turn must be text or a list of messages, got "
            f"{type(prompt).__name__} {brief(prompt)}"
        )
    if pictures:
        raise InputError("images of messages belong into them, as parts")
    return list(prompt)


def _answered(reply: Reply | ReplyStream) -> Mapping[str, Any]:
    """A reply as a message. Whether the template writes thoughts of the past is its business."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.thought is not None:
        message["reasoning_content"] = reply.thought
    if reply.tool_calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in reply.tool_calls
        ]
    return message


def _spans(ids: Sequence[int], image: int | None) -> Iterator[tuple[int, int]]:
    """Where images stand: runs of their placeholder."""
    place = 0
    for is_image, run in itertools.groupby(ids, lambda token: token == image):
        start, place = place, place + sum(1 for _ in run)
        if is_image:
            yield start, place


def _same(one: Patches, other: Patches) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
