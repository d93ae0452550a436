"""One line for what is large: how results and events show themselves at a prompt."""

from typing import Any

WIDTH = 100
_TEXT, _FEW = 40, 4


class Brief:
    """A dataclass whose repr fits a line: long values are cut or told by their size."""

    __slots__ = ()

    def __repr__(self) -> str:
        names = list(getattr(self, "__dataclass_fields__", {}))
        values = [(name, getattr(self, name)) for name in names]
        shown = [f"{name}={brief(value)}" for name, value in values if value is not None]
        text = f"{type(self).__name__}({', '.join(shown)})"
        return text if len(text) <= WIDTH else f"{text[: WIDTH - 4]}...)"


def brief(value: Any) -> str:
    """A value in few letters: shapes of tensors, lengths of long tuples, beginnings of texts."""
    if isinstance(value, str):
        return repr(value) if len(value) <= _TEXT else f"{value[:_TEXT]!r}..."
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple) and len(value) > _FEW:
        return f"<{len(value)} values>"
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"<{'x'.join(map(str, shape)) or 'number'}>"
    return repr(value)
