"""The two ways through the trunk: encode (causal, writes) and denoise (bidirectional, reads).

A pass knows, for the packed tokens of all rows, their positions, and what each row's queries see.
The layers above it are the same in both: they make queries, keys and values and ask the pass to
attend. Attention runs over exactly each row's own keys; rows with equally many share a call.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusiongemma.kernels.attention import attend, attend_alike
from diffusiongemma.model import masks
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.context import Context, Row

_BLOCK = 128  # queries of a sliding layer that attend together, at least


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
        self._spans = list(spans)
        self._text = [not bool((span_T >= 0).any()) for span_T in self._spans]
        self._masks: dict[tuple[int, int, int], Tensor | None] = {}

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
            if store.window is not None:
                seen = part.stop - part.start + store.window - 1
                k_KCH, v_KCH = k_KCH[:, -seen:], v_KCH[:, -seen:]
                if part.stop - part.start > 2 * max(_BLOCK, store.window) and self._text[number]:
                    parts += self._along(store.window, q_SNH[part], k_KCH, v_KCH)
                    continue
            mask_TC = self._mask(number, k_KCH.shape[1], store.window)
            parts.append(attend(q_SNH[part], k_KCH, v_KCH, mask_TC))
        return torch.cat(parts)

    def _along(self, size: int, q_TNH: Tensor, k_KCH: Tensor, v_KCH: Tensor) -> list[Tensor]:
        """A window's attention block by block: most of the square is masked for a long text."""
        tokens, keys, block = q_TNH.shape[0], k_KCH.shape[1], max(_BLOCK, size)
        before, parts = keys - tokens, []
        for start in range(0, tokens, block):
            stop = min(start + block, tokens)
            first = max(0, before + start - size + 1)
            seen = slice(first, before + stop)
            place = (-1, (stop - start), seen.stop - first)
            if place not in self._masks:  # the same for all blocks but the first and the last
                query_T = torch.arange(before + start, before + stop, device=q_TNH.device)
                key_C = torch.arange(first, before + stop, device=q_TNH.device)
                self._masks[place] = masks.window(query_T, key_C, size)
            mask_TC = self._masks[place]
            parts.append(attend(q_TNH[start:stop], k_KCH[:, seen], v_KCH[:, seen], mask_TC))
        return parts

    def scale(self, x_SD: Tensor, encode_scalar: Tensor, denoise_scalar: Tensor) -> Tensor:
        """All tokens are encoded."""
        return x_SD * encode_scalar

    def finish(self) -> None:
        """Count the tokens in, once every layer has written them."""
        for row, part in self.rows:
            row.length += part.stop - part.start
            row.torn = False

    def _mask(self, number: int, keys: int, size: int | None) -> Tensor | None:
        place = (number, keys, size or 0)
        if place not in self._masks:
            self._masks[place] = self._draw(number, keys, size)
        return self._masks[place]

    def _draw(self, number: int, keys: int, size: int | None) -> Tensor | None:
        span_T = self._spans[number]
        tokens = span_T.shape[0]
        if tokens == 1 and (size is None or keys <= size):
            return None
        query_T = self.positions_S[self.rows[number][1]]
        key_C = torch.arange(int(keys), device=query_T.device) + (query_T[-1] + 1 - keys)
        if size is None:
            mask_TC = masks.causal(query_T, key_C)
        else:
            mask_TC = masks.window(query_T, key_C, size)
        # An image lies within one chunk, so earlier keys belong to no span of this one.
        before = span_T.new_full((keys - tokens,), -1)
        return masks.overlay(mask_TC, span_T, torch.cat([before, span_T]))


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
