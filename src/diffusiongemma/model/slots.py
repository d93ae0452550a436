"""The trunk over a context of fixed capacity, with every length in a device tensor.

The same arithmetic as `DiffusionGemma.encode` and `denoise`, in a form that can be captured once
and replayed: nothing is read on the host, shapes never change, keys and values are written in
place. A canvas's own keys lie behind its row's context, where the next step writes over them.

One forward does two kinds of work: it denoises a canvas of every row, and commits, that is encodes
causally, a finished canvas of those rows that have one:

    row that commits     | context | committed canvas (encoded) | next canvas (denoised) |
    row that does not    | context | its canvas (denoised) | ... nobody looks here ...    |

Committed tokens take the encoder's path and scalars and see what an encode would let them see; the
next canvas sees them as context. Lossless: each row gets what two forwards would give it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffusiongemma.core.errors import ContextError
from diffusiongemma.kernels.ops import Ops
from diffusiongemma.kernels.slots import write
from diffusiongemma.model.block import Block
from diffusiongemma.model.context import Context, Fixed
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.model.piece import Piece
from diffusiongemma.model.trunk import FUSED, Choice


class Slots:
    """A context of fixed capacity as a captured step sees it.

    Attributes:
        context: the rows; the host's view.
        length_B: tokens of each row; the device's view.
        start_B: position of a sliding layer's oldest token, which lies at index 0.
    """

    def __init__(self, context: Context, width: int) -> None:
        """Look at a context.

        Raises:
            ContextError: it has no fixed capacity, its rows are another context's, or canvases are
                wider than the room behind its rows.
        """
        stores = [row.stores[0] for row in context.rows]
        fixed = [store for store in stores if isinstance(store, Fixed)]
        if context.buffers is None or len(fixed) < len(stores):
            raise ContextError("give the context a capacity: a captured step needs fixed memory")
        if 2 * width > fixed[0].spare:
            raise ContextError(
                f"a canvas of {width} is wider than the {fixed[0].spare // 2} positions that a "
                "context of fixed capacity has room for"
            )
        self.context, self.width, self.buffers = context, width, context.buffers
        self.windows = [store.window for store in context.rows[0].stores]
        self.length_B = context.lengths_B
        self.start_B = torch.zeros_like(self.length_B)
        self.refresh()

    def refresh(self) -> None:
        """Have the device know the lengths that the host knows."""
        sliding = next((n for n, window in enumerate(self.windows) if window), 0)
        lengths = [(row.length, row.stores[sliding].start) for row in self.context.rows]
        told = torch.tensor(lengths, dtype=torch.int64)
        self.length_B.copy_(told[:, 0], non_blocking=True)
        self.start_B.copy_(told[:, 1], non_blocking=True)

    def make_room(self, rows: list[int], tokens: int) -> None:
        """Before these rows commit: sliding layers forget what no window will see.

        Raises:
            ContextError: a row is full.
        """
        for number in rows:
            row = self.context.rows[number]
            if row.length + tokens > row.room:
                raise ContextError(f"row {number} is full: it holds {row.length} of {row.room}")
            for store in row.stores:
                assert isinstance(store, Fixed)
                store.make_room(tokens)
        self.refresh()

    def committed(self, rows: list[int], tokens: int) -> None:
        """After these rows have committed: count the tokens in, on the host."""
        for number in rows:
            row = self.context.rows[number]
            row.length += tokens
            for store in row.stores:
                assert isinstance(store, Fixed)
                store.used += tokens


class _Through:
    """A pass over slots: its tokens come in pieces, whose places are the same in all layers of a
    kind.
    """

    positions_S: Tensor

    def __init__(self, slots: Slots, ops: Ops) -> None:
        self.slots, self.ops = slots, ops
        self.width, self.buffers, self.windows = slots.width, slots.buffers, slots.windows
        self._pieces: dict[int | None, list[Piece]] = {}

    def pieces(self, layer: int) -> list[Piece]:
        """In the order in which they write and attend."""
        window = self.windows[layer]
        if window not in self._pieces:
            self._pieces[window] = self._cut(window)
        return self._pieces[window]

    def attend(self, layer: int, q_SNH: Tensor, k_SKH: Tensor, v_SKH: Tensor) -> Tensor:
        """Each piece is written to its place, then sees what it may."""
        k_BKCH, v_BKCH = self.buffers[layer]
        parts = []
        for piece in self.pieces(layer):
            q_BTNH, k_BTKH, v_BTKH = (
                one[piece.part].unflatten(0, (-1, self.width)) for one in (q_SNH, k_SKH, v_SKH)
            )
            write(k_BKCH, k_BTKH, piece.at_B)
            write(v_BKCH, v_BTKH, piece.at_B)
            parts.append(self.over(layer, piece, q_BTNH).flatten(0, 1))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def over(self, layer: int, piece: Piece, q_BTNH: Tensor) -> Tensor:
        """Attention of a piece whose keys and values are written."""
        k_BKCH, v_BKCH = self.buffers[layer]
        if piece.causal:
            window = self.windows[layer]
            return self.ops.attend_causal(
                q_BTNH, k_BKCH, v_BKCH, piece.first_B, piece.end_B, window, piece.origin_B
            )
        return self.ops.attend_canvas(q_BTNH, k_BKCH, v_BKCH, piece.first_B, piece.end_B)

    def _cut(self, window: int | None) -> list[Piece]:
        raise NotImplementedError

    def _canvas(self, window: int | None, part: slice, ahead_B: Tensor | None) -> Piece:
        """Canvases over their contexts, `ahead_B` tokens longer than told."""
        end_B = self.slots.length_B if ahead_B is None else self.slots.length_B + ahead_B
        width = self.slots.width
        if window is None:
            zero_B = torch.zeros_like(end_B)
            return Piece(part, end_B, end_B + width, zero_B, zero_B, causal=False)
        start_B = self.slots.start_B
        first_B = (end_B - (window - 1)).clamp(min=0) - start_B
        at_B = end_B - start_B
        return Piece(part, at_B, at_B + width, first_B, start_B, causal=False)


class Refine(_Through):
    """Every row's canvas, over its context."""

    def __init__(self, slots: Slots, ops: Ops) -> None:
        super().__init__(slots, ops)
        across = torch.arange(slots.width, device=slots.length_B.device)
        self.positions_S = (slots.length_B[:, None] + across).flatten()

    def scale(self, x_SD: Tensor, encode_scalar: Tensor, denoise_scalar: Tensor) -> Tensor:
        """All tokens are denoised."""
        return x_SD * denoise_scalar

    def scalars(self, blocks: Sequence[Block]) -> Sequence[Tensor]:
        """What each layer multiplies its tokens with: one number for all."""
        return [block.denoise_scalar for block in blocks]

    def _cut(self, window: int | None) -> list[Piece]:
        return [self._canvas(window, slice(None), None)]


class Advance(_Through):
    """Finished canvases of some rows, then every row's canvas. All rows have both, for fixed
    shapes; where nothing is committed the first half is written where nobody looks.
    """

    def __init__(self, slots: Slots, ops: Ops, commits_B: Bool[Tensor, " B"]) -> None:
        super().__init__(slots, ops)
        width = slots.width
        self.ahead_B = torch.where(commits_B, width, 0)
        across = torch.arange(width, device=commits_B.device)
        both = torch.stack([slots.length_B, slots.length_B + self.ahead_B])
        self.positions_S = (both[..., None] + across).flatten()
        self.tokens = len(commits_B) * width  # of each half

    def scale(self, x_SD: Tensor, encode_scalar: Tensor, denoise_scalar: Tensor) -> Tensor:
        """The encoder's scalar for what is committed, the denoiser's for what is denoised."""
        encoded, denoised = x_SD.chunk(2)
        return torch.cat([encoded * encode_scalar, denoised * denoise_scalar])

    def scalars(self, blocks: Sequence[Block]) -> Sequence[Tensor]:
        """What each layer multiplies its tokens with, one number a token."""
        encoded = torch.cat([block.encode_scalar for block in blocks])[:, None]
        denoised = torch.cat([block.denoise_scalar for block in blocks])[:, None]
        shape = (len(blocks), self.tokens)
        both = torch.cat([encoded.expand(shape), denoised.expand(shape)], dim=1)
        return both.unbind()

    def _cut(self, window: int | None) -> list[Piece]:
        slots, half = self.slots, self.tokens
        zero_B = torch.zeros_like(slots.start_B)
        origin_B = zero_B if window is None else slots.start_B
        at_B = slots.length_B - origin_B + (slots.width - self.ahead_B)
        read = Piece(slice(0, half), at_B, at_B + slots.width, zero_B, origin_B, causal=True)
        return [read, self._canvas(window, slice(half, None), self.ahead_B)]


def denoise(
    model: DiffusionGemma,
    canvas_BL: Int[Tensor, "B L"],
    soft_BLD: Float[Tensor, "B L D"],
    slots: Slots,
) -> Float[Tensor, "B L D"]:
    """`model.denoise` over slots.

    Args:
        model: the network.
        canvas_BL: one canvas a row.
        soft_BLD: expected embeddings of the step before; zeros at the first.
        slots: the context.
    """
    choice = model.running
    x_SD = _conditioned(model, choice, canvas_BL, soft_BLD)
    hidden_SD = _trunk(model, choice, x_SD, Refine(slots, choice.ops))
    return hidden_SD.view(*canvas_BL.shape, -1)


def advance(
    model: DiffusionGemma,
    whole_BL: Int[Tensor, "B L"],
    commits_B: Bool[Tensor, " B"],
    canvas_BL: Int[Tensor, "B L"],
    soft_BLD: Float[Tensor, "B L D"],
    slots: Slots,
) -> Float[Tensor, "B L D"]:
    """Commit the finished canvases of some rows, and denoise a canvas of every row.

    The device's lengths grow by what is committed; the host has to be told (`Slots.committed`).

    Args:
        model: the network.
        whole_BL: finished canvases; any tokens in rows that have none.
        commits_B: which rows have one.
        canvas_BL: the canvases to denoise: the next one in rows that commit.
        soft_BLD: as in `denoise`; zeros in rows that commit.
        slots: the context.

    Returns:
        hidden states of the canvases.
    """
    choice = model.running
    read_SD = model.embedding(whole_BL).flatten(0, 1)
    x_SD = torch.cat([read_SD, _conditioned(model, choice, canvas_BL, soft_BLD)])
    through = Advance(slots, choice.ops, commits_B)
    _, hidden_SD = _trunk(model, choice, x_SD, through).chunk(2)
    slots.length_B += through.ahead_B
    return hidden_SD.view(*canvas_BL.shape, -1)


def _trunk(
    model: DiffusionGemma, choice: Choice, x_SD: Tensor, through: Refine | Advance
) -> Tensor:
    if choice.trunk != FUSED:
        return model.trunk(x_SD, choice.ops, through)
    from diffusiongemma.model import fused

    blocks = fused.blocks_of(model.blocks)
    return fused.trunk(model.config, blocks, model.norm, x_SD, choice.ops, through)


def _conditioned(
    model: DiffusionGemma, choice: Choice, canvas_BL: Tensor, soft_BLD: Tensor
) -> Tensor:
    embedded = model.embedding(canvas_BL).flatten(0, 1)
    soft_SD = soft_BLD.to(embedded.dtype).reshape(embedded.shape)
    if choice.trunk != FUSED:
        return model.self_conditioning(embedded, soft_SD, choice.ops)
    from diffusiongemma.model import fused

    return fused.conditioned(model.self_conditioning, embedded, soft_SD, choice.ops)
