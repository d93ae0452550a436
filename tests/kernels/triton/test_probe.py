"""The kernel that measures how fast memory is read does read it."""

import torch

from cross_compile import built
from diffusiongemma.kernels.triton import probe


def test_it_reads_everything_once() -> None:
    piece = 4096 * 16
    data = torch.randn(3 * piece, generator=torch.Generator().manual_seed(0))
    sums = probe.read(data)
    torch.testing.assert_close(sums, data.view(3, piece).sum(-1), rtol=1e-4, atol=1e-2)


def test_it_loads_sixteen_bytes_at_a_time_without_spills() -> None:
    kinds = {"data_ptr": "*fp32", "out_ptr": "*fp32"}
    found = built(
        "diffusiongemma.kernels.triton.probe:_read", kinds, {"TURNS": 16, "BLOCK": 4096}, warps=8
    )
    assert found.spills == 0 and found.registers <= 128
