"""Where tokens stand in buffers and what they see, in tensors that the host never reads."""

from dataclasses import dataclass

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
