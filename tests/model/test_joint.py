"""The training pass is what generation does: one canvas after the other, values and gradients."""

import pytest
import torch

from diffusiongemma.core.errors import InputError
from diffusiongemma.model.config import LayerConfig, ModelConfig
from diffusiongemma.model.init import initialise
from diffusiongemma.model.joint import joint
from diffusiongemma.model.model import DiffusionGemma

SLIDING = LayerConfig(sliding=True, head_dim=16, num_key_value_heads=2)
FULL = LayerConfig(sliding=False, head_dim=32, num_key_value_heads=1)
CONFIG = ModelConfig(
    vocab_size=90, hidden_size=32, intermediate_size=48, layers=(SLIDING, FULL, SLIDING),
    num_attention_heads=4, sliding_window=7, num_experts=6, top_k_experts=2,
    moe_intermediate_size=16, max_position_embeddings=128, canvas_length=6, dtype="float32",
)  # fmt: skip
STARTS, CANVASES, WIDTH, CLEAN = (5, 1, 14), 3, 6, 33


def _model() -> DiffusionGemma:
    model = initialise(DiffusionGemma(CONFIG), seed=3)
    dice = torch.Generator().manual_seed(4)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if "norm" in name or "scal" in name:
            value.data.uniform_(0.6, 1.4, generator=dice)
    return model


def _example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dice = torch.Generator().manual_seed(5)
    clean = torch.randint(0, 90, (3, CLEAN), generator=dice)
    noised = torch.randint(0, 90, (3, CANVASES, WIDTH), generator=dice)
    return clean, noised, torch.randn(3, CANVASES, WIDTH, 32, generator=dice)


def _one_by_one(model: DiffusionGemma, clean, noised, soft):
    """Each canvas over the encoding of what comes before it."""
    read, drafted = [], []
    for row, start in enumerate(STARTS):
        read.append(model.encode(model.embed(clean[row : row + 1]), model.context()))
        for canvas in range(CANVASES):
            context = model.context()
            end = start + canvas * WIDTH
            model.encode(model.embed(clean[row : row + 1, :end]), context)
            given = None if soft is None else soft[row : row + 1, canvas]
            drafted.append(model.denoise(noised[row : row + 1, canvas], given, context))
    return torch.cat(read), torch.cat(drafted).view(3, CANVASES, WIDTH, -1)


@pytest.mark.parametrize("conditioned", [False, True])
def test_joint_is_canvas_by_canvas(conditioned: bool) -> None:
    clean, noised, soft = _example()
    given = soft if conditioned else None
    found = []
    for way in (joint, _one_by_one):
        model = _model()
        if way is joint:
            read, drafted = joint(model, clean, noised, STARTS, given)
        else:
            read, drafted = _one_by_one(model, clean, noised, given)
        weigh = torch.linspace(-1, 1, 32)
        ((read * weigh).sum() + (drafted * weigh).square().sum()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((read, drafted, gradients))
    (read, drafted, gradients), (read_2, drafted_2, gradients_2) = found
    torch.testing.assert_close(read, read_2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(drafted, drafted_2, rtol=1e-4, atol=1e-5)
    assert set(gradients) == set(gradients_2)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, gradients_2[name], rtol=2e-3, atol=2e-3, msg=name)


def test_shapes_that_do_not_fit_are_refused() -> None:
    clean, noised, _ = _example()
    with pytest.raises(InputError, match=r"starts \[5, 1, 30\] do not fit each other"):
        joint(_model(), clean, noised, (5, 1, 30))
