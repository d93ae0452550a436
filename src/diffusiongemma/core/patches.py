"""An image as the vision tower reads it. Made by `dialog`, consumed by `model`."""

from typing import NamedTuple

from torch import Tensor


class Patches(NamedTuple):
    """One image cut into square patches, without padding.

    Attributes:
        values_PX: float32 in [0, 1], shape (P patches, 3 * patch_size**2): row, column, channel.
        positions_P2: int64, shape (P, 2): column (x) and row (y) of each patch in the grid.
    """

    values_PX: Tensor
    positions_P2: Tensor
