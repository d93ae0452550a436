"""Where the keys and values of encoded tokens live, row by row and layer by layer.

A context is a list of rows; rows never touch each other's memory, so they may be ragged, picked,
forked and cut back one by one. This file knows nothing of attention: `passes.py` reads and writes.

Full layers keep every token. Sliding layers keep at least the last W - 1 + L tokens (window and
canvas), so that taking back a canvas is exact, and forget older ones.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusiongemma.core.errors import ContextError
from diffusiongemma.model.config import ModelConfig


class Growing:
    """Keys and values of one layer and row that grow by concatenation; safe for autograd."""

    def __init__(self, window: int | None, keep: int | None) -> None:
        self.window, self.keep = window, keep
        self.start = 0  # position of the oldest token kept
        self.k_KCH: Tensor | None = None
        self.v_KCH: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens written so far, forgotten ones included."""
        return self.start + (0 if self.k_KCH is None else self.k_KCH.shape[1])

    def append(
        self, k_KTH: Float[Tensor, "K T H"], v_KTH: Float[Tensor, "K T H"]
    ) -> tuple[Tensor, Tensor]:
        """Write T tokens; returns the keys and values that these tokens may see (K, C, H)."""
        if self.k_KCH is not None and self.v_KCH is not None:
            k_KTH = torch.cat([self.k_KCH, k_KTH], dim=1)
            v_KTH = torch.cat([self.v_KCH, v_KTH], dim=1)
        excess = 0 if self.keep is None else max(0, k_KTH.shape[1] - self.keep)
        # A slice would hold on to the whole; forgetting has to free memory.
        self.k_KCH = k_KTH[:, excess:].clone() if excess else k_KTH
        self.v_KCH = v_KTH[:, excess:].clone() if excess else v_KTH
        self.start += excess
        return k_KTH, v_KTH

    def read(self, first: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values from position `first` on; None if there are none."""
        if self.k_KCH is None or self.v_KCH is None or first >= self.length:
            return None
        return self.k_KCH[:, first - self.start :], self.v_KCH[:, first - self.start :]

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on."""
        if self.k_KCH is not None and self.v_KCH is not None:
            self.k_KCH = self.k_KCH[:, : length - self.start]
            self.v_KCH = self.v_KCH[:, : length - self.start]

    def copy(self) -> "Growing":
        """A second store with the same contents; tensors are shared, as nothing writes to them."""
        twin = Growing(self.window, self.keep)
        twin.start, twin.k_KCH, twin.v_KCH = self.start, self.k_KCH, self.v_KCH
        return twin


class Fixed:
    """Keys and values of one layer and row in storage made once; written in place."""

    def __init__(
        self, window: int | None, keep: int | None, capacity: int, like_KH: Float[Tensor, "K H"]
    ) -> None:
        self.window, self.keep, self.capacity = window, keep, capacity
        size = capacity if keep is None else min(capacity, 2 * keep)
        heads, width = like_KH.shape
        self.start = self.used = 0
        self.k_KCH = like_KH.new_zeros(heads, size, width)
        self.v_KCH = like_KH.new_zeros(heads, size, width)

    @property
    def length(self) -> int:
        """Tokens written so far, forgotten ones included."""
        return self.start + self.used

    def append(
        self, k_KTH: Float[Tensor, "K T H"], v_KTH: Float[Tensor, "K T H"]
    ) -> tuple[Tensor, Tensor]:
        """Write T tokens; returns the keys and values that these tokens may see (K, C, H)."""
        tokens, size = k_KTH.shape[1], self.k_KCH.shape[1]
        if self.used + tokens <= size:
            self.k_KCH[:, self.used : self.used + tokens] = k_KTH
            self.v_KCH[:, self.used : self.used + tokens] = v_KTH
            self.used += tokens
            return self.k_KCH[:, : self.used], self.v_KCH[:, : self.used]
        assert self.keep is not None, "room on full layers is checked before encoding"
        k_all = torch.cat([self.k_KCH[:, : self.used], k_KTH], dim=1)
        v_all = torch.cat([self.v_KCH[:, : self.used], v_KTH], dim=1)
        self.start += k_all.shape[1] - self.keep
        self.used = self.keep
        self.k_KCH[:, : self.keep] = k_all[:, -self.keep :]
        self.v_KCH[:, : self.keep] = v_all[:, -self.keep :]
        return k_all, v_all

    def read(self, first: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values from position `first` on; None if there are none."""
        if first >= self.length:
            return None
        part = slice(first - self.start, self.used)
        return self.k_KCH[:, part], self.v_KCH[:, part]

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on."""
        self.used = length - self.start

    def copy(self) -> "Fixed":
        """A second store with the same contents and storage of its own."""
        twin = Fixed(self.window, self.keep, self.capacity, self.k_KCH[:, 0])
        twin.start, twin.used = self.start, self.used
        twin.k_KCH[:, : self.used] = self.k_KCH[:, : self.used]
        twin.v_KCH[:, : self.used] = self.v_KCH[:, : self.used]
        return twin


class Row:
    """One request's tokens: a length, and a store for every layer."""

    def __init__(self, stores: Sequence[Growing | Fixed], room: int) -> None:
        self.stores, self.room = list(stores), room
        self.length = 0
        self.torn = False  # an encode was interrupted between two layers

    @property
    def shortest(self) -> int:
        """The smallest length above 0 that `truncate` can restore exactly."""
        starts = [s.start + s.window - 1 for s in self.stores if s.window and s.start]
        return max(starts, default=0)

    def truncate(self, length: int) -> None:
        """Cut the row back to its first `length` tokens."""
        if not 0 <= length <= self.length:
            raise ContextError(
                f"cannot truncate a row of {self.length} tokens to {length}; "
                f"give a length from 0 to {self.length}"
            )
        if 0 < length < self.shortest and length < self.length:
            raise ContextError(
                f"cannot truncate a row of {self.length} tokens to {length}: sliding layers have "
                f"forgotten what lies before; the shortest exact length is {self.shortest}, or 0"
            )
        for store in self.stores:
            if length == 0:
                store.truncate(store.start)
                store.start = 0
            else:
                store.truncate(length)
        self.length = length
        self.torn = self.torn and length > 0

    def copy(self) -> "Row":
        """A row of its own with the same tokens."""
        twin = Row([store.copy() for store in self.stores], self.room)
        twin.length, twin.torn = self.length, self.torn
        return twin


class Context:
    """The encoded tokens of B rows, which may have different lengths."""

    def __init__(self, rows: Sequence[Row], device: torch.device) -> None:
        self.rows, self.device = list(rows), device

    @classmethod
    def empty(
        cls,
        config: ModelConfig,
        rows: int,
        capacity: int | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> "Context":
        """A context without tokens.

        Args:
            config: the architecture.
            rows: B.
            capacity: tokens a row can hold in storage made at once, or None to grow as needed up
                to the model's longest context. Fixed storage is written in place: no autograd.
            device: where keys and values live.
            dtype: their format.

        Raises:
            ContextError: no rows, or a capacity that is not between 1 and the longest context.
        """
        longest = config.max_position_embeddings
        if rows < 1:
            raise ContextError(f"a context needs at least one row, got {rows}")
        if capacity is not None and not 1 <= capacity <= longest:
            raise ContextError(
                f"capacity {capacity} is out of range; this model holds 1 to {longest} tokens"
            )
        keep = config.sliding_window - 1 + config.canvas_length

        def store(layer: int) -> Growing | Fixed:
            shape = config.layers[layer]
            window = config.sliding_window if shape.sliding else None
            kept = keep if shape.sliding else None
            if capacity is None:
                return Growing(window, kept)
            like = torch.empty(
                shape.num_key_value_heads, shape.head_dim, device=device, dtype=dtype
            )
            return Fixed(window, kept, capacity, like)

        made = [
            Row([store(n) for n in range(len(config.layers))], capacity or longest)
            for _ in range(rows)
        ]
        return cls(made, device)

    def __repr__(self) -> str:
        return f"Context(lengths={self.lengths}, room={self.room})"

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, on the host."""
        return [row.length for row in self.rows]

    @property
    def lengths_B(self) -> Int[Tensor, " B"]:
        """Tokens of each row, int64, on the context's device."""
        return torch.tensor(self.lengths, dtype=torch.int64, device=self.device)

    @property
    def room(self) -> list[int]:
        """Tokens that each row can still take."""
        return [row.room - row.length for row in self.rows]

    def truncate(self, lengths_B: Int[Tensor, " B"] | Sequence[int]) -> None:
        """Cut every row back to its first tokens, as if the others had never been encoded.

        Args:
            lengths_B: the length to cut each row back to.

        Raises:
            ContextError: a length is above the row's, or so far back that sliding layers have
                forgotten what they would need. Going back one canvas, or to 0, always works.
        """
        lengths = lengths_B.tolist() if isinstance(lengths_B, Tensor) else list(lengths_B)
        if len(lengths) != len(self.rows):
            raise ContextError(f"{len(lengths)} lengths were given for {len(self.rows)} rows")
        for row, length in zip(self.rows, lengths, strict=True):
            row.truncate(int(length))

    def fork(self, row: int, n: int) -> "Context":
        """A context of n rows, each a copy of one row; nothing written to it shows here."""
        self._known(row)
        return Context([self.rows[row].copy() for _ in range(n)], self.device)

    def pick(self, rows: Sequence[int]) -> "Context":
        """The same rows, or some of them, in another order; writing to them shows here too."""
        for row in rows:
            self._known(row)
        return Context([self.rows[row] for row in rows], self.device)

    def _known(self, row: int) -> None:
        if not 0 <= row < len(self.rows):
            raise ContextError(f"row {row} does not exist; this context has {len(self.rows)} rows")
