"""Attention of one row's queries over the keys that this row can see.

Contract: softmax(q @ k.T) @ v with scale 1 (queries and keys are normed, so Gemma divides by
nothing), softmax in float32, query heads shared evenly among key heads. `mask_TC` is True where a
query may look; None means everywhere. Output in the dtype of the queries.

A canvas is given exactly its row's keys: they are never padded, so neighbours in a batch cannot
change its bits. Only rows with equally many keys may share a call.

A text may be read in pieces, and its bits must not depend on where it was cut. A library chooses
and orders its products by shape, so a text attends in tiles whose shapes follow from places alone:
`TILE` queries from an absolute multiple of it, over keys from an absolute multiple to the tile's
end. What is not there yet, or no longer, is zeros that the mask hides.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def attend(
    q_TNH: Float[Tensor, "T N H"],
    k_KCH: Float[Tensor, "K C H"],
    v_KCH: Float[Tensor, "K C H"],
    mask_TC: Bool[Tensor, "T C"] | None = None,
) -> Float[Tensor, "T N H"]:
    """Attend from T queries to C keys.

    Query head n reads key head n // (N / K). The heads of one group are folded into the query
    axis, so keys and values are never repeated in memory.
    """
    tokens, heads, width = q_TNH.shape
    groups = heads // k_KCH.shape[0]
    q = q_TNH.view(tokens, -1, groups, width).permute(1, 2, 0, 3)
    q = q.reshape(1, -1, groups * tokens, width)
    mask = None if mask_TC is None else mask_TC.repeat(groups, 1)
    out = F.scaled_dot_product_attention(q, k_KCH[None], v_KCH[None], attn_mask=mask, scale=1.0)
    return out.view(-1, groups, tokens, width).permute(2, 0, 1, 3).reshape(tokens, heads, width)


TILE = 128
"""Queries that attend together where a text is read; keys come in multiples of it, too."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Queries that attend in one call, and the keys that it is made for, by position.

    Attributes:
        start: of the first query that is there.
        stop: behind the last one.
        first: of the first key, a multiple of `TILE`.
        end: behind the last key, a multiple of `TILE`.
    """

    start: int
    stop: int
    first: int
    end: int

    @property
    def origin(self) -> int:
        """Position of the tile's first place, whether a query is there or not."""
        return self.start // TILE * TILE

    def reaching(self, first: int, end: int) -> "Tile":
        """The same queries, over keys that reach to these as well."""
        first, end = first // TILE * TILE, -(-end // TILE) * TILE
        return Tile(self.start, self.stop, min(self.first, first), max(self.end, end))

    def attend(
        self,
        q_TNH: Float[Tensor, "T N H"],
        k_KCH: Float[Tensor, "K C H"],
        v_KCH: Float[Tensor, "K C H"],
        mask: Bool[Tensor, "tile keys"],
        end: int,
    ) -> Float[Tensor, "T N H"]:
        """Attend from the queries that are there.

        Args:
            q_TNH: the tile's queries, from `start` to `stop`.
            k_KCH: keys of the row, the oldest of which may have been forgotten.
            v_KCH: values.
            mask: which of the tile's places sees which of its keys.
            end: position behind the last key of the row.
        """
        held = end - k_KCH.shape[1]
        lo, hi = max(self.first, held), min(self.end, end)
        k, v = (
            F.pad(one[:, lo - held : hi - held], (0, 0, lo - self.first, self.end - hi))
            if (lo, hi) != (self.first, self.end)
            else one[:, lo - held : hi - held]
            for one in (k_KCH, v_KCH)
        )
        at, count = self.start - self.origin, self.stop - self.start
        if count < TILE:
            q_TNH = F.pad(q_TNH, (0, 0, 0, 0, at, TILE - at - count))
        return attend(q_TNH, k, v, mask)[at : at + count]


def tiles(start: int, stop: int, window: int | None) -> list[Tile]:
    """The tiles of a text's part.

    Args:
        start: position of its first token.
        stop: position behind the last one.
        window: W, itself included; None sees all.
    """
    found = []
    for origin in range(start // TILE * TILE, stop, TILE):
        oldest = 0 if window is None else max(0, origin - window + 1)
        queries = max(origin, start), min(origin + TILE, stop)
        found.append(Tile(*queries, oldest // TILE * TILE, origin + TILE))
    return found


def attend_alike(
    q_BTNH: Float[Tensor, "B T N H"],
    k_BKCH: Float[Tensor, "B K C H"],
    v_BKCH: Float[Tensor, "B K C H"],
) -> Float[Tensor, "B T N H"]:
    """`attend` for several rows that have equally many keys, and see all of them; the same bits."""
    rows, tokens, heads, width = q_BTNH.shape
    groups = heads // k_BKCH.shape[1]
    q = q_BTNH.view(rows, tokens, -1, groups, width).permute(0, 2, 3, 1, 4)
    q = q.reshape(rows, -1, groups * tokens, width)
    out = F.scaled_dot_product_attention(q, k_BKCH, v_BKCH, scale=1.0)
    out = out.view(rows, -1, groups, tokens, width).permute(0, 3, 1, 2, 4)
    return out.reshape(rows, tokens, heads, width)


def attend_rows(
    q_BTNH: Float[Tensor, "B T N H"],
    k_BTKH: Float[Tensor, "B T K H"],
    v_BTKH: Float[Tensor, "B T K H"],
    mask_BTT: Bool[Tensor, "B T T"] | Float[Tensor, "B T T"],
) -> Float[Tensor, "B T N H"]:
    """Self-attention of many rows of one length in one call, for training.

    The same contract, but the bits of a row may depend on the others, and keys and values are
    repeated, as a mask for each query head would be larger. The mask may be one to add: 0 and minus
    infinity.
    """
    groups = q_BTNH.shape[2] // k_BTKH.shape[2]
    q = q_BTNH.transpose(1, 2)
    k, v = (part.repeat_interleave(groups, dim=2).transpose(1, 2) for part in (k_BTKH, v_BTKH))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BTT[:, None], scale=1.0)
    return out.transpose(1, 2)
