"""A finished canvas, and where an answer ends. No tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffusiongemma.core.brief import Brief


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Commit(Brief):
    """A finished canvas.

    Attributes:
        canvas: its index, from 0.
        tokens: what joins the answer: up to the end-of-sequence id, without it.
        steps: how many it took.
        revisions: how often a position's most likely token changed from one step to the next.
        reason: why the answer ends here: `stop`, `length`, `context`; None if it goes on.
        whole: the canvas as it would be encoded, L tokens.
        entropy: how unsure the network was of each of `tokens`, in nats.
    """

    canvas: int
    tokens: tuple[int, ...]
    steps: int
    revisions: int
    reason: str | None
    whole: tuple[int, ...]
    entropy: tuple[float, ...]


def cut(
    whole: Sequence[int], eos: frozenset[int], limit: int | None, made: int
) -> tuple[tuple[int, ...], str | None]:
    """The tokens of a canvas that join the answer, and why it ends with them, if it does.

    Args:
        whole: the canvas.
        eos: ids that end an answer; the first one in the canvas counts, wherever it stands.
        limit: tokens that the whole answer may have.
        made: tokens it had before.
    """
    end = next((n for n, token in enumerate(whole) if token in eos), None)
    left = None if limit is None else limit - made
    if left is not None and (end is None or end > left) and len(whole) >= left:
        return tuple(whole[:left]), "length"
    if end is not None:
        return tuple(whole[:end]), "stop"
    return tuple(whole), None
