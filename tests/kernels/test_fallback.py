"""Without Triton, with an old GPU, or when a kernel cannot be built, the plain code runs."""

import dataclasses
import importlib.util
import logging

import pytest
import torch

from diffusiongemma.cli.whole import network, parts
from diffusiongemma.core.errors import OptionError
from diffusiongemma.engine import graphs
from diffusiongemma.kernels import experts, ops, slots

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ops, "_broken", {})
    monkeypatch.delenv(ops.SWITCH, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for known in (ops.no_triton, ops._chosen):
        known.cache_clear()
    yield
    for known in (ops.no_triton, ops._chosen):
        known.cache_clear()


def table(dtype: torch.dtype = torch.bfloat16, **more) -> ops.Ops:
    return ops.choose(GPU, dtype, **more)


def test_a_gpu_of_this_decade_runs_them() -> None:
    pytest.importorskip("triton")
    assert ops.no_triton(GPU) is None
    found = table()
    assert found.name == "triton" and found.captured
    assert found.facts["experts"].backend == "Triton"
    assert found.facts["linear"].backend == "torch"


def test_gradients_take_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """What training can be captured with: nothing in it looks at the host."""
    pytest.importorskip("triton")
    under = table().gradients
    assert (under.name, under.experts) == ("gpu", experts.grouped)
    assert table(torch.float32).gradients.experts is experts.blocked_if_few


def test_why_not_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ops.no_triton(torch.device("cpu")) == "they are for NVIDIA GPUs"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    found = table()
    assert found.name == "gpu" and found.captured
    assert found.facts["experts"].reason == (
        "no Triton: this GPU's capability is 7.5, and they need 8.0"
    )
    assert table(torch.float32).facts["experts"].reason.startswith("no Triton: ")


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert ops.no_triton(GPU) == "triton is not installed"
    assert table().name == "gpu"


@pytest.mark.parametrize("device", [GPU, torch.device("cpu")], ids=str)
def test_they_can_be_switched_off(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ops.choose(device, torch.bfloat16, "reference")
    assert found.name == "reference" and not found.captured
    assert found.experts is experts.experts
    assert {one.reason for one in found.facts.values()} == {"kernels is 'reference'"}
    monkeypatch.setenv("DIFFUSIONGEMMA_KERNELS", "reference")
    found = ops.choose(device, torch.bfloat16)
    assert found.name == "reference"
    assert {one.reason for one in found.facts.values()} == {"DIFFUSIONGEMMA_KERNELS is 'reference'"}


def test_what_cannot_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="kernels must be 'auto' or 'reference', got 'plain'"):
        table(kernels="plain")
    monkeypatch.setenv("DIFFUSIONGEMMA_KERNELS", "plain")
    with pytest.raises(OptionError, match="DIFFUSIONGEMMA_KERNELS must be 'auto' or 'reference'"):
        table()


def test_kernels_that_cannot_be_imported_are_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ImportError("a Triton of another time")

    monkeypatch.setattr(ops, "triton_ops", broken)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with caplog.at_level(logging.WARNING, logger="diffusiongemma"):
        found = table()
    assert found.name == "gpu" and table() == found and len(caplog.records) == 1
    why = "no Triton: ImportError: a Triton of another time"
    assert found.facts["experts"].reason == why


def test_a_broken_op_is_given_up_for_the_next_of_the_same_table(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A table that somebody holds goes on without it; the next choice is another table."""
    pytest.importorskip("triton")
    quick, tries = table(), []

    def broken(*_: object) -> None:
        tries.append(True)
        raise RuntimeError("out of resource: shared memory\nmore lines")

    op = ops._tried(GPU, broken, lambda *given: given)
    with caplog.at_level(logging.WARNING, logger="diffusiongemma"):
        assert op(1, 2) == (1, 2) and op(3) == (3,)
    assert len(tries) == 1 and len(caplog.records) == 1
    assert quick.name == "triton" and table().name == "gpu"
    why = "no Triton: RuntimeError: out of resource: shared memory"
    assert table().facts["experts"].reason == why


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
        if ops.no_triton(GPU) is None:
            raise RuntimeError("out of resource: shared memory\nmore lines")

    monkeypatch.setattr(type(model), "device", property(lambda self: GPU))
    with caplog.at_level(logging.WARNING, logger="diffusiongemma"):
        steps._tried(work, before)
    assert ops.no_triton(GPU) == "RuntimeError: out of resource: shared memory"
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
        experts.grouped(*given), experts.experts(*given), rtol=2**-7, atol=2**-7
    )


@torch.no_grad()
def test_masked_attention_is_the_references() -> None:
    """What a GPU without Triton runs, against exactly each row's keys."""
    dice = torch.Generator().manual_seed(0)
    q = torch.randn(2, 8, 4, 16, generator=dice)
    k, v = (torch.randn(2, 2, 50, 16, generator=dice) for _ in "kv")
    first_B, end_B = torch.tensor([11, 0]), torch.tensor([37, 8])
    given = (q, k, v, first_B, end_B)
    torch.testing.assert_close(slots.masked_canvas(*given), slots.attend_canvas(*given))
    for window, origin in ((5, 120), (None, 0)):
        origin_B = torch.tensor([origin, 0])
        given = (q, k, v, torch.zeros_like(first_B), end_B, window, origin_B)
        torch.testing.assert_close(slots.masked_causal(*given), slots.attend_causal(*given))
