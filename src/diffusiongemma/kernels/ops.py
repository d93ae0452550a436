"""What is fast here: which twin each op runs on a device, and why."""

import torch

from diffusiongemma.kernels.fast import no_triton
from diffusiongemma.kernels.native import build

_CPU = "a faster twin on the CPU, the plain form for training"
_OPS = ("attention", "experts", "gated", "linear", "norm_rope", "readout", "refine", "router")
_TRITON = ("attention", "experts", "norm_rope", "readout", "refine", "router")
_TWINS_ON_CPU = ("experts", "gated", "linear", "norm_rope", "readout")


def backends(device: torch.device) -> dict[str, str]:
    """For each op, the code that runs it for inference in bfloat16; on a GPU also whether Triton's
    kernels are used, and if not, why.
    """
    why = no_triton(device)
    if device.type == "cpu":
        said = _all("the reference")
        said |= dict.fromkeys(_TWINS_ON_CPU, _CPU)
        said |= {"attention": "torch's scaled_dot_product_attention"}
        why = build.obstacle()
        small = "in one call, compiled at first use" if why is None else f"as large ones: {why}"
        return said | {"small_networks": small}
    if why is not None:
        plain = _all("the reference") | {"linear": "torch's library"}
        return {"triton": f"not used: {why}"} | plain
    said = {"triton": "used for bfloat16 and FP8"} | _all("torch's library")
    return said | dict.fromkeys(_TRITON, "Triton")


def _all(by: str) -> dict[str, str]:
    return {**dict.fromkeys(_OPS, by)}
