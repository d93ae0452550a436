"""Canvases between two steps, on tensors that a step reads and writes in place.

Whatever decides a row's next step is in them, its seed and its options too: rows with different
options share a step, and a captured step serves them all. This file calls no network.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffusiongemma.diffusion.config import SamplerConfig
from diffusiongemma.kernels.philox import draws, seed_words

DONE, BROKEN = 1, 2
"""Flags of a row: its canvas is stable and sure; the predictions are not numbers."""

_CANVASES = ("canvas_BL", "before_BL", "best_BL", "entropy_BL", "accepted_BL", "revised_BL")
_COUNTS = ("canvas_B", "step_B", "repeats_B", "revisions_B", "flags_B")
_OPTIONS = ("t_min_B", "t_max_B", "most_B", "bound_B", "sure_B", "stable_B")
_ROWS = ("seed_B2", *_COUNTS, *_OPTIONS)


class Drafts:
    """A canvas of each of B rows.

    Attributes:
        canvas_BL: what the next step will see.
        before_BL: what the last step saw.
        best_BL: the most likely tokens, which will be committed; -1 before the first step.
        entropy_BL: nats.
        accepted_BL: where the last step kept its sample.
        revised_BL: where the most likely token changed.
        expected_BLD: expected embeddings of the last step; zeros before the first.
        seed_B2: of each row's answer, as two words of 32 bits.
        canvas_B: index of each row's canvas within its answer.
        step_B: number of each row's last step, from 1; 0 before the first.
        repeats_B: for how many steps the most likely canvas has been the same.
        revisions_B: how often a most likely token of the canvas has changed.
        flags_B: `DONE`, `BROKEN`, or both.
        t_min_B: temperatures and steps of each row, as `SamplerConfig` has them, t_max_B and
            most_B too; in float64, as Python computes with them.
        bound_B: the entropy bound, float32, as entropies are.
        sure_B: the confidence threshold, likewise.
        stable_B: the stability threshold.
    """

    canvas_BL: Int[Tensor, "B L"]
    before_BL: Int[Tensor, "B L"]
    best_BL: Int[Tensor, "B L"]
    entropy_BL: Float[Tensor, "B L"]
    accepted_BL: Bool[Tensor, "B L"]
    revised_BL: Bool[Tensor, "B L"]
    expected_BLD: Float[Tensor, "B L D"]
    seed_B2: Int[Tensor, "B 2"]
    canvas_B: Int[Tensor, " B"]
    step_B: Int[Tensor, " B"]
    repeats_B: Int[Tensor, " B"]
    revisions_B: Int[Tensor, " B"]
    flags_B: Int[Tensor, " B"]
    t_min_B: Float[Tensor, " B"]
    t_max_B: Float[Tensor, " B"]
    most_B: Int[Tensor, " B"]
    bound_B: Float[Tensor, " B"]
    sure_B: Float[Tensor, " B"]
    stable_B: Int[Tensor, " B"]

    def __init__(
        self,
        vocabulary: int,
        expected_BLD: Float[Tensor, "B L D"],
        draw: Callable[..., tuple[Tensor, Tensor]] = draws,
    ) -> None:
        """Make room; `open` comes next.

        Args:
            vocabulary: V, from which noise is drawn, all of it.
            expected_BLD: zeros in the network's width, format and place.
            draw: the op that makes random numbers.
        """
        self.vocabulary, self.expected_BLD, self._draw = vocabulary, expected_BLD, draw
        device, (rows, width) = expected_BLD.device, expected_BLD.shape[:2]
        self.canvas_BL = torch.zeros(rows, width, dtype=torch.int64, device=device)
        self.before_BL, self.best_BL = self.canvas_BL.clone(), self.canvas_BL - 1
        self.entropy_BL = torch.zeros(rows, width, device=device)
        self.accepted_BL, self.revised_BL = self.canvas_BL.bool(), self.canvas_BL.bool()
        self.seed_B2 = torch.zeros(rows, 2, dtype=torch.int64, device=device)
        for name in (*_COUNTS, "most_B", "stable_B"):
            setattr(self, name, self.canvas_BL[:, 0].clone())
        self.t_min_B, self.t_max_B = torch.zeros(2, rows, dtype=torch.float64, device=device)
        self.bound_B, self.sure_B = torch.zeros(2, rows, device=device)

    @classmethod
    def of(cls, network: Any, rows: int, width: int) -> "Drafts":
        """Room for canvases of a network, with the random numbers of its table of ops."""
        zeros = torch.zeros(rows, width, network.config.hidden_size, dtype=network.dtype)
        made = zeros.to(network.device)
        return cls(network.config.vocab_size, made, lambda *place: network.ops.draws(*place))

    @property
    def width(self) -> int:
        """L."""
        return self.canvas_BL.shape[1]

    def open(
        self,
        configs: Sequence[SamplerConfig],
        seeds: Sequence[int],
        canvas: int = 0,
        rows: Sequence[int] | None = None,
    ) -> None:
        """New answers, or their later canvases.

        Args:
            configs: options of each row.
            seeds: of each row.
            canvas: index of the canvas that each row begins with.
            rows: which; all of them if not given.
        """
        some = range(len(self.seed_B2)) if rows is None else rows
        for place, words in zip(some, seed_words(seeds, self.seed_B2.device), strict=True):
            self.seed_B2[place] = words
        for name, values in (
            ("t_min_B", [one.t_min for one in configs]),
            ("t_max_B", [one.t_max for one in configs]),
            ("most_B", [one.max_denoising_steps for one in configs]),
            ("bound_B", [one.entropy_bound for one in configs]),
            ("sure_B", [one.confidence_threshold for one in configs]),
            ("stable_B", [one.stability_threshold for one in configs]),
        ):
            held = getattr(self, name)
            for place, value in zip(some, values, strict=True):
                held[place] = value
        for place in some:
            self.canvas_B[place] = canvas - 1
            self.follow(place)

    def follow(self, row: int) -> None:
        """A row goes on to its next canvas: all that was of the last one is forgotten."""
        self.canvas_B[row] += 1
        for one in (self.step_B, self.repeats_B, self.revisions_B, self.expected_BLD):
            one[row] = 0
        self.best_BL[row] = -1
        here = slice(row, row + 1)
        place = (self.seed_B2[here], self.canvas_B[here], self.step_B[here])
        self.canvas_BL[row] = self._draw(*place, self.width, self.vocabulary)[1][0]

    def begin(self, begun_B: Bool[Tensor, " B"]) -> None:
        """`follow` for the rows that a tensor marks, which the host never reads."""
        begun_B1 = begun_B[:, None]
        self.canvas_B += begun_B
        for one in (self.step_B, self.repeats_B, self.revisions_B):
            one.masked_fill_(begun_B, 0)
        self.best_BL.masked_fill_(begun_B1, -1)
        self.expected_BLD.masked_fill_(begun_B1[..., None], 0.0)
        self.canvas_BL.copy_(torch.where(begun_B1, self.draws()[1], self.canvas_BL))

    def temperature_B(self) -> Float[Tensor, " B"]:
        """Of each row's step, as `temperature.temperature` has it: float64, rounded once."""
        share_B = (self.most_B - self.step_B + 1).double() / self.most_B
        return (self.t_min_B + (self.t_max_B - self.t_min_B) * share_B).float()

    def draws(self) -> tuple[Float[Tensor, "B L"], Int[Tensor, "B L"]]:
        """What decides the tokens of each row's step, and random tokens for every position."""
        return self._draw(self.seed_B2, self.canvas_B, self.step_B, self.width, self.vocabulary)

    def part(self, rows: Sequence[int], width: int) -> "Drafts":
        """Some rows as far as a width: these themselves if they are all, else copies (`put`)."""
        if width == self.width and list(rows) == list(range(len(self.canvas_BL))):
            return self
        made, some = Drafts.__new__(Drafts), list(rows)
        made.vocabulary, made._draw = self.vocabulary, self._draw
        for name in (*_CANVASES, "expected_BLD"):
            setattr(made, name, getattr(self, name)[some, :width])
        for name in _ROWS:
            setattr(made, name, getattr(self, name)[some])
        return made

    def put(self, rows: Sequence[int], part: "Drafts") -> None:
        """Take back what a step made of copies."""
        if part is self:
            return
        some = list(rows)
        for name in (*_CANVASES, "expected_BLD"):
            getattr(self, name)[some, : part.width] = getattr(part, name)
        for name in _COUNTS:
            getattr(self, name)[some] = getattr(part, name)

    def enlarged(self, rows: int, width: int) -> "Drafts":
        """The same canvases with room for more, or for wider ones."""
        shape = (rows, width, self.expected_BLD.shape[2])
        made = Drafts(self.vocabulary, self.expected_BLD.new_zeros(shape), self._draw)
        own = range(len(self.seed_B2))
        made.put(own, self)
        for name in _ROWS:
            getattr(made, name)[: len(own)] = getattr(self, name)
        return made

    def state(self) -> list[Tensor]:
        """Every tensor that a step may write."""
        return [getattr(self, name) for name in (*_CANVASES, "expected_BLD", *_COUNTS)]
