"""Which layers are quantised, that they are heard, and what `damage` says of them."""

import weakref
from collections.abc import Iterator

import pytest
import torch

import diffusiongemma as dg
from diffusiongemma.kernels.ops import choose
from diffusiongemma.model.attention import Attention
from diffusiongemma.model.experts import Experts
from diffusiongemma.model.init import initialise
from diffusiongemma.model.layers import FeedForward, Linear, project
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.quant import damage
from diffusiongemma.quant.apply import candidates, quantise, weights
from diffusiongemma.quant.linear import Fp8Experts, Fp8Linear


@pytest.fixture
def plain() -> DiffusionGemma:
    """The small model inside the package."""
    return dg.load(device="cpu").model


@pytest.fixture
def quantised() -> DiffusionGemma:
    """The same in e4m3."""
    return quantise(dg.load(device="cpu").model)


def test_attention_dense_branch_and_experts_and_nothing_else(
    plain: DiffusionGemma, quantised: DiffusionGemma
) -> None:
    before, after = plain.state_dict(), quantised.state_dict()
    eight = {name for name, value in after.items() if value.dtype == torch.float8_e4m3fn}
    assert eight == set(weights(plain))
    parts = {name.split(".", 2)[2] for name in eight}
    assert parts == {
        *(f"attention.{part}.weight" for part in "qkvo"),
        *(f"dense.{part}.weight" for part in ("gate", "up", "down")),
        *("experts.gate_up", "experts.down"),
    }
    for name in before.keys() - eight:
        assert torch.equal(before[name], after[name]), name
    assert not list(candidates(quantised))
    assert quantised.config.fp8 and not plain.config.fp8


def test_full_layers_have_no_value_weights_to_quantise(quantised: DiffusionGemma) -> None:
    kinds = [(block.sliding, block.attention.v is None) for block in quantised.blocks]
    assert all(sliding != absent for sliding, absent in kinds)


def one_of_each(model: DiffusionGemma) -> Iterator[torch.nn.Module]:
    """The layers of a sliding block and of a full one."""
    assert model.blocks[1].sliding and not model.blocks[2].sliding
    for block in model.blocks[1:3]:
        assert isinstance(block.attention, Attention) and isinstance(block.dense, FeedForward)
        yield from block.attention.children()
        yield from block.dense.children()
        yield block.experts


@torch.no_grad()
def test_every_quantised_layer_is_heard(quantised: DiffusionGemma) -> None:
    """A layer that nobody asks, or whose scale nobody reads, would not change what is said."""
    ids, canvas = torch.arange(20, 40)[None], torch.arange(100, 132)[None]

    def said() -> torch.Tensor:
        context = quantised.context()
        quantised.encode(quantised.embed(ids), context)
        return quantised.denoise(canvas, None, context)

    usual, heard = said(), 0
    for module in one_of_each(quantised):
        if not isinstance(module, Fp8Linear | Fp8Experts):
            continue
        for scale in module.buffers():
            kept = scale.clone()
            scale.mul_(1.5)
            assert not torch.equal(said(), usual)
            scale.copy_(kept)
            heard += 1
    assert heard == (4 + 3 + 2) + (3 + 3 + 2)
    assert torch.equal(said(), usual)


@torch.no_grad()
def test_layers_of_two_kinds_side_by_side() -> None:
    """A checkpoint may leave some layers as they were."""
    wide = Linear(64, 32)
    wide.weight.normal_(generator=torch.Generator().manual_seed(1))
    eight = Fp8Linear.of(wide)
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(2))
    ops = choose(torch.device("cpu"), torch.float32)
    one, two, three = project(x, ops, (wide, eight, wide))
    assert torch.equal(one, wide(x, ops)) and torch.equal(two, eight(x, ops))
    assert torch.equal(three, one)
    both = project(x, ops, (eight, eight))
    assert torch.equal(both[0], two) and torch.equal(both[1], two)
    assert 0 < (one - two).abs().mean() < 0.05 * one.abs().mean()


def test_rows_are_what_they_are_alone() -> None:
    gemma = dg.load(device="cpu")
    quantise(gemma.model)
    prompts = ["Reverse: lantern", "Sort: 52 7 30", "What is 3 + 4?"]
    ask = {"max_denoising_steps": 4, "seed": 3}
    together = gemma.generate_many(prompts, **ask)
    for prompt, reply in zip(prompts, together, strict=True):
        assert gemma.generate(prompt, **ask).tokens == reply.tokens


def test_damage_of_nothing_is_none_and_grows_with_what_is_done(plain: DiffusionGemma) -> None:
    config = plain.config
    prompts = [[20, 30, 40, 50], [60, 70]]
    cases = damage.cases(prompts, [[80, 81, 82], [90]], (0.0, 0.5), config, end=9)
    assert [case.counted for case in cases] == [4, 4, 2, 2]
    assert cases[0].canvas_L.tolist() == [80, 81, 82, *[9] * (config.canvas_length - 3)]
    assert not torch.equal(cases[1].canvas_L, cases[0].canvas_L)
    before = damage.look(plain, cases)
    none = damage.compare(plain, cases, before, damage.look(plain, cases, before))
    assert [(one.level, one.positions) for one in none] == [(0.0, 6), (0.5, 6)]
    assert all((one.mean, one.largest, one.agree) == (0.0, 0.0, 1.0) for one in none)
    logits = plain.logits(torch.stack([before[0].hidden_LD[:4]]))
    alone = damage.compare(plain, cases[:1], before[:1], before[:1])[0]
    assert alone.spread == pytest.approx(float(logits.std(correction=0)), rel=1e-4)

    quantise(plain)
    eight = damage.compare(plain, cases, before, damage.look(plain, cases, before))
    strange = initialise(dg.load(device="cpu").model, seed=1)
    other = damage.compare(plain, cases, before, damage.look(strange, cases, before))
    for small, large in zip(eight, other, strict=True):
        assert 0 < small.mean < small.largest
        assert small.mean < 0.1 * small.spread and large.mean > 0.3 * large.spread
        assert small.agree > large.agree


def test_plain_weights_go_one_by_one(
    plain: DiffusionGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two formats of all layers at once would not fit a card that one fits."""
    layers = [weakref.ref(module) for _, module in candidates(plain)]
    alive = []
    real = Fp8Experts.of

    def watched(experts: Experts) -> Fp8Experts:
        alive.append(sum(one() is not None for one in layers))
        return real(experts)

    monkeypatch.setattr(Fp8Experts, "of", watched)
    quantise(plain)
    assert alive == sorted(alive, reverse=True) and alive[-1] == 1
