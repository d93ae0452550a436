"""The objective by its definition, and that it learns."""

import torch
import torch.nn.functional as F

from diffusiongemma.diffusion.noise import corrupt
from diffusiongemma.model.config import LayerConfig, ModelConfig
from diffusiongemma.model.init import initialise
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.train.objective import Batch, losses

CONFIG = ModelConfig(
    vocab_size=40, hidden_size=32, intermediate_size=48,
    layers=(
        LayerConfig(sliding=True, head_dim=16, num_key_value_heads=2),
        LayerConfig(sliding=False, head_dim=16, num_key_value_heads=2),
    ),
    num_attention_heads=4, sliding_window=8, num_experts=4, top_k_experts=2,
    moe_intermediate_size=16, max_position_embeddings=64, canvas_length=4, dtype="float32",
)  # fmt: skip


def example() -> Batch:
    """Two examples: a prompt of 3 with two canvases, a prompt of 5 with one."""
    clean = torch.randint(5, 40, (2, 13), generator=torch.Generator().manual_seed(1))
    clean[0, 9:11], clean[1, 8], clean[0, 11:], clean[1, 9:] = 1, 1, 0, 0
    return Batch(
        clean_BT=clean,
        starts=(3, 5),
        canvas_BK=torch.tensor([[True, True], [True, False]]),
        width=4,
    )


def model() -> DiffusionGemma:
    return initialise(DiffusionGemma(CONFIG), seed=2)


def test_corruption_keeps_or_resamples_uniformly() -> None:
    clean = torch.full((2, 20_000), 7)
    level = torch.tensor([0.25, 1.0])
    noised, resampled = corrupt(clean, level, 10, torch.Generator().manual_seed(0))
    assert abs(float(resampled[0].float().mean()) - 0.25) < 0.02 and resampled[1].all()
    assert (noised[~resampled] == 7).all()
    assert abs(float((noised[1] == 7).float().mean()) - 0.1) < 0.02  # resampled is not changed
    assert set(noised[1].tolist()) == set(range(10))


def test_canvases_begin_where_the_answer_begins() -> None:
    batch = example()
    canvases = batch.canvases()
    assert torch.equal(canvases[0, 0], batch.clean_BT[0, 3:7])
    assert torch.equal(canvases[0, 1], batch.clean_BT[0, 7:11])
    assert torch.equal(canvases[1, 0], batch.clean_BT[1, 5:9])
    assert batch.next_BT().sum(1).tolist() == [10, 8]  # all but the last of 11 and of 9
    assert batch.next_BT(0.5)[0].tolist() == [0.5, 0.5, *[1] * 8, 0, 0, 0]
    assert batch.next_BT(0.0)[1].tolist() == [*[0] * 4, *[1] * 4, *[0] * 5]


def test_the_loss_is_its_formula() -> None:
    """Written out: one encode and one denoise for each canvas, means per example."""
    batch, network = example(), model()
    found = losses(network, batch, torch.Generator().manual_seed(9), conditioned=0.0)
    dice = torch.Generator().manual_seed(9)
    level = torch.rand(2, 2, generator=dice)
    noised, _ = corrupt(batch.canvases(), level, 40, dice)
    denoiser, encoder = [], []
    for row, start in enumerate(batch.starts):
        errors = []
        for canvas in range(int(batch.canvas_BK[row].sum())):
            context, end = network.context(), start + canvas * 4
            network.encode(network.embed(batch.clean_BT[row : row + 1, :end]), context)
            hidden = network.denoise(noised[row : row + 1, canvas], None, context)
            wanted = batch.clean_BT[row, end : end + 4]
            errors.append(F.cross_entropy(network.logits(hidden)[0], wanted, reduction="none"))
        denoiser.append(torch.cat(errors).mean())
        ids = batch.clean_BT[row : row + 1, : start + 4 * int(batch.canvas_BK[row].sum())]
        said = network.logits(network.encode(network.embed(ids), network.context()))[0, :-1]
        encoder.append(F.cross_entropy(said, ids[0, 1:]))
    torch.testing.assert_close(found.denoiser, torch.stack(denoiser).mean())
    torch.testing.assert_close(found.encoder, torch.stack(encoder).mean())
    torch.testing.assert_close(found.total, found.denoiser + found.encoder)
    assert found.tokens == 12 + 18
    answers = losses(
        network, batch, torch.Generator().manual_seed(9), conditioned=0.0, prompt_weight=0.0
    )
    alone = []
    for row, (start, end) in enumerate(((3, 11), (5, 9))):
        ids = batch.clean_BT[row : row + 1, :end]
        said = network.logits(network.encode(network.embed(ids), network.context()))[0, :-1]
        alone.append(F.cross_entropy(said[start - 1 :], ids[0, start:]))
    torch.testing.assert_close(answers.encoder, torch.stack(alone).mean())
    torch.testing.assert_close(answers.denoiser, found.denoiser)


def test_padding_has_no_say() -> None:
    batch, network = example(), model()
    other = batch.clean_BT.clone()
    other[0, 11:], other[1, 9:] = 33, 34
    changed = Batch(
        clean_BT=other, starts=batch.starts, canvas_BK=batch.canvas_BK, width=batch.width
    )
    one, two = (
        losses(network, b, torch.Generator().manual_seed(9), conditioned=1.0)
        for b in (batch, changed)
    )
    torch.testing.assert_close(one.total, two.total)


def test_conditioned_examples_see_the_first_pass_and_others_nothing() -> None:
    """Rates 0 and 1 differ; at a rate between, each example is as in one of them."""
    batch, network = example(), model()
    rates = {
        r: losses(network, batch, torch.Generator().manual_seed(9), conditioned=r)
        for r in (0.0, 1.0)
    }
    assert abs(float(rates[0.0].denoiser - rates[1.0].denoiser)) > 1e-4
    torch.testing.assert_close(rates[0.0].encoder, rates[1.0].encoder)


def test_gradients_reach_the_prompt_and_the_first_pass_takes_none() -> None:
    batch, network = example(), model()
    found = losses(
        network, batch, torch.Generator().manual_seed(9), conditioned=1.0, encoder_weight=0.0
    )
    found.total.backward()
    key_weight = network.blocks[0].attention.k.weight
    assert key_weight.grad is not None and key_weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in network.self_conditioning.parameters())


def test_it_learns_one_batch() -> None:
    batch, network, dice = example(), model(), torch.Generator().manual_seed(3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    history = []
    for _ in range(80):
        found = losses(network, batch, dice)
        optimizer.zero_grad()
        found.total.backward()
        optimizer.step()
        history.append(float(found.total.detach()))
    assert sum(history[-10:]) < 0.4 * sum(history[:10])
