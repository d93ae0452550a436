"""What a GPU with Triton runs on, for tensors of a CPU and kernels that are interpreted."""

import dataclasses

import torch

from diffusiongemma.kernels import ops
from diffusiongemma.model.trunk import FUSED, Choice

CPU = torch.device("cpu")


def interpreted() -> Choice:
    """The table and the trunk."""
    usual = ops._gpu(CPU, torch.bfloat16, False, "interpreted")
    table = dataclasses.replace(ops.triton_ops(CPU, usual, fp8=True), captured=False)
    return Choice(ops=table, trunk=FUSED, fact=table.facts["attention"])
