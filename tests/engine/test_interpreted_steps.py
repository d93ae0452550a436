"""The whole step with all kernels of a GPU, interpreted, against the step as it is written.

Nothing here is fast or captured; it shows that the kernels fit each other and the engine.
"""

import contextlib
import dataclasses
from collections.abc import Iterator

import pytest
import torch

from diffusiongemma.cli.whole import network, parts
from diffusiongemma.engine.graphs import Steps
from diffusiongemma.kernels import readout
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.model.trunk import Chooser

pytest.importorskip("triton")
import right_interpreter
from triton_choice import interpreted

TOY = dataclasses.replace(
    network.TOY, layers=network.TOY.layers[1:], canvas_length=16, vocab_size=700, num_experts=8
)


@contextlib.contextmanager
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The table and the trunk are Triton's."""
    with monkeypatch.context() as patch, right_interpreter.right():
        patch.setattr(Chooser, "__call__", lambda *_, **__: interpreted())
        patch.setattr(DiffusionGemma, "trunk", None)  # nobody may take the modules
        yield


def _steps(fp8: bool) -> Steps:
    model = network.made(TOY, torch.device("cpu"), torch.bfloat16)
    for block in model.blocks:
        block.encode_scalar.fill_(0.8)
    if fp8:
        from diffusiongemma.quant.apply import quantise

        quantise(model)
    steps = parts.opened(model, 2, 70, 3 * TOY.canvas_length, 6)
    steps.bias_V = readout.banning(range(200), TOY.vocab_size, torch.device("cpu"))
    return steps


@torch.no_grad()
@pytest.mark.parametrize("fp8", [False, True], ids=["bfloat16", "fp8"])
def test_steps_and_a_commit(fp8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[tuple[torch.Tensor, ...]]] = []
    for quick in (False, True):
        steps, said = _steps(fp8), []
        for act in ("step", "advance"):
            # From the same state on both sides: what is drawn once differs ever after.
            if seen:
                best_BL = steps.drafts.best_BL
                best_BL.copy_(seen[0][len(said) - 1][0] if said else best_BL)
            with as_on_a_gpu(monkeypatch) if quick else contextlib.nullcontext():
                steps.step() if act == "step" else steps.advance([1])
            now = steps.drafts
            state = [now.best_BL, now.entropy_BL, now.before_BL, now.canvas_BL, now.accepted_BL]
            state += [now.expected_BLD, now.step_B, steps.slots.length_B]
            said.append(tuple(one.clone() for one in state))
        seen.append(said)
    for number, (plain, quick) in enumerate(zip(*seen, strict=True)):
        pairs = zip(plain, quick, strict=True)
        best, entropy, before, canvas, accepted, soft, count, length = pairs
        assert int(best[0].min()) >= 200 and int(best[1].min()) >= 200  # the ban
        rows = slice(None) if number == 0 else slice(1, 2)  # the one that began anew
        assert torch.equal(before[0][rows], before[1][rows])
        assert float((best[0] == best[1])[rows].float().mean()) > 0.8
        torch.testing.assert_close(entropy[0][rows], entropy[1][rows], rtol=0.1, atol=0.1)
        off = (soft[0].float() - soft[1].float())[rows].abs().mean() / soft[0].float().abs().mean()
        assert float(off) < 0.2
        assert torch.equal(count[0], count[1]) and torch.equal(length[0], length[1])
        noise = ~(accepted[0] | accepted[1])[rows]
        assert torch.equal(canvas[0][rows][noise], canvas[1][rows][noise])
