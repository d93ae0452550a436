"""A text that joins one row's context, in the form that fused kernels take.

What `passes.Encode` does for a row without images, on a GPU in bfloat16: keys and values are
written straight to where they stay. A prompt of 1,024 tokens is some 400 launches instead of 4,600,
which is what its time goes into.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffusiongemma.kernels.ops import Ops
from diffusiongemma.model.block import Block
from diffusiongemma.model.context import Fixed, Growing, Row
from diffusiongemma.model.piece import Piece

_WHOLE = 16  # tokens that a pass is padded to multiples of, so that kernels are built once


class Read:
    """The pass of some tokens of one row, behind what the row holds.

    Attributes:
        width: of the tokens, padded. What is behind the last true one sees it, but not the other
            way round, and is never counted in.
        positions_S: of each.
        buffers: keys and values of each layer, (1, K, C, H): the row's own, or larger ones that
            become its own.
        windows: W of each sliding layer, None of the others.
    """

    def __init__(self, row: Row, tokens: int, ops: Ops) -> None:
        """Find or make room.

        Args:
            row: is changed by `finish` alone.
            tokens: T, of which the row has room for.
            ops: the table.
        """
        self.row, self.tokens, self.ops = row, tokens, ops
        self.width = -(-tokens // _WHOLE) * _WHOLE
        self._pieces: dict[int, list[Piece]] = {}
        self.windows = [store.window for store in row.stores]
        self._held: list[int] = []
        self.buffers: list[tuple[Tensor, Tensor]] = []

    def begin(
        self, blocks: Sequence[Block], x_SD: Float[Tensor, "S D"]
    ) -> Float[Tensor, "padded D"]:
        """Make memory like the network's own, and pad the tokens."""
        end = self.row.length + self.width
        self.positions_S = torch.arange(self.row.length, end, device=x_SD.device)
        for block, store in zip(blocks, self.row.stores, strict=True):
            head = block.attention.head_dim
            shape = (block.attention.k.weight.shape[0] // head, head)
            held = store.length - store.start
            self._held.append(held)
            self.buffers.append(self._buffers(store, held, shape, x_SD))
        return torch.nn.functional.pad(x_SD, (0, 0, 0, self.width - self.tokens))

    def scalars(self, blocks: Sequence[Block]) -> Sequence[Tensor]:
        """What each layer multiplies its tokens with: the encoder's number for all."""
        return [block.encode_scalar for block in blocks]

    def pieces(self, layer: int) -> list[Piece]:
        """All tokens, at the end of what the layer holds."""
        held = self._held[layer]
        if held not in self._pieces:
            at_B = torch.full((1,), held, dtype=torch.int64, device=self.positions_S.device)
            ends = (at_B, at_B + self.width, torch.zeros_like(at_B), self.row.length - at_B)
            self._pieces[held] = [Piece(slice(None), *ends, causal=True)]
        return self._pieces[held]

    def over(self, layer: int, piece: Piece, q_BTNH: Tensor) -> Tensor:
        """Attention of tokens whose keys and values are written."""
        window, (k_BKCH, v_BKCH) = self.windows[layer], self.buffers[layer]
        return self.ops.attend_causal(
            q_BTNH, k_BKCH, v_BKCH, piece.first_B, piece.end_B, window, piece.origin_B
        )

    def finish(self) -> None:
        """Count the tokens in."""
        self.row.torn = True  # until every layer has
        for store, held, (k_BKCH, v_BKCH) in zip(
            self.row.stores, self._held, self.buffers, strict=True
        ):
            _take(store, k_BKCH[0], v_BKCH[0], held, self.tokens)
        self.row.length += self.tokens
        self.row.torn = False

    def _buffers(
        self, store: Growing | Fixed, held: int, shape: tuple[int, int], like: Tensor
    ) -> tuple[Tensor, Tensor]:
        if isinstance(store, Fixed):
            whole = held + self.width <= store.k_KCH.shape[1]
            if whole and held + self.tokens <= store.size:
                return store.k_KCH[None], store.v_KCH[None]
        heads, width = shape
        made = [like.new_empty(1, heads, held + self.width, width) for _ in "kv"]
        if held:
            for one, old in zip(made, (store.k_KCH, store.v_KCH), strict=True):
                assert old is not None
                one[0, :, :held] = old[:, :held]
        return made[0], made[1]


def _take(store: Growing | Fixed, k_KCH: Tensor, v_KCH: Tensor, held: int, tokens: int) -> None:
    """What `append` leaves behind, from buffers in which the tokens are written."""
    whole = held + tokens
    if isinstance(store, Fixed):
        if whole <= store.size:
            if k_KCH.data_ptr() != store.k_KCH.data_ptr():
                store.k_KCH[:, held:whole] = k_KCH[:, held:whole]
                store.v_KCH[:, held:whole] = v_KCH[:, held:whole]
            store.used = whole
            return
        assert store.keep is not None, "room on full layers is checked before encoding"
        store.k_KCH[:, : store.keep] = k_KCH[:, whole - store.keep : whole]
        store.v_KCH[:, : store.keep] = v_KCH[:, whole - store.keep : whole]
        store.start, store.used = store.start + whole - store.keep, store.keep
        return
    excess = 0 if store.keep is None else max(0, whole - store.keep)
    kept = slice(excess, whole)
    # A slice would hold on to the whole; forgetting has to free memory.
    store.k_KCH = k_KCH[:, kept].clone() if excess else k_KCH[:, kept]
    store.v_KCH = v_KCH[:, kept].clone() if excess else v_KCH[:, kept]
    store.start += excess
