"""Where tokens stand in buffers and what they see, in tensors that the host never reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Piece:
    """Equally many tokens of every row that attend in one way.

    Attributes:
        part: which of the packed tokens.
        at_B: index in the buffers where each row's first token goes.
        end_B: index behind each row's last token.
        first_B: oldest index that they see.
        origin_B: position of what lies at index 0.
        causal: whether a token sees only what lies before it, within the window; if not, it sees
            all of its piece.
    """

    part: slice
    at_B: Int[Tensor, " B"]
    end_B: Int[Tensor, " B"]
    first_B: Int[Tensor, " B"]
    origin_B: Int[Tensor, " B"]
    causal: bool


@runtime_checkable
class Pieces(Protocol):
    """A pass whose tokens come in pieces, whose places are the same in all layers of a kind.

    Attributes:
        width: of each row's tokens in a piece.
        positions_S: of each token.
    """

    width: int
    positions_S: Tensor

    @property
    def buffers(self) -> Sequence[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, (B, K, C, H)."""
        ...

    @property
    def windows(self) -> Sequence[int | None]:
        """W of each sliding layer, None of the others."""
        ...

    def scalars(self, blocks: Sequence[Any]) -> Sequence[Tensor]:
        """What each layer multiplies its tokens with."""
        ...

    def pieces(self, layer: int) -> Sequence[Piece]:
        """In the order in which they write and attend."""
        ...

    def over(self, layer: int, piece: Piece, q_BTNH: Tensor) -> Tensor:
        """Attention of a piece whose keys and values are written."""
        ...
