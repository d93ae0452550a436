"""Drawing a token from probabilities with one uniform number.

Contract: the token at which the cumulated probability passes `uniform` of the total. Two levels,
pieces of the vocabulary and then the piece itself, in float64: a float32 running sum over 262,144
entries would round rare tokens away.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_PIECE = 1024  # vocabulary entries whose mass is summed together


def draw(p_LV: Float[Tensor, "L V"], uniform_L: Float[Tensor, " L"]) -> Int[Tensor, " L"]:
    """The reference: all sums in float64."""
    pieces = p_LV.split(_PIECE, dim=-1)
    mass = torch.stack([piece.sum(-1, dtype=torch.float64) for piece in pieces], dim=-1)
    return draw_from(p_LV, mass, _PIECE, uniform_L)


def draw_from(
    p_LV: Float[Tensor, "L V"],
    mass: Float[Tensor, "L pieces"],
    piece: int,
    uniform_L: Float[Tensor, " L"],
) -> Int[Tensor, " L"]:
    """The same, where the mass of each piece is known, float64.

    Args:
        p_LV: probabilities; their sum need not be 1.
        mass: their sums over each `piece` entries; the last piece may be shorter.
        piece: entries.
        uniform_L: one number in [0, 1) a position.
    """
    target_L = uniform_L.double() * mass.sum(-1)
    if mass.shape[1] == 1:
        return _pass(p_LV.double(), target_L)[0]
    piece_L, left_L = _pass(mass, target_L)
    vocabulary = p_LV.shape[1]
    ids = piece_L[:, None] * piece + torch.arange(piece, device=p_LV.device)
    if vocabulary % piece == 0:
        inside = p_LV.gather(-1, ids).double()
    else:
        inside = p_LV.gather(-1, ids.clamp(max=vocabulary - 1)).double()
        inside = inside.masked_fill(ids >= vocabulary, 0.0)
    place_L, _ = _pass(inside, left_L)
    return (piece_L * piece + place_L).clamp(max=vocabulary - 1)


def _pass(mass: Tensor, target_L: Tensor) -> tuple[Tensor, Tensor]:
    """Where the running sum first exceeds the target, and what is left of the target there.

    The place is within bounds whatever the masses are: what is no number exceeds nothing, and it is
    the entropy that tells of it.
    """
    total = mass.cumsum(-1)
    # Rounding may put the target at the very end; the last entry that has mass is then meant.
    below_end = torch.nextafter(total[:, -1], torch.zeros_like(target_L))
    target_L = torch.minimum(target_L, below_end).contiguous()
    place_L = torch.searchsorted(total, target_L[:, None], right=True)[:, 0]
    place_L = place_L.clamp(max=mass.shape[-1] - 1)
    before = total.gather(-1, (place_L - 1).clamp(min=0)[:, None])[:, 0]
    return place_L, target_L - torch.where(place_L > 0, before, torch.zeros_like(before))
