"""What comes back: the answer, and how it came about."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from diffusiongemma.core.brief import Brief
from diffusiongemma.dialog.calls import ToolCall
from diffusiongemma.engine.page import page


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Stats(Brief):
    """How an answer came about.

    Attributes:
        seed: gives the same answer again.
        prompt_tokens: tokens before the first canvas.
        new_tokens: tokens of the answer, the end mark not counted.
        steps: denoising steps of each canvas, in order.
        revisions: how often, over all steps, a position's most likely token changed.
        seconds: from the start of encoding to the last commit, without the time for which whoever
            reads a stream kept its events.
        loop: the answer seems to repeat itself. Repetition lowers entropy, so canvases stop early
            and tokens per forward rise: such speed means nothing.
        reused_tokens: tokens of the prompt that a conversation had encoded in an earlier turn.
    """

    seed: int
    prompt_tokens: int
    new_tokens: int
    steps: tuple[int, ...]
    revisions: int
    seconds: float
    loop: bool
    reused_tokens: int = 0

    @property
    def steps_per_canvas(self) -> float:
        """Mean."""
        return sum(self.steps) / len(self.steps)

    @property
    def tokens_per_forward(self) -> float:
        """New tokens over denoising steps plus the passes that commit a canvas but the last."""
        return self.new_tokens / (sum(self.steps) + len(self.steps) - 1)

    @property
    def tokens_per_second(self) -> float:
        """New tokens over seconds, prompt included."""
        return self.new_tokens / self.seconds if self.seconds > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the fields and the rates."""
        rates = ("steps_per_canvas", "tokens_per_forward", "tokens_per_second")
        return asdict(self) | {name: getattr(self, name) for name in rates}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Reply(Brief):
    """An answer.

    Attributes:
        text: without thought, tool calls and marks. Empty if there is no tokenizer.
        thought: what was thought before answering; None if nothing.
        tool_calls: calls that the model asks for.
        tokens: ids of the whole answer, thought and marks included, the end mark not.
        finish_reason: `stop` (an end mark or a stop string), `length` (max_new_tokens), `context`
            (no room left).
        stats: how it came about.
        pieces: the text, token by token, each with how unsure the network was, in nats, when it
            was committed.
    """

    text: str
    thought: str | None
    tool_calls: tuple[ToolCall, ...]
    tokens: tuple[int, ...]
    finish_reason: str
    stats: Stats
    pieces: tuple[tuple[str, float], ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        calls = [json.dumps(asdict(call), ensure_ascii=False) for call in self.tool_calls]
        note = self.summary
        return page(self.text, self.pieces, thought=self.thought, calls=calls, note=note)

    @property
    def summary(self) -> str:
        """One line: how it came about."""
        stats = self.stats
        ends = {"length": ", cut at max_new_tokens", "context": ", the context is full"}
        reused = f", {stats.reused_tokens} of {stats.prompt_tokens} prompt tokens reused"
        return (
            f"{stats.new_tokens} tokens in {stats.seconds:.1f} s ({stats.tokens_per_second:.1f}/s)"
            f"{ends.get(self.finish_reason, '')}, {stats.steps_per_canvas:.1f} steps/canvas, "
            f"{stats.tokens_per_forward:.1f} tokens/forward{reused if stats.reused_tokens else ''}"
            f", seed {stats.seed}"
        )


def repeats(tokens: Sequence[int], *, longest: int = 32, times: int = 4, least: int = 16) -> bool:
    """Whether the end of an answer is one phrase over and over.

    Args:
        tokens: the answer.
        longest: tokens of the longest phrase looked for.
        times: how often it has to stand there in a row.
        least: tokens that the repetition has to cover, so that "ha ha ha ha" is no loop.
    """
    for period in range(1, longest + 1):
        need = max(times * period, least)
        tail = tokens[-need:]
        if len(tail) == need and all(a == b for a, b in zip(tail, tail[period:], strict=False)):
            return True
    return False
