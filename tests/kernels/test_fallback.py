"""Without Triton, with an old GPU, or when a kernel cannot be built, the plain code runs."""

import dataclasses
import importlib.util
import logging

import pytest
import torch

from diffusiongemma.cli.whole import network, parts
from diffusiongemma.engine import graphs
from diffusiongemma.kernels import experts, fast, slots
from diffusiongemma.kernels.ops import backends

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fast, "_broken", {})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    fast.no_triton.cache_clear()
    yield
    fast.no_triton.cache_clear()


def test_a_gpu_of_this_decade_runs_them() -> None:
    assert fast.no_triton(GPU) is None
    assert backends(GPU)["experts"] == "Triton"


def test_why_not_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fast.no_triton(torch.device("cpu")) == "they are for NVIDIA GPUs"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert backends(GPU)["triton"] == ("not used: this GPU's capability is 7.5, and they need 8.0")
    assert backends(GPU)["experts"] == "the reference"


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert fast.no_triton(GPU) == "triton is not installed"


def test_they_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSIONGEMMA_KERNELS", "plain")
    assert fast.no_triton(GPU) == "DIFFUSIONGEMMA_KERNELS is 'plain'"


def test_a_broken_kernel_is_given_up_and_the_step_is_made_plainly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a kernel wants more shared memory than a GPU has: nothing of the try is left."""
    model = network.made(network.TOY, torch.device("cpu"), torch.bfloat16)
    steps = parts.opened(model, 1, 40, 64, 4)
    before = [one.clone() for one in steps._state()]
    tries: list[bool] = []

    def work() -> None:
        steps.drafts.canvas_BL.fill_(3)
        tries.append(True)
        if fast.no_triton(GPU) is None:
            raise RuntimeError("out of resource: shared memory\nmore lines")

    monkeypatch.setattr(type(model), "device", property(lambda self: GPU))
    with caplog.at_level(logging.WARNING, logger="diffusiongemma"):
        steps._tried(work, before)
    assert fast.no_triton(GPU) == "RuntimeError: out of resource: shared memory"
    assert "the plain ones are used" in caplog.text and len(caplog.records) == 1
    assert len(tries) == graphs._WARM + 1
    for one, was in zip(steps._state(), before, strict=True):
        assert torch.equal(one, was)


def test_what_fails_without_them_too_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network.made(network.TOY, torch.device("cpu"), torch.bfloat16)
    steps = parts.opened(model, 1, 40, 64, 4)

    def work() -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        steps._tried(work, [one.clone() for one in steps._state()])


@torch.no_grad()
def test_grouped_experts_are_the_references() -> None:
    """What a GPU without Triton runs; torch has it for CPUs too."""
    data_config = dataclasses.replace(network.TOY, canvas_length=40)
    from diffusiongemma.cli.whole.twins import Data

    data = Data(data_config, torch.device("cpu"))
    expert_SG, share_SG = data.routes()
    expert_SG = expert_SG.masked_fill(expert_SG == 5, 6)  # nobody goes to expert 5
    given = (data.tokens(), expert_SG, share_SG, *data.experts())
    torch.testing.assert_close(
        experts.grouped(*given), experts.plain(*given), rtol=2**-7, atol=2**-7
    )


@torch.no_grad()
def test_masked_attention_is_the_references() -> None:
    """What a GPU without Triton runs, against exactly each row's keys."""
    dice = torch.Generator().manual_seed(0)
    q = torch.randn(2, 8, 4, 16, generator=dice)
    k, v = (torch.randn(2, 2, 50, 16, generator=dice) for _ in "kv")
    first_B, end_B = torch.tensor([11, 0]), torch.tensor([37, 8])
    index = torch.arange(50)
    seen = (index >= first_B[:, None]) & (index < end_B[:, None])
    plain = slots.attend_canvas(q, k, v, first_B, end_B)
    torch.testing.assert_close(slots.masked(q, k, v, seen[:, None]), plain)
    own = end_B[:, None] - 8 + torch.arange(8)
    causal = (index <= own[..., None]) & (index > own[..., None] - 5)
    plain = slots.attend_causal(q, k, v, torch.zeros_like(first_B), end_B, 5, first_B)
    torch.testing.assert_close(slots.masked(q, k, v, causal), plain)
