"""One line for what is large: how results and events show themselves at a prompt.

Knows what is told by its size; how a text is cut, `letters` knows.
"""

from typing import Any

from diffusiongemma.core.letters import brief, cut

WIDTH = 100
_VALUE, _FEW = 50, 4


class Brief:
    """A dataclass whose repr fits a line: long values are cut or told by their size."""

    __slots__ = ()

    def __repr__(self) -> str:
        names = list(getattr(self, "__dataclass_fields__", {}))
        values = [(name, getattr(self, name)) for name in names]
        shown = [f"{name}={_told(value)}" for name, value in values if value is not None]
        return cut(f"{type(self).__name__}({', '.join(shown)})", WIDTH)


def _told(value: Any) -> str:
    """A value in few letters: shapes of tensors, lengths of long tuples, ends of texts."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple) and len(value) > _FEW:
        return f"<{len(value)} values>"
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"<{'x'.join(map(str, shape)) or 'number'}>"
    return brief(value, _VALUE)
