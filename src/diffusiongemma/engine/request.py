"""The reader's side of an answer: what is said of it, its events and its reply."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from diffusiongemma.dialog.chat import Chat
from diffusiongemma.dialog.pieces import pieces
from diffusiongemma.dialog.reply import ReplyStream
from diffusiongemma.diffusion.commit import Commit
from diffusiongemma.engine.engine import Captured, Reader, Request
from diffusiongemma.engine.events import Committed, Event, Finished, Refined
from diffusiongemma.engine.outcome import committed, stats_of
from diffusiongemma.engine.reply import Reply


@dataclass(slots=True, kw_only=True)
class Hearing:
    """What was heard of an answer so far.

    Attributes:
        request: what was asked.
        chat: the checkpoint's words, if it has any.
        spoken: what has been said of the answer; empty at first.
        started: when it was asked, on the performance counter.
        reused: tokens of the prompt that did not have to be encoded.
        commits: every canvas of the answer.
        kept: seconds since the start that belong to whoever read the events.
    """

    request: Request
    chat: Chat | None
    spoken: ReplyStream
    started: float
    reused: int = 0
    commits: list[Commit] = field(default_factory=list)
    kept: float = 0.0

    def take(self, commit: Commit) -> Committed:
        """A canvas more."""
        self.commits.append(commit)
        return committed(commit, self.spoken.push(commit.tokens, final=commit.reason is not None))

    @property
    def ended(self) -> bool:
        """Whether the answer is whole."""
        said = bool(self.commits) and self.commits[-1].reason is not None
        return said or self.spoken.stopped is not None

    def reply(self) -> Reply:
        """The reply that these canvases make."""
        spoken, commits = self.spoken, self.commits
        tokens = tuple(token for one in commits for token in one.tokens)[: spoken.tokens_kept]
        return Reply(
            text=spoken.text,
            thought=spoken.thought,
            tool_calls=tuple(spoken.tool_calls),
            tokens=tokens,
            finish_reason="stop" if spoken.stopped is not None else commits[-1].reason or "stop",
            stats=stats_of(
                commits,
                tokens,
                seed=self.request.recipe.seed,
                prompt=len(self.request.ids),
                reused=self.reused,
                seconds=time.perf_counter() - self.started - self.kept,
            ),
            pieces=() if self.chat is None else _pieces(commits, len(tokens), spoken, self.chat),
        )

    def tell(self, items: Reader | Captured) -> Iterator[Event]:
        """The events of an answer, from what the engine gives."""
        try:
            for _, item in items:
                event = self.take(item) if isinstance(item, Commit) else item
                assert isinstance(event, Committed | Refined)
                given = time.perf_counter()
                yield event
                self.kept += time.perf_counter() - given
                if self.ended:
                    break
        finally:
            items.close()
        yield Finished(reply=self.reply())


def _pieces(
    commits: Sequence[Commit], count: int, spoken: ReplyStream, chat: Chat
) -> tuple[tuple[str, float], ...]:
    """The text token by token, as far as the first `count` tokens of the answer make it."""
    doubts = [doubt for commit in commits for doubt in commit.entropy]
    said = [(place, number) for place, number in spoken.said if place < count]
    texts = pieces(chat.tokenizer, [number for _, number in said])
    return tuple((text, doubts[place]) for text, (place, _) in zip(texts, said, strict=True))
