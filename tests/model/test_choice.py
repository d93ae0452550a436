"""The table and the trunk of a network: kept, and made anew when what decides them is another."""

import copy
import dataclasses

import pytest
import torch

import diffusiongemma as dg
from diffusiongemma.core.errors import OptionError
from diffusiongemma.kernels.native import build
from diffusiongemma.model.config import LayerConfig, ModelConfig
from diffusiongemma.model.init import initialise
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.model.trunk import choose
from diffusiongemma.quant.apply import quantise

LAYER = LayerConfig(sliding=True, head_dim=16, num_key_value_heads=2)
TOY = ModelConfig(
    vocab_size=97, hidden_size=48, intermediate_size=80, layers=(LAYER,), num_attention_heads=4,
    sliding_window=12, num_experts=5, top_k_experts=3, moe_intermediate_size=16,
    max_position_embeddings=700, canvas_length=8, dtype="float32",
)  # fmt: skip


@pytest.fixture
def model() -> DiffusionGemma:
    return initialise(DiffusionGemma(TOY), seed=1).requires_grad_(False)


def test_a_choice_is_kept_until_something_else_decides(model: DiffusionGemma) -> None:
    choice = model.choice
    assert choice.ops.name == "cpu" and model.choice is choice and model.ops is choice.ops
    assert copy.deepcopy(model).choice == choice
    seen = [choice]
    for change in (
        lambda: model.to(torch.bfloat16),
        lambda: setattr(model, "kernels", "reference"),
        lambda: setattr(model, "kernels", "auto"),
        lambda: quantise(model),
        lambda: model.to("meta"),
    ):
        change()
        now = model.choice
        assert now is model.choice and now is not seen[-1]
        seen.append(now)
    assert [one.ops.name for one in seen] == ["cpu", "cpu", "reference", "cpu", "cpu", "gpu"]
    trunk = "native" if build.library() is not None else "modules"
    usual = [trunk, trunk, "modules", trunk, "modules", "modules"]
    assert [one.trunk for one in seen] == usual
    assert "FP8" in seen[4].fact.reason or build.library() is None


def test_gradients_choose_what_autograd_can_follow(model: DiffusionGemma) -> None:
    now = model.running
    assert now.gradients and (now.trunk, now.ops.name) == ("modules", "reference")
    assert model.running is now and model.choice is not now and model.ops.name == "cpu"
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert model.running is model.choice


@pytest.mark.usefixtures("plain")
def test_without_the_library_the_modules_run(model: DiffusionGemma) -> None:
    choice = model.choice
    assert (choice.trunk, choice.ops.name) == ("modules", "cpu")
    assert choice.fact.reason == "off in this test"
    assert choice.fact.batch_invariant and choice.fact.cut_invariant


def test_why_a_network_is_not_for_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    if build.library() is None:
        pytest.skip(f"no library: {build.reason()}")
    cpu = torch.device("cpu")
    odd = dataclasses.replace(TOY, hidden_size=40)
    for config, dtype, why in (
        (odd, torch.float32, "widths must be multiples of 16, up to 1024"),
        (TOY, torch.float16, "it knows float32 and bfloat16, not torch.float16"),
        (dataclasses.replace(TOY, fp8=True), torch.bfloat16, "not FP8"),
    ):
        choice = choose(config, cpu, dtype)
        assert choice.trunk == "modules" and why in choice.fact.reason
    monkeypatch.setattr("diffusiongemma.model.native.LIMIT", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert "up to 4 threads" in choose(TOY, cpu, torch.float32).fact.reason


def test_load_takes_kernels() -> None:
    usual, plain = dg.load(device="cpu"), dg.load(device="cpu", kernels="reference")
    assert usual.model.kernels == "auto" and usual.model.ops.name == "cpu"
    assert plain.model.kernels == "reference" and plain.model.ops.name == "reference"
    with pytest.raises(OptionError, match="kernels must be 'auto' or 'reference', got 'fast'"):
        dg.load("no such folder", kernels="fast")
