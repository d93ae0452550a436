"""One answer on its way: a prompt that was read, the loop over it, its events and its reply.

Whoever calls decides what the context holds of the prompt already, and who gets to see the events.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from diffusiongemma.core.patches import Patches
from diffusiongemma.dialog.chat import Chat
from diffusiongemma.dialog.pieces import pieces
from diffusiongemma.dialog.reply import ReplyStream
from diffusiongemma.diffusion.loop import Commit, DraftStep, Recipe, answer
from diffusiongemma.engine.events import Event, Finished, Refined
from diffusiongemma.engine.outcome import committed, refined, stats_of
from diffusiongemma.engine.quick import Quick, takes
from diffusiongemma.engine.reply import Reply
from diffusiongemma.model.context import Context
from diffusiongemma.model.model import DiffusionGemma, Inputs

PROMPT_CHUNK = 1024  # tokens of a prompt that are encoded in one pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt, read and checked, and what decides its answer.

    Attributes:
        ids: of the prompt, images spread out.
        images: one for each image span of `ids`.
        recipe: of the answer.
        spoken: what has been said of the answer; empty at first.
        started: when it was asked, on the performance counter.
    """

    ids: list[int]
    images: list[Patches]
    recipe: Recipe
    spoken: ReplyStream
    started: float


def embed(model: DiffusionGemma, request: Request, tokens: int = 0, images: int = 0) -> Inputs:
    """The prompt without its first tokens and images, ready to encode.

    Raises:
        InputError: images and their placeholders do not fit each other.
    """
    with torch.no_grad():
        ids_BT = torch.tensor([request.ids[tokens:]], device=model.device)
        return model.embed(ids_BT, request.images[images:])


def encode(model: DiffusionGemma, inputs: Inputs, context: Context) -> None:
    """Read a prompt, or the rest of one, into the context."""
    for chunk in inputs.chunks(PROMPT_CHUNK):
        with torch.no_grad():
            model.encode(chunk, context)


def draft(
    model: DiffusionGemma, context: Context, request: Request
) -> Iterator[DraftStep | Commit]:
    """Answer a prompt that the context holds."""
    items = answer(model, context, request.recipe)
    while True:
        # Not around the yield: whoever reads the stream keeps the mode he had.
        with torch.no_grad():
            item = next(items, None)
        if item is None:
            return
        yield item


def tell(
    quick: Quick,
    context: Context,
    request: Request,
    chat: Chat | None,
    *,
    reused: int = 0,
    watched: bool = True,
) -> Iterator[Event]:
    """Answer a prompt that the context holds, in events.

    Args:
        quick: the network, and what it keeps for captured steps where they are possible.
        context: one row.
        request: the prompt.
        chat: the checkpoint's words, if it has any.
        reused: tokens of the prompt that did not have to be encoded.
        watched: whether steps are told, too, or canvases only.
    """
    commits: list[Commit] = []
    last, kept = False, 0.0  # seconds for which events were kept by whoever reads them
    for item in _items(quick, context, request, watched):
        if isinstance(item, Commit):
            commits.append(item)
            said = request.spoken.push(item.tokens, final=item.reason is not None)
            last = bool(item.reason or request.spoken.stopped)
            item = committed(item, said)
        given = time.perf_counter()
        yield item
        kept += time.perf_counter() - given
        if last:
            break
    yield Finished(reply=conclude(request, commits, chat, reused=reused, kept=kept))


def _items(
    quick: Quick, context: Context, request: Request, watched: bool
) -> Iterator[Refined | Commit]:
    """Steps and canvases, from whichever engine can make them."""
    if takes(quick.model, [request.recipe], context.lengths):
        for _, item in quick.answer(context, [request.recipe], watched=watched):
            yield item
        return
    for item in draft(quick.model, context, request):
        if isinstance(item, Commit):
            yield item
        elif watched:
            yield refined(item)


def conclude(
    request: Request,
    commits: Sequence[Commit],
    chat: Chat | None,
    *,
    reused: int = 0,
    kept: float = 0.0,
) -> Reply:
    """The reply that these canvases make.

    Args:
        request: what was asked, with all that was said.
        commits: every canvas of the answer.
        chat: the checkpoint's words, if it has any.
        reused: tokens of the prompt that did not have to be encoded.
        kept: seconds since the start that belong to whoever read the events.
    """
    spoken = request.spoken
    tokens = tuple(token for commit in commits for token in commit.tokens)[: spoken.tokens_kept]
    return Reply(
        text=spoken.text,
        thought=spoken.thought,
        tool_calls=tuple(spoken.tool_calls),
        tokens=tokens,
        finish_reason="stop" if spoken.stopped is not None else commits[-1].reason or "stop",
        stats=stats_of(
            commits,
            tokens,
            seed=request.recipe.seed,
            prompt=len(request.ids),
            reused=reused,
            seconds=time.perf_counter() - request.started - kept,
        ),
        pieces=() if chat is None else _pieces(commits, len(tokens), spoken, chat),
    )


def _pieces(
    commits: Sequence[Commit], count: int, spoken: ReplyStream, chat: Chat
) -> tuple[tuple[str, float], ...]:
    """The text token by token, as far as the first `count` tokens of the answer make it."""
    doubts = [doubt for commit in commits for doubt in commit.entropy]
    said = [(place, number) for place, number in spoken.said if place < count]
    texts = pieces(chat.tokenizer, [number for _, number in said])
    return tuple((text, doubts[place]) for text, (place, _) in zip(texts, said, strict=True))
