"""The two ways through the trunk: encode (causal, writes) and denoise (bidirectional, reads).

A pass knows, for the packed tokens of all rows, their positions, and what each row's queries see.
The layers above it are the same in both: they make queries, keys and values and ask the pass to
attend. A canvas attends over exactly its row's own keys, and rows with equally many share a call;
a text attends in tiles at absolute places, so that its bits do not depend on where it was cut.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusiongemma.kernels.attention import TILE, Tile, attend_alike, tiles
from diffusiongemma.model import masks
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.context import Context, Row

_Call = tuple[Tile, list[range], Tensor]
"""A tile, the positions of the queries that are asked, and what each place of it sees."""


@runtime_checkable
class Pass(Protocol):
    """What a layer needs to know of the pass it runs in."""

    positions_S: Tensor

    def scale(self, x_SD: Tensor, encode_scalar: Tensor, denoise_scalar: Tensor) -> Tensor:
        """The end of a layer: each token times the scalar of the mode it is in."""
        ...

    def attend(self, layer: int, q_SNH: Tensor, k_SKH: Tensor, v_SKH: Tensor) -> Tensor:
        """Attention of all packed tokens in one layer: (S, N, H)."""
        ...


class Encode:
    """Causal pass: tokens join the context and see what lies before them."""

    def __init__(
        self, config: ModelConfig, context: Context, spans: Sequence[Int[Tensor, " _"]]
    ) -> None:
        """Prepare positions and masks.

        Args:
            config: the architecture.
            context: rows to write to.
            spans: for each row, the image number of each token, -1 for text.
        """
        self.config, self.context = config, context
        self.rows: list[tuple[Row, slice]] = []
        positions, start = [], 0
        for row, span_T in zip(context.rows, spans, strict=True):
            tokens = span_T.shape[0]
            self.rows.append((row, slice(start, start + tokens)))
            positions.append(torch.arange(row.length, row.length + tokens, device=context.device))
            start += tokens
        self.positions_S = torch.cat(positions)
        self._images = [
            _images(row.length, span_T) for row, span_T in zip(context.rows, spans, strict=True)
        ]
        self._calls: dict[tuple[int, int | None], list[_Call]] = {}

    def attend(
        self,
        layer: int,
        q_SNH: Float[Tensor, "S N H"],
        k_SKH: Float[Tensor, "S K H"],
        v_SKH: Float[Tensor, "S K H"],
    ) -> Float[Tensor, "S N H"]:
        """Write each row's keys and values, then let its queries see them."""
        parts = []
        for number, (row, part) in enumerate(self.rows):
            if part.start == part.stop:
                continue
            store = row.stores[layer]
            k_KCH, v_KCH = store.append(k_SKH[part].transpose(0, 1), v_SKH[part].transpose(0, 1))
            parts += self._row(number, q_SNH[part], k_KCH, v_KCH, store.window)
        return torch.cat(parts)

    def _row(
        self, number: int, q_TNH: Tensor, k_KCH: Tensor, v_KCH: Tensor, window: int | None
    ) -> list[Tensor]:
        """What a row's tokens take from what they see, in their order."""
        start, parts = self.rows[number][0].length, {}
        stop = start + len(q_TNH)
        if (number, window) not in self._calls:
            self._calls[number, window] = self._planned(number, start, stop, window)
        for tile, asked, mask in self._calls[number, window]:
            queries = q_TNH[tile.start - start : tile.stop - start]
            out_TNH = tile.attend(queries, k_KCH, v_KCH, mask, stop)
            for one in asked:
                parts[one.start] = out_TNH[one.start - tile.start : one.stop - tile.start]
        return [parts[place] for place in sorted(parts)]

    def scale(self, x_SD: Tensor, encode_scalar: Tensor, denoise_scalar: Tensor) -> Tensor:
        """All tokens are encoded."""
        return x_SD * encode_scalar

    def finish(self) -> None:
        """Count the tokens in, once every layer has written them."""
        for row, part in self.rows:
            row.length += part.stop - part.start
            row.torn = False

    def _planned(self, number: int, start: int, stop: int, window: int | None) -> list[_Call]:
        """A row's calls: text and each image of a tile apart, as an image reaches to its end."""
        calls = []
        for tile in tiles(start, stop, window):
            images = [one for one in self._images[number] if _common(one, tile)]
            if text := _between(tile, images):
                calls.append((tile, text, self._mask(tile, window, None)))
            for image in images:
                wide = tile.reaching(image.start, image.stop)
                calls.append((wide, [_common(image, tile)], self._mask(wide, window, image)))
        return calls

    def _mask(self, tile: Tile, window: int | None, image: range | None) -> Tensor:
        device = self.positions_S.device
        query_T = torch.arange(tile.origin, tile.origin + TILE, device=device)
        key_C = torch.arange(tile.first, tile.end, device=device)
        if window is None:
            mask_TC = masks.causal(query_T, key_C)
        else:
            mask_TC = masks.window(query_T, key_C, window)
        if image is None:
            return mask_TC
        inside = ((at >= image.start) & (at < image.stop) for at in (query_T, key_C))
        return masks.overlay(mask_TC, *(torch.where(one, 0, -1) for one in inside))


def _images(start: int, span_T: Tensor) -> list[range]:
    """The positions of each image of a row's tokens, of which the first stands at `start`."""
    found = []
    for span, run in groupby(enumerate(span_T.tolist(), start), key=lambda one: one[1]):
        places = [place for place, _ in run]
        if span >= 0:
            found.append(range(places[0], places[-1] + 1))
    return found


def _common(image: range, tile: Tile) -> range:
    return range(max(image.start, tile.start), min(image.stop, tile.stop))


def _between(tile: Tile, images: Sequence[range]) -> list[range]:
    """The queries of a tile that belong to none of these images, which come in order."""
    starts = [tile.start, *(image.stop for image in images)]
    stops = [*(image.start for image in images), tile.stop]
    gaps = [range(*both) for both in zip(starts, stops, strict=True)]
    return [gap for gap in gaps if gap]


class Denoise:
    """Bidirectional pass: every canvas position sees the context and the whole canvas."""

    def __init__(self, config: ModelConfig, context: Context, width: int) -> None:
        """Prepare positions; canvas positions go on where the context ends.

        Args:
            config: the architecture.
            context: rows to read from; they are left as they are.
            width: L, the same for all rows.
        """
        self.context, self.width = context, width
        across = torch.arange(width, device=context.device)
        self.positions_S = torch.cat([row.length + across for row in context.rows])
        self._groups: dict[int | None, list[list[int]]] = {}

    def scale(self, x_SD: Tensor, encode_scalar: Tensor, denoise_scalar: Tensor) -> Tensor:
        """All tokens are denoised."""
        return x_SD * denoise_scalar

    def attend(
        self,
        layer: int,
        q_SNH: Float[Tensor, "S N H"],
        k_SKH: Float[Tensor, "S K H"],
        v_SKH: Float[Tensor, "S K H"],
    ) -> Float[Tensor, "S N H"]:
        """Let each row's canvas see its context and itself; writes nothing."""
        rows = self.context.rows
        q_BTNH, k_BTKH, v_BTKH = (
            part.unflatten(0, (len(rows), self.width)) for part in (q_SNH, k_SKH, v_SKH)
        )
        groups = self._alike(rows[0].stores[layer].window)
        if len(groups) == 1:
            k_BKCH, v_BKCH = self._keys(layer, rows, k_BTKH, v_BTKH)
            return attend_alike(q_BTNH, k_BKCH, v_BKCH).flatten(0, 1)
        parts: list[Tensor] = [q_SNH] * len(rows)
        for numbers in groups:
            k_BKCH, v_BKCH = self._keys(
                layer, [rows[n] for n in numbers], k_BTKH[numbers], v_BTKH[numbers]
            )
            out = attend_alike(q_BTNH[numbers], k_BKCH, v_BKCH)
            for number, one in zip(numbers, out.unbind(), strict=True):
                parts[number] = one
        return torch.cat(parts)

    def _keys(
        self, layer: int, rows: Sequence[Row], k_BTKH: Tensor, v_BTKH: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keys and values that rows with equally long contexts see: context, then canvas."""
        k_BKCH, v_BKCH = k_BTKH.transpose(1, 2), v_BTKH.transpose(1, 2)
        first = [masks.canvas_sees(r.length, r.stores[layer].window).start for r in rows]
        seen = [r.stores[layer].read(n) for r, n in zip(rows, first, strict=True)]
        found = [one for one in seen if one is not None]
        if not found:
            return k_BKCH, v_BKCH
        if len(rows) == 1:
            k_old, v_old = (part[None] for part in found[0])
        else:
            k_old, v_old = (torch.stack([one[part] for one in found]) for part in (0, 1))
        return torch.cat([k_old, k_BKCH], dim=2), torch.cat([v_old, v_BKCH], dim=2)

    def _alike(self, window: int | None) -> list[list[int]]:
        """Rows by how much of their context a canvas sees; remembered for the layers to come."""
        if window not in self._groups:
            groups: dict[int, list[int]] = {}
            for number, row in enumerate(self.context.rows):
                seen = masks.canvas_sees(row.length, window)
                groups.setdefault(seen.stop - seen.start, []).append(number)
            self._groups[window] = list(groups.values())
        return self._groups[window]
