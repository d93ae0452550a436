"""The places of a network for a checkpoint's tensors, each by our name for the tensor.

Most tensors have a place of their own. Experts that are stored one by one share two tensors (and
two of scales), which are made when the first of them comes.
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from diffusiongemma.checkpoint import fp8
from diffusiongemma.core.errors import CheckpointError
from diffusiongemma.kernels.quantised import E4M3
from diffusiongemma.model.experts import Experts
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.quant.linear import Fp8Experts, Fp8Linear

_SHARES = 3  # tensors of an expert: gate, up, down
FORMATS = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""Formats that a plain weight may be stored in, as safetensors spells them."""


class Slot:
    """A parameter or buffer of the network, at first without memory.

    Attributes:
        shape: the shape that is to be stored.
        formats: what it may be stored in.
        dtype: the format that it gets; None is the one that was asked for.
        copies: what it is filled with is copied, and needs no memory of its own.
    """

    copies = False

    def __init__(self, owner: nn.Module, name: str, empty: Tensor) -> None:
        self.owner, self.name = owner, name
        self.shape = tuple(empty.shape)
        self.is_parameter = isinstance(empty, nn.Parameter)
        self.formats: tuple[str, ...] = tuple(FORMATS)
        self.dtype: torch.dtype | None = None
        self._inside = self.shape
        if isinstance(owner, Fp8Linear | Fp8Experts):
            scale = name.endswith("scale")
            self.formats = fp8.SCALES if scale else (fp8.STORED,)
            self.dtype = torch.float32 if scale else E4M3
            self.shape = (*self.shape, 1) if scale else self.shape

    def stays(self, stored: str, asked: torch.dtype) -> bool:
        """Whether what is stored can be used as it lies in the file."""
        return FORMATS.get(stored, E4M3) is (self.dtype or asked)

    def fill(self, value: Tensor) -> None:
        """Put the tensor in its place."""
        self._put(value.view(self._inside))

    def holds(self, value: Tensor) -> bool:
        """Whether a stored tensor is what is in its place, but for the format."""
        here = self._value().detach()
        if tuple(value.shape) != self.shape:
            return False
        there = value.view(self._inside).to(here.device, here.dtype)
        if here.dtype is E4M3:  # which has no comparison everywhere
            there, here = there.view(torch.uint8), here.contiguous().view(torch.uint8)
        return torch.equal(there, here)

    def _value(self) -> Tensor:
        return getattr(self.owner, self.name)

    def _put(self, value: Tensor) -> None:
        if self.is_parameter:
            value = nn.Parameter(value, requires_grad=False)
        setattr(self.owner, self.name, value)


class Part(Slot):
    """One expert's share of a tensor that holds all of them.

    Attributes:
        expert: its number.
        rows: its rows within the expert's.
    """

    copies = True

    def __init__(self, owner: nn.Module, name: str, expert: int, rows: slice) -> None:
        whole: Tensor = getattr(owner, name)
        super().__init__(owner, name, whole)
        self.expert, self.rows = expert, rows
        self._inside = tuple(whole[0, rows].shape)
        self.shape = (*self._inside, 1) if whole.ndim == 2 else self._inside
        self._whole = tuple(whole.shape)

    def stays(self, stored: str, asked: torch.dtype) -> bool:
        """Never: it is copied to where the others are."""
        return False

    def fill(self, value: Tensor) -> None:
        """Copy it to its place."""
        whole: Tensor = getattr(self.owner, self.name)
        if whole.device != value.device or whole.dtype != value.dtype:  # still without memory
            self._put(torch.empty(self._whole, dtype=value.dtype, device=value.device))
            whole = getattr(self.owner, self.name)
        whole.detach()[self.expert, self.rows] = value.view(self._inside)

    def _value(self) -> Tensor:
        return getattr(self.owner, self.name)[self.expert, self.rows]


def slots(model: DiffusionGemma, stored: Collection[str]) -> dict[str, Slot]:
    """Every place of a network, by our name for what belongs there.

    Args:
        model: the network, its layers of the kinds that the checkpoint has.
        stored: the names of the checkpoint's tensors.

    Raises:
        CheckpointError: there are to be many more experts, stored one by one, than tensors.
    """
    apart = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, Experts | Fp8Experts) and fp8.one_by_one(path, stored)
    }
    asked = sum(_SHARES * len(experts.down) for experts in apart.values())
    if asked > 2 * len(stored):  # to name all that are missing would fill the memory
        raise CheckpointError(
            f"config.json asks for {asked:,} weights of experts, and {len(stored):,} tensors are "
            "stored; check that both come from the same checkpoint"
        )
    found: dict[str, Slot] = {}
    for path, module in model.named_modules():
        if path in apart:
            found |= _parts(path, apart[path])
            continue
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            found[f"{path}.{name}" if path else name] = Slot(module, name, tensor)
    return found


def _parts(path: str, experts: Experts | Fp8Experts) -> dict[str, Slot]:
    count, _, hidden = experts.down.shape
    shares = {
        "gate": ("gate_up", slice(0, hidden)),
        "up": ("gate_up", slice(hidden, 2 * hidden)),
        "down": ("down", slice(None)),
    }
    found: dict[str, Slot] = {}
    for expert in range(count):
        for part, (name, rows) in shares.items():
            found[f"{path}.{expert}.{part}"] = Part(experts, name, expert, rows)
            if isinstance(experts, Fp8Experts):
                scale = Part(experts, f"{name}_scale", expert, rows)
                found[f"{path}.{expert}.{part}_scale"] = scale
    return found
