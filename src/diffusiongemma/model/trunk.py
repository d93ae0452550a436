"""Which way tokens go through the layers, chosen beside the table of ops.

    modules   layer by layer as `block` is written, with the ops of the table
    native    a small network on a CPU: all layers in one call, compiled for this machine
    fused     a GPU with Triton: the same layers, cut into kernels at other places

This is the model's one place that asks whether gradients are wanted: they take the modules, and
the table that training uses.
"""

from dataclasses import dataclass
from typing import Any

import torch

from diffusiongemma.kernels import ops
from diffusiongemma.kernels.native import build
from diffusiongemma.kernels.ops import Fact, Ops
from diffusiongemma.model import native
from diffusiongemma.model.config import ModelConfig

MODULES, NATIVE, FUSED = "modules", "native", "fused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a network runs on.

    Attributes:
        ops: the table.
        trunk: `modules`, `native` or `fused`.
        fact: of the trunk: its backend and the reason.
        gradients: whether autograd may be following.
    """

    ops: Ops
    trunk: str
    fact: Fact
    gradients: bool = False


def choose(
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    kernels: str = "auto",
    *,
    make: bool = True,
) -> Choice:
    """The table and the trunk for inference.

    Args:
        config: of the network.
        device: where its weights are.
        dtype: the format of its residual stream.
        kernels: see `ops.choose`.
        make: whether the CPU's own code may be compiled now, if need be; if not, it is taken to
            come out well.

    Raises:
        OptionError: `kernels` or the environment asks for what does not exist.
    """
    asked, missing = ops.reference_asked(kernels), None
    if asked is None and device.type == "cpu":
        missing = build.reason() if make else build.obstacle()
    table = ops.choose(device, dtype, kernels, fp8=config.fp8, compiled=missing is None)
    if table.name == ops.TRITON:
        fact = Fact(
            backend="Triton", reason="bfloat16 or FP8 on a GPU; texts without images, and steps",
            batch_invariant=False, cut_invariant=False,
        )  # fmt: skip
        return Choice(ops=table, trunk=FUSED, fact=fact)
    if table.name == ops.CPU:
        missing = missing or native.why_not(config, dtype, make=make)
    if table.name == ops.CPU and missing is None:
        whose = "a pass" if config.vision is None else "a step, as prompts may have images,"
        why = f"{whose} in one call, compiled for this processor at first use"
        fact = Fact(backend="C", reason=why, batch_invariant=True, cut_invariant=True)
        return Choice(ops=table, trunk=NATIVE, fact=fact)
    return _modules(table, asked or missing or table.facts["linear"].reason)


def _modules(table: Ops, why: str, *, gradients: bool = False) -> Choice:
    """Layer by layer; what the table promises of all its ops, it promises of them together."""
    facts = table.facts.values()
    fact = Fact(
        backend="torch",
        reason=why,
        batch_invariant=all(one.batch_invariant for one in facts),
        cut_invariant=all(one.cut_invariant for one in facts),
    )
    return Choice(ops=table, trunk=MODULES, fact=fact, gradients=gradients)


class Chooser:
    """A network's choice, kept until something that decides it is another; and what its trunk
    remembers from call to call.
    """

    def __init__(self) -> None:
        self._kept: dict[bool, tuple[Any, Choice]] = {}
        self.native: native.Native | None = None

    def __reduce__(self) -> tuple[type["Chooser"], tuple[()]]:
        """A copy of a network remembers nothing: addresses are of the first."""
        return Chooser, ()

    def __call__(
        self,
        config: ModelConfig,
        device: torch.device,
        dtype: torch.dtype,
        kernels: str,
        *,
        gradients: bool = False,
    ) -> Choice:
        """What inference runs on with these, or training.

        Raises:
            OptionError: `kernels` or the environment asks for what does not exist.
        """
        asked = ops.reference_asked(kernels)
        if device.type != "cpu":
            there = ops.no_triton(device)
        elif gradients or asked is not None:
            there = None
        else:
            there = (build.library(), torch.get_num_threads(), native.threads())
        key = (config, device, dtype, asked, there)
        kept = self._kept.get(gradients)
        if kept is None or kept[0] != key:
            if gradients:
                table = ops.choose(device, dtype, kernels, fp8=config.fp8, compiled=False)
                made = _modules(table.gradients, "autograd follows", gradients=True)
            else:
                made = choose(config, device, dtype, kernels)
                self.native = None  # it may hold weights that are no longer there
            kept = self._kept[gradients] = key, made
        return kept[1]

    def now(
        self, config: ModelConfig, device: torch.device, dtype: torch.dtype, kernels: str
    ) -> Choice:
        """What a call made now runs on."""
        return self(config, device, dtype, kernels, gradients=torch.is_grad_enabled())
