"""The two ways through the trunk: encode (causal, writes) and denoise (bidirectional, reads).

A pass knows, for the packed tokens of all rows, their positions, and what each row's queries see.
The layers above it are the same in both: they make queries, keys and values and ask the pass to
attend. Attention runs row by row over exactly the row's own keys.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusiongemma.kernels.attention import attend
from diffusiongemma.model import masks
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.context import Context, Row


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
            mask_TC = self._mask(number, k_KCH.shape[1], store.window)
            parts.append(attend(q_SNH[part], k_KCH, v_KCH, mask_TC))
        return torch.cat(parts)

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
        parts = []
        for number, row in enumerate(self.context.rows):
            part = slice(number * self.width, (number + 1) * self.width)
            k_KCH, v_KCH = k_SKH[part].transpose(0, 1), v_SKH[part].transpose(0, 1)
            store = row.stores[layer]
            seen = store.read(masks.canvas_sees(row.length, store.window).start)
            if seen is not None:
                k_KCH = torch.cat([seen[0], k_KCH], dim=1)
                v_KCH = torch.cat([seen[1], v_KCH], dim=1)
            parts.append(attend(q_SNH[part], k_KCH, v_KCH))
        return torch.cat(parts)
