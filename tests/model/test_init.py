"""Random weights from which a network learns quickly."""

import torch

from diffusiongemma.cli.whole.network import TOY
from diffusiongemma.kernels.norm_rope import rms_norm
from diffusiongemma.model.init import initialise
from diffusiongemma.model.model import DiffusionGemma


@torch.no_grad()
def test_attention_starts_undecided() -> None:
    """Scores spread by about 1, on narrow heads and wide. Norms of one, which cost a first training
    run its afternoon, spread them by the root of the width: near one-hot, to random tokens.
    """
    model = initialise(DiffusionGemma(TOY), seed=0)
    dice = torch.Generator().manual_seed(0)
    for block in model.blocks:
        attention = block.attention
        q, k = (torch.randn(200, attention.head_dim, generator=dice) for _ in "qk")
        scores = (
            rms_norm(q, attention.q_norm.weight, 1e-6)
            @ rms_norm(k, attention.k_norm.weight, 1e-6).T
        )
        assert 0.8 < float(scores.std()) < 1.2


@torch.no_grad()
def test_the_stream_keeps_its_scale_and_the_seed_is_all() -> None:
    one, same, other = (initialise(DiffusionGemma(TOY), seed=seed) for seed in (3, 3, 4))
    ids = torch.randint(0, TOY.vocab_size, (1, 50), generator=torch.Generator().manual_seed(0))
    said = [model.encode(model.embed(ids), model.context()) for model in (one, same, other)]
    assert torch.equal(said[0], said[1]) and not torch.equal(said[0], said[2])
    assert 1 < float(one.logits(said[0]).std()) * 1.5 < 5
