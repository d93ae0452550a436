"""Numbers as users hand them in: Python's, numpy's, a tensor's. What comes out is Python's.

A truth value is no number here, and neither is an array of one.
"""

import operator
from typing import Any


def whole(value: Any) -> int | None:
    """A whole number; None for anything else, 2.0 included."""
    if type(value) is int:
        return value
    if _is_other(value):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def real(value: Any) -> float | None:
    """A number; None for anything else, and for one that no float can hold."""
    if _is_other(value) or isinstance(value, str | bytes | complex):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _is_other(value: Any) -> bool:
    if isinstance(value, bool) or getattr(value, "ndim", 0) != 0:
        return True
    return str(getattr(value, "dtype", "")).removeprefix("torch.") == "bool"
