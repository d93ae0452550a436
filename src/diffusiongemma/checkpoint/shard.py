"""A safetensors file, written tensor by tensor: no more is held than the tensor at hand.

The format: eight bytes with the length of a header in JSON, the header, then the tensors without
gaps. Those with the widest numbers lie first, so that each begins where its format wants it.
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1}
"""Bytes of a number, by its format's name there."""
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
}

Layout = Mapping[str, tuple[tuple[int, ...], str]]
"""Shape and format of every tensor, by name."""


def size_of(layout: Layout) -> int:
    """Bytes of the tensors."""
    return sum(math.prod(shape) * SIZES[kind] for shape, kind in layout.values())


class ShardWriter:
    """One file that is being written.

    Args:
        path: a file that does not exist.
        layout: what it will hold; every tensor must be put in once.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        order = sorted(layout, key=lambda name: -SIZES[layout[name][1]])
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._places: dict[str, int] = {}
        self._layout, end = layout, 0
        for name in order:
            shape, kind = layout[name]
            self._places[name], start = end, end
            end += math.prod(shape) * SIZES[kind]
            header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._file = path.open("xb")
        self._file.write(struct.pack("<Q", len(text)) + text)
        self._begin = self._file.tell()

    def put(self, name: str, tensor: Tensor) -> None:
        """Write a tensor in its place."""
        shape, kind = self._layout[name]
        assert (tuple(tensor.shape), _NAMES[tensor.dtype]) == (shape, kind), name
        self._file.seek(self._begin + self._places.pop(name))
        if tensor.numel():
            flat = tensor.detach().cpu().contiguous().view(-1)
            flat.view(torch.uint8).numpy().tofile(self._file)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._file.close()
        assert error is not None or not self._places, f"never put in: {list(self._places)}"
