"""Which device and number format a model gets, and why.

Nothing is asked of the machine when this module is imported. The answer carries its reason as
text, because people look for it when a run is slow.
"""

import os
from dataclasses import dataclass

import torch

from diffusiongemma.core.errors import DeviceError, unknown_name

_SMALL = 10_000_000  # parameters
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Device:
    """A place to compute.

    Attributes:
        device: for example `cuda:0` or `cpu`.
        dtype: the format of weights and activations.
        reason: one line that says why these two.
    """

    device: torch.device
    dtype: torch.dtype
    reason: str


def choose(
    device: str | torch.device | None, dtype: str | torch.dtype | None, stored: str
) -> Device:
    """Settle where and in which format to compute.

    Args:
        device: what the user asked for, or None for the best this machine has.
        dtype: the format the user asked for, or None for the one the checkpoint is stored in.
        stored: the checkpoint's own format, by name.

    Raises:
        DeviceError: the device is not there, or the format is none of `DTYPES`.
    """
    place, why = _device(device)
    name = str(dtype or stored).removeprefix("torch.")
    if name not in DTYPES:
        raise DeviceError(unknown_name("dtype", name, DTYPES))
    source = "asked for" if dtype else "as the checkpoint stores it"
    return Device(place, DTYPES[name], f"{place}: {why}; {name}: {source}")


def on_host(x: torch.Tensor) -> bool:
    """Whether a look at a tensor's values waits for no device."""
    return x.device.type == "cpu"


def settle_threads(device: torch.device, parameters: int) -> None:
    """Compute a small network on a CPU with one thread, unless OMP_NUM_THREADS says otherwise.

    For programs, before their first answer: a step of such a network is a thousand short calls, and
    threads that wait for each other at each of them took 19 ms for what one did in 7 (2 cores).
    """
    if device.type == "cpu" and parameters < _SMALL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def _device(asked: str | torch.device | None) -> tuple[torch.device, str]:
    if asked is None:
        if torch.cuda.is_available():
            return torch.device("cuda:0"), f"found {torch.cuda.get_device_name(0)}"
        return torch.device("cpu"), "no CUDA device found"
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise DeviceError(f"unknown device '{asked}'; use cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return torch.device("cpu"), "asked for"
    if device.type != "cuda":
        raise DeviceError(f"device '{asked}' is not supported; use cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise DeviceError(f"device '{asked}' was asked for, but torch sees no CUDA device; use cpu")
    index = device.index or 0
    if index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise DeviceError(f"device '{asked}' was asked for, but torch sees {count} CUDA device(s)")
    return torch.device("cuda", index), f"asked for {torch.cuda.get_device_name(index)}"
