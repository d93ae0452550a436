"""Where the keys and values of encoded tokens live, row by row and layer by layer.

A context is a list of rows; rows never touch each other's memory, so they may be ragged, picked,
forked and cut back one by one. This file knows nothing of attention: `passes.py` reads and writes.

Full layers keep every token. Sliding layers keep at least the last W - 1 + L tokens (window and
canvas), so that taking back a canvas is exact, and forget older ones.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
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
    """Keys and values of one layer and row in storage made once; written in place.

    Behind what it may hold lies room for a canvas to commit and one to denoise, which a captured
    step writes there (see `slots`).
    """

    def __init__(
        self,
        window: int | None,
        keep: int | None,
        k_KCH: Float[Tensor, "K C H"],
        v_KCH: Float[Tensor, "K C H"],
        spare: int,
    ) -> None:
        self.window, self.keep, self.spare = window, keep, spare
        self.start = self.used = 0
        self.k_KCH, self.v_KCH = k_KCH, v_KCH

    @property
    def size(self) -> int:
        """Tokens that it may hold."""
        return self.k_KCH.shape[1] - self.spare

    @property
    def length(self) -> int:
        """Tokens written so far, forgotten ones included."""
        return self.start + self.used

    def append(
        self, k_KTH: Float[Tensor, "K T H"], v_KTH: Float[Tensor, "K T H"]
    ) -> tuple[Tensor, Tensor]:
        """Write T tokens; returns the keys and values that these tokens may see (K, C, H)."""
        tokens = k_KTH.shape[1]
        if self.used + tokens <= self.size:
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

    def make_room(self, tokens: int) -> None:
        """Have room for so many tokens more, by forgetting what no window will see."""
        excess = self.used + tokens - self.size
        if excess <= 0:
            return
        assert self.keep is not None, "room on full layers is checked before encoding"
        gone = self.used - min(self.used, self.keep)
        for buffer in (self.k_KCH, self.v_KCH):
            buffer[:, : self.used - gone] = buffer[:, gone : self.used].clone()
        self.start, self.used = self.start + gone, self.used - gone

    def adopt(self, other: "Growing | Fixed") -> None:
        """Hold what another store holds, and nothing else."""
        self.start, self.used = other.start, 0
        seen = other.read(other.start)
        if seen is not None:
            self.append(*seen)

    def copy(self) -> "Fixed":
        """A second store with the same contents and storage of its own."""
        twin = Fixed(self.window, self.keep, self.k_KCH.clone(), self.v_KCH.clone(), self.spare)
        twin.start, twin.used = self.start, self.used
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
    """The encoded tokens of B rows, which may have different lengths.

    Attributes:
        rows: each with its own length and memory.
        buffers: of a context of fixed capacity, keys and values of each layer, all rows together.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        device: torch.device,
        buffers: Sequence[tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.rows, self.device, self.buffers = list(rows), device, buffers

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
        windows = [config.sliding_window if layer.sliding else None for layer in config.layers]
        kept = [keep if layer.sliding else None for layer in config.layers]
        if capacity is None:
            made = [
                Row([Growing(*one) for one in zip(windows, kept, strict=True)], longest)
                for _ in range(rows)
            ]
            return cls(made, device)
        spare, buffers = 2 * config.canvas_length, []
        for layer in config.layers:
            size = spare + (min(capacity, 2 * keep) if layer.sliding else capacity)
            shape = (rows, layer.num_key_value_heads, size, layer.head_dim)
            buffers.append(tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in "kv"))
        made = [
            Row(
                [
                    Fixed(window, one, k_BKCH[row], v_BKCH[row], spare)
                    for window, one, (k_BKCH, v_BKCH) in zip(windows, kept, buffers, strict=True)
                ],
                capacity,
            )
            for row in range(rows)
        ]
        return cls(made, device, buffers)

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

    def adopt(self, other: "Context") -> None:
        """Copy another context's tokens into this one's fixed memory, row by row.

        Raises:
            ContextError: a row has no room for them.
        """
        for mine, theirs in zip(self.rows, other.rows, strict=True):
            if theirs.length > mine.room:
                raise ContextError(f"{theirs.length} tokens do not fit in a row of {mine.room}")
            for store, there in zip(mine.stores, theirs.stores, strict=True):
                assert isinstance(store, Fixed)
                store.adopt(there)
            mine.length, mine.torn = theirs.length, theirs.torn

    def enlarged(self, capacity: int) -> "Context":
        """The same tokens in a context of a larger fixed capacity, with memory of its own."""
        assert self.buffers is not None, "a context that grows needs no enlarging"
        buffers, spare = [], 0
        for (k_BKCH, v_BKCH), store in zip(self.buffers, self.rows[0].stores, strict=True):
            assert isinstance(store, Fixed)
            spare = store.spare
            size = capacity if store.keep is None else min(capacity, 2 * store.keep)
            more = (0, 0, 0, size - store.size)
            buffers.append((F.pad(k_BKCH, more), F.pad(v_BKCH, more)))
        rows = []
        for number, row in enumerate(self.rows):
            stores = []
            for (k_BKCH, v_BKCH), store in zip(buffers, row.stores, strict=True):
                assert isinstance(store, Fixed)
                twin = Fixed(store.window, store.keep, k_BKCH[number], v_BKCH[number], spare)
                twin.start, twin.used = store.start, store.used
                stores.append(twin)
            made = Row(stores, capacity)
            made.length = row.length
            rows.append(made)
        return Context(rows, self.device, buffers)

    def _known(self, row: int) -> None:
        if not 0 <= row < len(self.rows):
            raise ContextError(f"row {row} does not exist; this context has {len(self.rows)} rows")
