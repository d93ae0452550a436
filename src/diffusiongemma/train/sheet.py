"""Examples -> sheets: rows of one length, with as many whole examples in each as fit.

A sheet is what one step learns from, made by processes beside the one that trains (`ahead`), and
so plain numbers of numpy. Where `data.pack` pads a batch to its longest example, most of a sheet's
rows is text, every sheet has the same shape, and all kinds of examples stand together in it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusiongemma.core.errors import InputError
from diffusiongemma.model.packed import Layout
from diffusiongemma.train.data import Example

_FIELDS = ("ids", "next", "place", "upto", "text", "canvas")
_MOST = np.iinfo(np.int16).max


@dataclass(frozen=True, slots=True)
class Sheet:
    """Laid out, for the trip between processes.

    Attributes:
        numbers: int16 (6, B, S): clean tokens, at a canvas's place too; what each is to foretell;
            then a `Layout`'s fields.
        weight_BS: what each token's error counts, float32. Those of canvases add up to one, and
            those of clean tokens too.
        examples: how many there are.
        left_out: how many more there was no room for.
    """

    numbers: Any
    weight_BS: Any
    examples: int
    left_out: int

    def to(self, device: torch.device) -> "Rows":
        """For the network."""
        parts = (torch.from_numpy(self.numbers), torch.from_numpy(self.weight_BS))
        if device.type == "cuda":  # from memory that is not pinned, the host would wait
            parts = tuple(part.pin_memory() for part in parts)
        numbers, weight_BS = (part.to(device, non_blocking=True) for part in parts)
        tokens = int((self.weight_BS > 0).sum())
        return Rows(numbers.long(), weight_BS, tokens)


@dataclass(frozen=True, slots=True)
class Rows:
    """A sheet on the network's device.

    Attributes:
        numbers: as the sheet's, int64.
        weight_BS: as the sheet's.
        tokens: how many count.
    """

    numbers: Int[Tensor, "6 B S"]
    weight_BS: Float[Tensor, "B S"]
    tokens: int

    @property
    def ids_BS(self) -> Int[Tensor, "B S"]:
        """Clean tokens, of canvases too."""
        return self.numbers[0]

    @property
    def layout(self) -> Layout:
        """What lies where."""
        return Layout(*self.numbers[2:])

    @property
    def wanted_BS(self) -> Int[Tensor, "B S"]:
        """What each token is to foretell: a clean one its next, a noised one itself."""
        return self.numbers[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The shape of all sheets.

    Attributes:
        rows: B.
        length: S, tokens of a row, canvases counted twice: clean and noised.
        width: L.
        eos: fills the last canvas of each answer, and is learned.
        pad: fills the rows.
        prompt_weight: of a prompt's tokens in the encoder's part, where an answer's have 1.
    """

    rows: int
    length: int
    width: int
    eos: int
    pad: int
    prompt_weight: float = 1.0

    def lay(self, examples: Sequence[Example], seed: int | str) -> Sheet:
        """Each example into the first row that has room for it; the rows are then shuffled.

        Args:
            examples: of one step; those that fit nowhere are left out.
            seed: of the shuffle, so that an example is in the first half of a sheet by chance.

        Raises:
            InputError: an example is empty, longer than a row, or holds what is no token's id.
        """
        numbers = np.zeros((len(_FIELDS), self.rows, self.length), np.int16)
        numbers[0], numbers[4], numbers[5] = self.pad, -1, -1
        # Padding is a text of its own that counts nothing: no token may see none.
        numbers[2] = np.arange(self.length)
        numbers[3] = numbers[2] + 1
        weight = np.zeros((self.rows, self.length), np.float32)
        used, texts, canvases = ([0] * self.rows for _ in range(3))
        order = random.Random(f"sheet {seed}").sample(range(self.rows), self.rows)
        laid = 0
        for example in examples:
            block, share, count = self._block(example)
            size = block.shape[1]
            row = next((row for row in order if used[row] + size <= self.length), None)
            if row is None:
                continue
            part = slice(used[row], used[row] + size)
            block[4] = texts[row]
            block[5] = np.where(block[5] < 0, -1, block[5] + canvases[row])
            numbers[:, row, part], weight[row, part] = block, share
            used[row] += size
            texts[row] += 1
            canvases[row] += count
            laid += 1
        return Sheet(numbers, weight / np.float32(max(laid, 1)), laid, len(examples) - laid)

    def _block(self, example: Example) -> tuple[Any, Any, int]:
        """One example's columns, their weights, and how many canvases it has."""
        prompt, answer, width = example.prompt, example.answer, self.width
        if len(prompt) == 0 or len(answer) == 0:
            raise InputError("an example needs a prompt and an answer of at least one token each")
        count = -(-len(answer) // width)
        start, drafts = len(prompt), count * width
        clean, size = start + drafts, start + 2 * drafts
        if size > self.length:
            raise InputError(
                f"an example takes {size} tokens with its canvases, and a row has {self.length}; "
                "leave it out or make rows longer"
            )
        ids = np.array([*prompt, *answer, *[self.eos] * (drafts - len(answer))])
        if ids.min() < 0 or ids.max() > _MOST:
            raise InputError(f"an example holds what is no token id from 0 to {_MOST}")
        block = np.empty((len(_FIELDS), size), np.int16)
        block[0, :clean], block[0, clean:] = ids, ids[start:]
        block[1, : clean - 1], block[1, clean - 1] = ids[1:], self.pad
        block[1, clean:] = ids[start:]
        place, across = np.arange(clean), np.arange(drafts)
        block[2, :clean], block[2, clean:] = place, start + across
        block[3, :clean], block[3, clean:] = place + 1, start + across // width * width
        block[5, :clean], block[5, clean:] = -1, across // width
        share = np.empty(size, np.float32)
        share[: start - 1], share[start - 1 : clean - 1], share[clean - 1] = (
            self.prompt_weight,
            1,
            0,
        )
        share[:clean] /= share[:clean].sum()
        share[clean:] = 1 / drafts
        return block, share, count
