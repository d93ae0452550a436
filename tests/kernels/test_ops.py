"""What every table of ops has in common, and what it must not depend on."""

import dataclasses

import pytest
import torch

from diffusiongemma.cli.whole import network
from diffusiongemma.kernels import ops
from diffusiongemma.kernels.native import build
from diffusiongemma.kernels.ops import Ops
from diffusiongemma.kernels.readout import Ask, Readout, banning
from diffusiongemma.model.model import DiffusionGemma

CPU = torch.device("cpu")
VOCABULARY, WIDTH = 2048, 64
USUAL = ("token_BL", "best_BL", "entropy_BL", "soft_BLD")


def tables(dtype: torch.dtype) -> dict[str, Ops]:
    """Each one that can run here, where a GPU's run on a CPU's tensors."""
    found = {
        "reference": ops.choose(CPU, dtype, "reference"),
        "cpu": ops.choose(CPU, dtype, compiled=False),
        "gpu": ops._gpu(CPU, dtype, False, "there is none"),
    }
    if build.library() is not None:
        found["compiled"] = ops.choose(CPU, dtype, compiled=True)
    if dtype == torch.bfloat16:
        pytest.importorskip("triton")
        found["triton"] = ops.triton_ops(CPU, found["gpu"])
    return found


@pytest.fixture
def model(dtype: torch.dtype) -> DiffusionGemma:
    config = dataclasses.replace(network.TOY, canvas_length=16)
    return network.made(config, CPU, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_what_is_asked_beside_moves_no_bit_of_the_usual(
    model: DiffusionGemma, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    import right_interpreter

    dice = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 16, WIDTH, generator=dice).to(dtype)
    heat = torch.tensor([0.8, 0.5])
    uniform = torch.rand(2, 16, generator=dice, dtype=torch.float64)
    ids = torch.randint(0, VOCABULARY, (2, 16), generator=dice)
    asks = [
        Ask(top=2), Ask(ids_BL=ids), Ask(members_V=torch.arange(VOCABULARY) % 7 == 0),
        Ask(top=1, ids_BL=ids, members_V=torch.arange(VOCABULARY) < 9),
    ]  # fmt: skip
    bias_V, seconds = banning(range(50), VOCABULARY, CPU), []
    for name, table in tables(dtype).items():
        choice = dataclasses.replace(model.choice, ops=table)
        monkeypatch.setattr(DiffusionGemma, "running", choice)
        with right_interpreter.right():
            for bias in (None, bias_V):
                plain = model.readout(hidden, heat, uniform, bias)
                told = [model.readout(hidden, heat, uniform, bias, ask) for ask in asks]
                for one in told:
                    for part in USUAL:
                        assert torch.equal(getattr(one, part), getattr(plain, part)), (name, part)
                seconds.append((bias is None, told))
    for free, told in seconds:  # the second look is one and the same for all tables
        first = next(one for kind, one in seconds if kind == free)
        for one, other in zip(told, first, strict=True):
            assert _asked(one).keys() == _asked(other).keys() != set()
            for part, value in _asked(one).items():
                assert torch.equal(value, _asked(other)[part]), part


def _asked(said: Readout) -> dict[str, torch.Tensor]:
    names = {field.name for field in dataclasses.fields(said)} - {*USUAL}
    found = {name: getattr(said, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_table_says_what_runs_and_names_one_for_gradients(dtype: torch.dtype) -> None:
    fields = {field.name for field in dataclasses.fields(Ops)}
    for name, table in tables(dtype).items():
        assert table.facts.keys() - {"attention"} <= fields, name
        assert {"attention", "experts", "gated", "linear", "readout"} <= table.facts.keys()
        assert all(fact.backend and fact.reason for fact in table.facts.values())
        under = table.gradients
        assert under.name == {"cpu": "reference", "compiled": "reference"}.get(
            name, "gpu" if name == "triton" else table.name
        )
        assert under.gradients is under
    promised = ops.choose(CPU, dtype, compiled=False).facts.values()
    assert all(fact.batch_invariant and fact.cut_invariant for fact in promised)


def test_quantised_ops_are_told_where_some_weights_are() -> None:
    plain, eight = (ops.choose(CPU, torch.bfloat16, fp8=one).facts for one in (False, True))
    assert eight.keys() - plain.keys() == {"experts_fp8", "fp8_product"}


def test_what_cannot_be_captured_says_so() -> None:
    """Nothing of a step may look at the host: see `Steps.captured`."""
    assert not any(table.captured for table in tables(torch.float32).values())
    assert not ops.choose(CPU, torch.bfloat16).captured
