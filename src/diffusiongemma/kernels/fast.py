"""Which twin of an op runs: the plain one, the one that is fast on a CPU, or a GPU's.

Fast twins write in place and into buffers, so autograd cannot follow them: they are for inference.
"""

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from diffusiongemma.core.errors import OptionError
from diffusiongemma.core.letters import reason
from diffusiongemma.core.log import logger

SWITCH = "DIFFUSIONGEMMA_KERNELS"
"""The environment's say: `plain` has no kernel of our own run, on a GPU or a CPU."""

Result = TypeVar("Result")
CHUNK = 1 << 16
"""Elements of a float32 scratch that a twin works on at a time: a quarter megabyte, so that the
scratch stays in a core's own cache and the allocator never has to ask the system for its pages."""


def fast(x: Tensor) -> bool:
    """Whether the CPU's twin may run on x."""
    return x.device.type == "cpu" and not torch.is_grad_enabled()


def triton(x: Tensor) -> bool:
    """Whether a GPU's twin, written in Triton, may run on x."""
    return x.is_cuda and not torch.is_grad_enabled() and no_triton(x.device) is None


def plain_asked() -> bool:
    """Whether the environment asks for the plain twins."""
    asked = os.environ.get(SWITCH, "")
    if asked not in ("", "plain"):
        raise OptionError(f"{SWITCH} must be 'plain' or not be set, got '{asked}'")
    return bool(asked)


@functools.lru_cache
def no_triton(device: torch.device) -> str | None:
    """Why the Triton twins are not used on a device; None if they are. Asked once, then known."""
    if plain_asked():
        return f"{SWITCH} is 'plain'"
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
    """Use the Triton twins on this device no more: one of them could not be built or started."""
    _broken[device] = why
    no_triton.cache_clear()
    logger.warning("the Triton kernels do not run here (%s); the plain ones are used", why)


def attempt(
    device: torch.device, quick: Callable[[], Result], plain: Callable[[], Result]
) -> Result:
    """A Triton twin's result; the plain one's, from now on, if the twin cannot be built or started.

    Args:
        device: whose twins are in question.
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
