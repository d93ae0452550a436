"""Which rows work next, and what becomes of them: first come, first served. No tensors.

A row is a small state machine:

    READ chunk after chunk -> DRAFT step after step -> READ its canvas -> DRAFT ... until it ends
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from diffusiongemma.diffusion.commit import Commit, cut


@dataclass(slots=True, kw_only=True, eq=False)
class Row:
    """One answer on its way, as the host counts it.

    Attributes:
        id: of the request.
        canvas_length: L, where the context has room for it.
        longest: tokens that a context can hold.
        limit: tokens that the answer may have.
        most: steps that a canvas may take.
        eos: ids that end the answer.
        length: tokens that its context holds.
        waiting: tokens of each chunk that is still to be read.
        paced: whether it steps only while somebody waits for what comes of it.
        wanted: whether somebody does.
        width: of its canvas.
        canvas: index of its canvas.
        step: number of the canvas's last step.
        told: number of the canvas's last step that was told.
        made: tokens of the answer before this canvas.
        done: whether it has ended.
    """

    id: int
    canvas_length: int
    longest: int
    limit: int | None
    most: int
    eos: frozenset[int]
    length: int
    waiting: list[int] = field(default_factory=list)
    paced: bool = False
    wanted: bool = False
    width: int = 0
    canvas: int = 0
    step: int = 0
    told: int = 0
    made: int = 0
    done: bool = False

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        """Choose the width of the next canvas: L, or what is left of the context."""
        self.width = min(self.canvas_length, self.longest - self.length - sum(self.waiting))

    def read(self) -> None:
        """A chunk has been read."""
        self.length += self.waiting.pop(0)

    def stepped(self, *, done: bool) -> bool:
        """A step has been made; whether it was the canvas's last."""
        self.step += 1
        return done or self.step == self.most

    def tell(self) -> bool:
        """Whether the last step is news: after an interrupted one a canvas begins anew."""
        news = self.step > self.told
        self.told = max(self.step, self.told)
        return news

    def commit(self, whole: Sequence[int], entropy: Sequence[float], revisions: int) -> Commit:
        """The canvas is finished: cut it at the answer's end, if that is in it.

        Args:
            whole: its tokens.
            entropy: of each.
            revisions: how often a most likely token of it has changed.
        """
        tokens, reason = cut(whole, self.eos, self.limit, self.made)
        if reason is None and self.length + self.width >= self.longest:
            reason = "context"
        commit = Commit(
            canvas=self.canvas,
            tokens=tokens,
            steps=self.step,
            revisions=revisions,
            reason=reason,
            whole=tuple(whole),
            entropy=tuple(entropy[: len(tokens)]),
        )
        self.done, self.made = reason is not None, self.made + len(tokens)
        return commit

    def follow(self, waiting: Sequence[int]) -> None:
        """On to the next canvas, once the last one has been read, in so many chunks."""
        self.waiting += waiting
        self.canvas, self.step, self.told = self.canvas + 1, 0, 0
        self.open()

    def restart(self, chunks: Sequence[int] | None) -> None:
        """Begin the canvas anew.

        Args:
            chunks: what is to be read again, if the context was lost too.
        """
        self.step = 0
        if chunks is not None:
            self.length, self.waiting = 0, list(chunks)


def row_of(number: int, recipe: Any, length: int, waiting: Sequence[int] = ()) -> Row:
    """The row of an answer.

    Args:
        number: of the request.
        recipe: of the answer, a `diffusion.loop.Recipe`.
        length: tokens that its context holds.
        waiting: tokens of each chunk that is still to be read.
    """
    return Row(
        id=number,
        canvas_length=recipe.canvas_length,
        longest=recipe.longest,
        limit=recipe.config.max_new_tokens,
        most=recipe.config.max_denoising_steps,
        eos=recipe.eos,
        length=length,
        waiting=list(waiting),
    )


@dataclass(frozen=True, slots=True)
class Work:
    """What one step of the engine does.

    Attributes:
        reads: rows that read a chunk.
        drafts: rows that take a step of their canvas.
    """

    reads: tuple[Row, ...]
    drafts: tuple[Row, ...]

    def __bool__(self) -> bool:
        return bool(self.reads or self.drafts)


class Scheduler:
    """All rows, in the order in which they came."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}

    def add(self, row: Row) -> None:
        """A row has come."""
        self.rows[row.id] = row

    def drop(self, number: int) -> None:
        """A row is gone."""
        self.rows.pop(number, None)

    def plan(self) -> Work:
        """The next step: whoever has something to read reads, all others draft."""
        ready = [
            row for row in self.rows.values() if not row.done and (row.wanted or not row.paced)
        ]
        reads = tuple(row for row in ready if row.waiting)
        return Work(reads, tuple(row for row in ready if not row.waiting))
