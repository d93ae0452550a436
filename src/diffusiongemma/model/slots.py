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

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffusiongemma.core.errors import ContextError
from diffusiongemma.kernels.slots import attend_canvas, attend_causal, write
from diffusiongemma.model.context import Context, Fixed
from diffusiongemma.model.model import DiffusionGemma


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


class _Refine:
    """Every row's canvas, over its context."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        across = torch.arange(slots.width, device=slots.length_B.device)
        self.positions_S = (slots.length_B[:, None] + across).flatten()

    def scale(self, x_SD: Tensor, encode_scalar: Tensor, denoise_scalar: Tensor) -> Tensor:
        """All tokens are denoised."""
        return x_SD * denoise_scalar

    def attend(self, layer: int, q_SNH: Tensor, k_SKH: Tensor, v_SKH: Tensor) -> Tensor:
        """Write the canvas behind its context, and see both."""
        parts = (part.unflatten(0, (-1, self.slots.width)) for part in (q_SNH, k_SKH, v_SKH))
        ahead_B = torch.zeros_like(self.slots.length_B)
        return _over(self.slots, layer, ahead_B, *parts).flatten(0, 1)


class _Advance:
    """Finished canvases of some rows, then every row's canvas. All rows have both, for fixed
    shapes; where nothing is committed the first half is written where nobody looks.
    """

    def __init__(self, slots: Slots, commits_B: Bool[Tensor, " B"]) -> None:
        self.slots, width = slots, slots.width
        self.ahead_B = torch.where(commits_B, width, 0)
        across = torch.arange(width, device=commits_B.device)
        both = torch.stack([slots.length_B, slots.length_B + self.ahead_B])
        self.positions_S = (both[..., None] + across).flatten()

    def scale(self, x_SD: Tensor, encode_scalar: Tensor, denoise_scalar: Tensor) -> Tensor:
        """The encoder's scalar for what is committed, the denoiser's for what is denoised."""
        encoded, denoised = x_SD.chunk(2)
        return torch.cat([encoded * encode_scalar, denoised * denoise_scalar])

    def attend(self, layer: int, q_SNH: Tensor, k_SKH: Tensor, v_SKH: Tensor) -> Tensor:
        """Write both, then let each half see what it may."""
        slots, window = self.slots, self.slots.windows[layer]
        halves = [part.unflatten(0, (2, -1, slots.width)) for part in (q_SNH, k_SKH, v_SKH)]
        q_BTNH, k_BTKH, v_BTKH = (half[0] for half in halves)
        k_BKCH, v_BKCH = slots.buffers[layer]
        at_B = slots.length_B - (slots.start_B if window else 0) + (slots.width - self.ahead_B)
        write(k_BKCH, k_BTKH, at_B)
        write(v_BKCH, v_BTKH, at_B)
        first_B = torch.zeros_like(at_B)
        read = attend_causal(q_BTNH, k_BKCH, v_BKCH, first_B, at_B + slots.width, window)
        seen = _over(slots, layer, self.ahead_B, *(half[1] for half in halves))
        return torch.cat([read.flatten(0, 1), seen.flatten(0, 1)])


def _over(
    slots: Slots, layer: int, ahead_B: Tensor, q_BLNH: Tensor, k_BLKH: Tensor, v_BLKH: Tensor
) -> Tensor:
    """Canvases over their contexts, `ahead_B` tokens longer than told."""
    window, (k_BKCH, v_BKCH) = slots.windows[layer], slots.buffers[layer]
    end_B = slots.length_B + ahead_B
    at_B, first_B = end_B, torch.zeros_like(end_B)
    if window is not None:
        at_B = end_B - slots.start_B
        first_B = (end_B - (window - 1)).clamp(min=0) - slots.start_B
    write(k_BKCH, k_BLKH, at_B)
    write(v_BKCH, v_BLKH, at_B)
    return attend_canvas(q_BLNH, k_BKCH, v_BKCH, first_B, at_B + slots.width)


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
    x_SD = _conditioned(model, canvas_BL, soft_BLD)
    return model.trunk(x_SD, _Refine(slots)).view(*canvas_BL.shape, -1)


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
    read_SD = model.embedding(whole_BL).flatten(0, 1)
    x_SD = torch.cat([read_SD, _conditioned(model, canvas_BL, soft_BLD)])
    through = _Advance(slots, commits_B)
    _, hidden_SD = model.trunk(x_SD, through).chunk(2)
    slots.length_B += through.ahead_B
    return hidden_SD.view(*canvas_BL.shape, -1)


def _conditioned(model: DiffusionGemma, canvas_BL: Tensor, soft_BLD: Tensor) -> Tensor:
    embedded = model.embedding(canvas_BL).flatten(0, 1)
    soft_SD = soft_BLD.to(embedded.dtype).reshape(embedded.shape)
    return model.self_conditioning(embedded, soft_SD)
