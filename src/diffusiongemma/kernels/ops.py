"""The table of ops: for each, the function that runs it here, and why. Chosen once for a network.

An op takes tensors and gives tensors; contract, reference and twins of each stand side by side in
its own file. The functions of a table call those of the same table, and ask for nothing: not where
a tensor lies, nor whether gradients are wanted, nor whether Triton is there. That is asked here.

    reference   any device, safe for autograd, the formulas as they are written
    cpu         twins that write in place and into buffers
    gpu         torch's library; nothing looks at the host where that can be, so it can be captured
    triton      bfloat16 and FP8 on NVIDIA GPUs, with kernels of our own

Whoever wants gradients takes `gradients`, the table that training uses.
"""

import functools
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusiongemma.core.errors import OptionError
from diffusiongemma.core.letters import brief, reason
from diffusiongemma.core.log import logger
from diffusiongemma.kernels import experts as routing
from diffusiongemma.kernels import gated as activation
from diffusiongemma.kernels import linear as products
from diffusiongemma.kernels import norm_rope as norms
from diffusiongemma.kernels import philox, quantised
from diffusiongemma.kernels import readout as reading
from diffusiongemma.kernels import refine as refining
from diffusiongemma.kernels import slots as buffers
from diffusiongemma.kernels.experts_fp8 import GROUP
from diffusiongemma.kernels.native import build
from diffusiongemma.kernels.quantised_experts import experts_fp8

SWITCH = "DIFFUSIONGEMMA_KERNELS"
"""The environment's say, where a network's own is `auto`."""
KERNELS = ("auto", "reference")
"""What may be asked for: the fastest there is, or the formulas as they are written."""
REFERENCE_NAME, CPU, GPU, TRITON = "reference", "cpu", "gpu", "triton"

Op = Callable[..., Any]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """What runs something, and what may be relied on.

    Attributes:
        backend: whose code.
        reason: why, or how.
        batch_invariant: whether a row's bits are the same, whichever rows are beside it.
        cut_invariant: whether a token's bits are the same, wherever its prompt is cut.
    """

    backend: str
    reason: str
    batch_invariant: bool
    cut_invariant: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ops:
    """Functions that belong together. Each is described in the file of its name.

    Attributes:
        name: `reference`, `cpu`, `gpu` or `triton`.
        captured: whether a step can be captured as a graph: nothing of it looks at the host.
        facts: of each op.
        training: the table to use under gradients; None: this one.
    """

    name: str
    linear: Op = products.linear
    linears: Op = products.linears
    rms_norm: Op = norms.rms_norm
    rms_norms: Op = norms.rms_norms
    turned: Op = norms.turned
    norm_rope: Op = norms.norm_rope
    gated: Op = activation.gated
    experts: Op = routing.experts
    fp8_product: Op = quantised.product
    experts_fp8: Op = experts_fp8
    readout: Op = reading.readout
    draws: Op = philox.draws
    refine: Op = refining.refine
    attend_canvas: Op = buffers.attend_canvas
    attend_causal: Op = buffers.attend_causal
    captured: bool = False
    facts: Mapping[str, Fact] = field(default_factory=dict)
    training: "Ops | None" = None

    @property
    def gradients(self) -> "Ops":
        """The table for autograd to follow."""
        return self.training or self


def choose(
    device: torch.device,
    dtype: torch.dtype,
    kernels: str = "auto",
    *,
    fp8: bool = False,
    compiled: bool | None = None,
) -> Ops:
    """The table for a network.

    Args:
        device: where its weights are.
        dtype: the format of its residual stream.
        kernels: one of `KERNELS`.
        fp8: whether some of its weights are in e4m3.
        compiled: whether the CPU's own code may be used; None makes it if need be (seconds, once).

    Raises:
        OptionError: `kernels` or the environment asks for something else.
    """
    why = reference_asked(kernels)
    if why is None and device.type == "cpu" and compiled is None:
        compiled = build.library() is not None
    return _chosen(device, dtype, why, fp8, bool(compiled))


def reference_asked(kernels: str) -> str | None:
    """Who asks for the reference, as a sentence; None if nobody does.

    Raises:
        OptionError: `kernels` or the environment asks for something else.
    """
    said = os.environ.get(SWITCH, "") or "auto"
    if kernels not in KERNELS:
        raise OptionError(f"kernels must be 'auto' or 'reference', got {brief(kernels)}")
    if said not in KERNELS:
        raise OptionError(f"{SWITCH} must be 'auto' or 'reference' or not be set, got '{said}'")
    if kernels == "reference":
        return "kernels is 'reference'"
    return f"{SWITCH} is 'reference'" if said == "reference" else None


@functools.lru_cache
def _chosen(
    device: torch.device, dtype: torch.dtype, why: str | None, fp8: bool, compiled: bool
) -> Ops:
    found = _table(device, dtype, why, fp8, compiled)
    if fp8:
        return found
    facts = {name: fact for name, fact in found.facts.items() if "fp8" not in name}
    return replace(found, facts=facts)


def _table(
    device: torch.device, dtype: torch.dtype, why: str | None, fp8: bool, compiled: bool
) -> Ops:
    local = device.type == "cpu"
    plain = Ops(name=REFERENCE_NAME, facts=_reference_facts(why or "autograd can follow", local))
    if why is not None:
        return plain
    if local:
        return _cpu(compiled, plain)
    if dtype != torch.bfloat16:
        why = no_triton(device) or "its kernels are for bfloat16 and FP8"
        return _gpu(device, dtype, fp8, why)
    if (why := no_triton(device)) is not None:
        return _gpu(device, dtype, fp8, why)
    usual = _gpu(device, dtype, fp8, "autograd cannot follow its kernels")
    return attempt(
        device,
        lambda: triton_ops(device, usual, fp8),
        lambda: _gpu(device, dtype, fp8, _broken[device]),
    )


def _cpu(compiled: bool, plain: Ops) -> Ops:
    turned = norms.turned_in_place
    norm = norms.rms_norm_at_once
    return Ops(
        name=CPU,
        linears=products.joined_linears,
        rms_norm=norm,
        rms_norms=partial(norms.rms_norms, norm=norm),
        turned=turned,
        norm_rope=partial(norms.norm_rope, norm=norm, turned=turned),
        gated=activation.gated_by_shares,
        experts=routing.sorted_experts,
        experts_fp8=partial(experts_fp8, gated=activation.gated_by_shares),
        readout=reading.readout_compiled if compiled else reading.readout_by_shares,
        draws=philox.draws_of_numpy,
        facts=_cpu_facts(compiled),
        training=plain,
    )


def _gpu(device: torch.device, dtype: torch.dtype, fp8: bool, why: str) -> Ops:
    """torch's library, for inference without Triton and for training."""
    wide = dtype == torch.float32
    norm = norms.rms_norm_at_once
    eight = fp8 and device.type == "cuda" and quantised.multiplies(device.index or 0)
    routed = partial(routing.experts, linear=F.linear)
    if wide:
        routed = routing.blocked_if_few
    elif dtype == torch.bfloat16 and device.type == "cuda":
        routed = routing.grouped
    return Ops(
        name=GPU,
        linear=F.linear,
        linears=partial(products.linears, linear=F.linear),
        rms_norm=norm if wide else norms.rms_norm,
        rms_norms=partial(norms.rms_norms, norm=norm),
        norm_rope=partial(norms.norm_rope, norm=norm),
        gated=activation.gated_at_once if wide else activation.gated,
        experts=routed,
        fp8_product=quantised.scaled_product if eight else quantised.widened_product,
        experts_fp8=partial(
            experts_fp8, linear=F.linear, gated=activation.gated_at_once, widen=Tensor.float
        ),
        readout=partial(reading.readout, linear=F.linear),
        attend_canvas=buffers.masked_canvas,
        attend_causal=buffers.masked_causal,
        captured=dtype == torch.bfloat16 and device.type == "cuda" and not fp8,
        facts=_gpu_facts(why),
    )


def triton_ops(device: torch.device, usual: Ops, fp8: bool = False) -> Ops:
    """Our own kernels, and `usual` for the rest and where one of them cannot be made.

    Args:
        device: a GPU; a CPU if Triton interprets.
        usual: the table without them, in bfloat16.
        fp8: whether some weights are in e4m3.
    """
    from diffusiongemma.kernels.triton import attention, vocabulary
    from diffusiongemma.kernels.triton import experts as own
    from diffusiongemma.kernels.triton import experts_fp8 as eight
    from diffusiongemma.kernels.triton import refine as small

    local = device.type == "cpu"
    capable = local or not fp8 or torch.cuda.get_device_capability(device) >= quantised.CAPABILITY

    def whole_groups(*given: Tensor) -> Tensor:
        fits = given[5].shape[2] % GROUP == 0
        return (eight.experts_fp8 if fits else usual.experts_fp8)(*given)

    def refined(*given: Tensor) -> Any:
        fits = given[0].shape[1] <= small.WIDEST
        return (small.refine if fits else usual.refine)(*given)

    def causal(*given: Any) -> Tensor:
        return attention.attend_causal(*given[:6])  # where index 0 stands changes nothing

    return replace(
        usual,
        name=TRITON,
        experts=_tried(device, own.experts, usual.experts),
        experts_fp8=_tried(device, whole_groups, usual.experts_fp8)
        if capable
        else usual.experts_fp8,
        readout=_tried(device, vocabulary.readout, usual.readout),
        draws=_tried(device, small.draws, usual.draws),
        refine=_tried(device, refined, usual.refine),
        attend_canvas=attention.attend_canvas,
        attend_causal=causal,
        captured=device.type == "cuda",
        facts=_triton_facts(usual.facts),
        training=usual,
    )


@functools.lru_cache
def no_triton(device: torch.device) -> str | None:
    """Why the Triton kernels are not used on a device; None if they are. Asked once, then known."""
    if device.type != "cuda":
        return "they are for NVIDIA GPUs"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"this GPU's capability is {major}.{minor}, and they need 8.0"
    return _broken.get(device)


_broken: dict[torch.device, str] = {}


def give_up(device: torch.device, why: str) -> None:
    """Use the Triton kernels on this device no more: one of them could not be built or started."""
    _broken[device] = why
    no_triton.cache_clear()
    _chosen.cache_clear()
    logger.warning("the Triton kernels do not run here (%s); the plain ones are used", why)


def attempt(
    device: torch.device, quick: Callable[[], Result], plain: Callable[[], Result]
) -> Result:
    """What Triton's kernels give; what plain code does, from now on, if one cannot be built or
    started.

    Args:
        device: whose kernels are in question.
        quick: must leave nothing changed when it fails.
        plain: the same work.
    """
    try:
        return quick()
    except Exception as error:
        # Whatever a kernel's compiler may raise. Too little memory is another matter.
        if isinstance(error, torch.OutOfMemoryError) or no_triton(device) is not None:
            raise
        logger.debug("", exc_info=True)
        give_up(device, reason(error))
        return plain()


def _tried(device: torch.device, quick: Op, usual: Op) -> Op:
    """An op of Triton's, for as long as it can be made."""

    def op(*given: Any, **named: Any) -> Any:
        if device in _broken:  # a pass that has begun goes on with the table that it has
            return usual(*given, **named)
        return attempt(device, lambda: quick(*given, **named), lambda: usual(*given, **named))

    return op


def _fact(backend: str, reason: str, batch: bool, cut: bool | None = None) -> Fact:
    """What depends on a row alone does not depend on where a prompt is cut, either."""
    cut = batch if cut is None else cut
    return Fact(backend=backend, reason=reason, batch_invariant=batch, cut_invariant=cut)


def _reference_facts(why: str, local: bool) -> dict[str, Fact]:
    """The formulas keep their promises where they are tested, on a CPU."""
    names = ("attention", "experts", "experts_fp8", "fp8_product", "gated", "linear", "norm_rope")
    return {name: _fact("reference", why, local) for name in (*names, "readout")} | _steps(why)


def _steps(why: str, backend: str = "reference") -> dict[str, Fact]:
    """Random numbers follow from their places, and decisions from a row's own entropies."""
    return {name: _fact(backend, why, True) for name in ("draws", "refine")}


def _cpu_facts(compiled: bool) -> dict[str, Fact]:
    own = "small vocabularies in one call, large ones by positions"
    return {
        "attention": _fact("torch", "texts in tiles at absolute places", True),
        "experts": _fact("torch", "tokens sorted by expert, into one buffer", True),
        "experts_fp8": _fact("torch", "numbers widened to float32, exactly", True),
        "fp8_product": _fact("torch", "numbers widened to float32, exactly", True),
        "draws": _fact("numpy", "its calls are smaller than torch's", True),
        "refine": _fact("reference", "a few calls of torch", True),
        "gated": _fact("torch", "F.gelu on whole vectors, else the formula", True),
        "linear": _fact("torch", "rows padded to multiples of four", True),
        "norm_rope": _fact("torch", "rms_norm in one call, turned in place", True),
        "readout": _fact("C and torch", own, True)
        if compiled
        else _fact("torch", "some positions at a time, in a core's cache", True),
    }


def _gpu_facts(why: str) -> dict[str, Fact]:
    """Libraries choose their kernels by shape, and promise nothing; what goes element by element
    has no neighbour.
    """
    said = f"no Triton: {why}"
    library = ("attention", "experts", "experts_fp8", "fp8_product", "linear")
    facts = {name: _fact("torch", said, False) for name in library}
    facts |= {name: _fact("reference", said, False) for name in ("norm_rope", "readout")}
    return facts | {"gated": _fact("reference", said, True)} | _steps(said)


def _triton_facts(usual: Mapping[str, Fact]) -> dict[str, Fact]:
    """A row's bits are its own in each kernel; keys are shared out by how many there are."""
    ours = {
        "attention": _fact("Triton", "straight from the buffers of keys and values", True, False),
        "experts": _fact("Triton", "weights read once, tokens gathered", True),
        "experts_fp8": _fact("Triton", "the same in e4m3", True),
        "readout": _fact("Triton", "two passes over logits of torch's product", False),
    } | _steps("one launch each", "Triton")
    rest = {name: replace(fact, reason="no kernel of its own") for name, fact in usual.items()}
    return rest | ours
