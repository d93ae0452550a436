"""A step of a row beside others is its step alone, bit for bit, where twins are chosen by size too.

The network has the shape of the small model, on which few tokens take other paths than many.
"""

import dataclasses

import pytest
import torch

from diffusiongemma.kernels.readout import Readout, banning
from diffusiongemma.model.config import LayerConfig, ModelConfig
from diffusiongemma.model.init import initialise
from diffusiongemma.model.model import DiffusionGemma, Inputs

pytestmark = pytest.mark.usefixtures("either")

SMALL = ModelConfig(
    vocab_size=279,
    hidden_size=128,
    intermediate_size=256,
    layers=(
        LayerConfig(sliding=True, head_dim=32, num_key_value_heads=2),
        LayerConfig(sliding=True, head_dim=32, num_key_value_heads=2),
        LayerConfig(sliding=False, head_dim=64, num_key_value_heads=1),
    )
    * 2,
    num_attention_heads=4,
    sliding_window=64,
    num_experts=8,
    top_k_experts=2,
    moe_intermediate_size=128,
    max_position_embeddings=4096,
    canvas_length=32,
)
LENGTHS = (3, 41, 100, 1, 100, 64, 100)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("banned", [[], [7]], ids=["free", "ban"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_a_step_beside_others_is_the_step_alone(dtype, banned, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        _compare(dtype, banned)
    finally:
        torch.set_num_threads(before)


def _compare(dtype, banned) -> None:
    dice = torch.Generator().manual_seed(4)
    config = dataclasses.replace(SMALL, dtype=str(dtype).removeprefix("torch."))
    model = initialise(DiffusionGemma(config).to(dtype), seed=1)
    prompts = [torch.randint(0, 279, (1, n), generator=dice) for n in LENGTHS]
    canvas = torch.randint(0, 279, (len(LENGTHS), 32), generator=dice)
    uniform = torch.rand(len(LENGTHS), 32, generator=dice, dtype=torch.float64)
    heat = torch.linspace(0.4, 0.8, len(LENGTHS))
    bias_V = banning(banned, 279, torch.device("cpu"))

    def step(rows: list[int]) -> tuple[torch.Tensor, Readout]:
        context = model.context(rows=len(rows))
        inputs, lengths_B = Inputs.stack([model.embed(prompts[row]) for row in rows])
        model.encode(inputs, context, lengths_B)
        hidden = model.denoise(canvas[rows], None, context)
        first = model.readout(hidden, heat[rows], uniform[rows], bias_V)
        hidden = model.denoise(first.token_BL, first.soft_BLD, context)
        return hidden, model.readout(hidden, heat[rows], uniform[rows], bias_V)

    hidden, read = step([*range(len(LENGTHS))])
    for row in range(len(LENGTHS)):
        alone, seen = step([row])
        assert torch.equal(alone[0], hidden[row])
        for name in ("token_BL", "best_BL", "entropy_BL", "soft_BLD"):
            assert torch.equal(getattr(seen, name)[0], getattr(read, name)[row]), name
    if banned:
        assert (read.best_BL != 7).all() and (read.token_BL != 7).all()
