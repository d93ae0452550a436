"""Facts about this machine: processor, memory, GPUs, libraries, kernels, the hub's cache.

Each function gives a dictionary for JSON: names are identifiers, values numbers, yes or no, or
sentences; numbers of bytes are under names in `_bytes`. Nothing is written, fetched or changed.
"""

import contextlib
import importlib.util
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusiongemma import __version__

if TYPE_CHECKING:  # its room loads torch
    from diffusiongemma.model.config import ModelConfig

RELEASED = "google/diffusiongemma-26B-A4B-it"
RELEASED_BYTES = 52_000_000_000  # its weights in bfloat16
SPARE_BYTES = 3_000_000_000  # for the context and what is computed on the way

Facts = dict[str, Any]


def software() -> Facts:
    """Versions."""
    import torch

    triton = importlib.util.find_spec("triton") is not None
    return {
        "diffusiongemma": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": "found" if triton else "not found; it is optional, and only for GPUs",
        "system": platform.platform(terse=True),
    }


def processor() -> Facts:
    """The CPU and the memory beside it."""
    import torch

    about = _cpuinfo()
    fast = sorted({"avx512_bf16", "amx_bf16", "bf16", "avx_ne_convert"} & set(about["flags"]))
    total, free = memory()
    return {
        "name": about["name"],
        "threads": f"{torch.get_num_threads()} used by torch, {_threads()} usable",
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": f"in hardware ({', '.join(fast)})"
        if fast
        else "works, but by way of float32, and slowly",
        "memory_bytes": total,
        "free_bytes": free,
    }


def gpus() -> Facts:
    """CUDA devices, or why there is none."""
    import torch

    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            return {"none": "this torch is built without CUDA"}
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = "torch sees no NVIDIA driver or GPU"
        return {"none": why if hidden is None else f"{why}; CUDA_VISIBLE_DEVICES is '{hidden}'"}
    found: Facts = {"cuda": f"built for {torch.version.cuda}"}
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = {
            "name": about.name,
            "capability": f"{about.major}.{about.minor}",
            "bfloat16": "in hardware" if about.major >= 8 else "emulated, slowly",
            "memory_bytes": about.total_memory,
        }
    return found


def kernels(config: "ModelConfig") -> Facts:
    """What a network would run on where it would be put, and why: its table of ops and its trunk.

    Nothing is compiled for it; what would be is taken to come out well.
    """
    from diffusiongemma.core.device import choose as place
    from diffusiongemma.model.trunk import choose

    where = place(None, None, config.dtype)
    choice = choose(config, where.device, where.dtype, make=False)
    runs = {"trunk": choice.fact, **choice.ops.facts}
    return {
        "device": str(where.device),
        "table": choice.ops.name,
        "trunk": choice.trunk,
        "ops": {name: asdict(fact) for name, fact in runs.items()},
    }


def fit(needed: int, found: Facts) -> Facts:
    """Whether weights of so many bytes fit, on each GPU and in the memory beside the CPU.

    Args:
        needed: bytes of the weights.
        found: what `gpus` gave.
    """
    alone = "this version keeps all weights on one GPU"
    disk = "the rest would be read from disk at every step"
    said: Facts = {"needs_bytes": needed}
    for name, about in found.items():
        if isinstance(about, dict):
            said[name] = _fits(needed, about["memory_bytes"], alone)
    total, _ = memory()
    said["cpu"] = "unknown: no memory size" if total is None else _fits(needed, total, disk)
    return said


def templates() -> Facts:
    """Where the chat templates of checkpoints are rendered, and which limits hold there."""
    from diffusiongemma.dialog.cage import place

    return {"rendered": place()}


def hub() -> Facts:
    """What would be fetched from where, and where it is kept."""
    import huggingface_hub
    from huggingface_hub import constants

    token = huggingface_hub.get_token() is not None
    cache = Path(constants.HF_HUB_CACHE)
    return {
        "address": constants.ENDPOINT,
        "token": "found" if token else "none; gated models need one: `hf auth login`",
        "cache": f"{cache}" if cache.is_dir() else f"{cache} (not made yet)",
        "network": "off: HF_HUB_OFFLINE is set"
        if constants.HF_HUB_OFFLINE
        else "used for a hub id, never for a folder",
    }


def memory() -> tuple[int | None, int | None]:
    """Bytes of memory this process may have in all, and those now free; None where unknown."""
    total = free = None
    with contextlib.suppress(AttributeError, OSError, ValueError):  # not on every system
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    # A container may have less than its machine.
    for text in _lines("/sys/fs/cgroup/memory.max"):
        if text.strip().isdigit() and total is not None:
            total = min(total, int(text))
    return total, free if free is None or total is None else min(free, total)


def _fits(needed: int, there: int, otherwise: str) -> str:
    if there >= needed + SPARE_BYTES:
        return f"fits in {there / 1e9:.1f} GB"
    return f"does not fit in {there / 1e9:.1f} GB; {otherwise}"


def _cpuinfo() -> Facts:
    name, flags = platform.processor() or platform.machine(), ""
    for line in _lines("/proc/cpuinfo"):
        key, _, value = line.partition(":")
        match key.strip():
            case "model name":
                name = value.strip()
            case "flags" | "Features":
                flags = value
    return {"name": name, "flags": flags.split()}


def _threads() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
