"""Each op against its contract, written out the long way."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongemma.kernels.attention import attend
from diffusiongemma.kernels.experts import experts
from diffusiongemma.kernels.gated import gated
from diffusiongemma.kernels.linear import linear
from diffusiongemma.kernels.norm_rope import frequencies, norm_rope, rms_norm, rotation
from diffusiongemma.kernels.ops import choose
from diffusiongemma.kernels.readout import Ask, banning, draw, readout, second_look

CPU = torch.device("cpu")


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(96, 80), (66, 8), (33, 7), (64, 12), (1408, 1408), (128, 128)]
)
def test_linear_rows_do_not_depend_on_their_number(inputs, outputs, dtype, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = torch.randn(64, inputs, generator=dice()).to(dtype)
        weight = torch.randn(outputs, inputs, generator=dice(1)).to(dtype)
        whole = linear(x, weight)
        for rows in (1, 2, 3, 4, 5, 7, 9, 11, 12, 17, 27, 28, 40, 48):
            for start in (0, 1, 7, 16):
                part = slice(start, start + rows)
                assert torch.equal(linear(x[part], weight), whole[part])
    finally:
        torch.set_num_threads(before)


def test_attend_is_softmax_over_the_row_s_own_keys() -> None:
    q, k = torch.randn(5, 6, 8, generator=dice()), torch.randn(2, 9, 8, generator=dice(1))
    v = torch.randn(2, 9, 8, generator=dice(2))
    mask = torch.rand(5, 9, generator=dice(3)) < 0.6
    mask[:, 0] = True
    out = attend(q, k, v, mask)
    for head in range(6):
        scores = (q[:, head] @ k[head // 3].T).masked_fill(~mask, float("-inf"))
        torch.testing.assert_close(out[:, head], scores.softmax(-1) @ v[head // 3])


def test_experts_add_up_their_weighted_answers() -> None:
    x = torch.randn(11, 16, generator=dice())
    gate_up, down = (
        torch.randn(5, 24, 16, generator=dice(1)),
        torch.randn(5, 16, 12, generator=dice(2)),
    )
    number = torch.stack([torch.randperm(5, generator=dice(n))[:3] for n in range(11)])
    share = torch.rand(11, 3, generator=dice(3))
    expected = torch.zeros_like(x)
    for s in range(11):
        for g in range(3):
            gate, up = (gate_up[number[s, g]] @ x[s]).chunk(2)
            inner = torch.nn.functional.gelu(gate, approximate="tanh") * up
            expected[s] += share[s, g] * (down[number[s, g]] @ inner)
    torch.testing.assert_close(
        experts(x, number, share, gate_up, down), expected, rtol=1e-5, atol=1e-4
    )


def test_experts_rows_do_not_depend_on_their_neighbours() -> None:
    x = torch.randn(40, 16, generator=dice())
    gate_up, down = (
        torch.randn(5, 24, 16, generator=dice(1)),
        torch.randn(5, 16, 12, generator=dice(2)),
    )
    number = torch.stack([torch.randperm(5, generator=dice(n))[:3] for n in range(40)])
    share = torch.rand(40, 3, generator=dice(3))
    together = experts(x, number, share, gate_up, down)
    for rows in (slice(0, 1), slice(3, 5), slice(10, 17), slice(0, 40, 3)):
        alone = experts(x[rows], number[rows], share[rows], gate_up, down)
        assert torch.equal(alone, together[rows])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [8, 12, 96, 704])
def test_the_activation_s_bits_do_not_depend_on_their_number(width, dtype, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        gate, up = (torch.randn(555, width, generator=dice(n)).to(dtype) for n in (1, 2))
        whole = gated(gate, up)
        for rows in (1, 3, 12, 99, 181, 300):
            assert torch.equal(gated(gate[:rows].clone(), up[:rows]), whole[:rows])
    finally:
        torch.set_num_threads(before)
    exact = torch.nn.functional.gelu(gate.double(), approximate="tanh").to(dtype) * up
    close = 1e-5 if dtype == torch.float32 else 8e-3
    torch.testing.assert_close(whole, exact, rtol=close, atol=1e-6)


def test_rms_norm_in_float32_rounded_once() -> None:
    x = torch.randn(3, 64, generator=dice()).bfloat16()
    weight = torch.rand(64, generator=dice(1)).bfloat16()
    wide = x.double()
    exact = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    assert torch.equal(rms_norm(x, weight, 1e-6), exact.bfloat16())


def test_rotation_turns_pairs_and_leaves_the_rest() -> None:
    pace = frequencies(16, 1e4, 0.5, CPU)
    assert pace.shape == (8,) and pace[4:].eq(0).all() and pace[0] == 1.0
    x = torch.randn(3, 2, 16, generator=dice())
    turned = norm_rope(x, None, 1e-6, rotation(torch.tensor([0, 5, 900]), pace))
    plain = rms_norm(x, None, 1e-6)
    torch.testing.assert_close(turned[0], plain[0])  # position 0 turns by nothing
    still = [*range(4, 8), *range(12, 16)]
    torch.testing.assert_close(turned[..., still], plain[..., still])
    pair = torch.complex(plain[1, 0, 0], plain[1, 0, 8]) * torch.exp(torch.tensor(5j))
    torch.testing.assert_close(torch.complex(turned[1, 0, 0], turned[1, 0, 8]), pair)


def test_readout_is_the_direct_form() -> None:
    hidden, table = (
        torch.randn(2, 7, 16, generator=dice()),
        torch.randn(3000, 16, generator=dice(1)),
    )
    heat, scale = torch.tensor([0.8, 0.5]), torch.tensor(4.0)
    uniform = torch.rand(2, 7, generator=dice(2), dtype=torch.float64)
    ids, members = torch.randint(0, 3000, (2, 7), generator=dice(3)), torch.arange(3000) % 7 == 0
    options = {"cap": 5.0, "temperature_B": heat}
    said = readout(hidden, table, scale=scale, uniform_BL=uniform, **options)
    asked = second_look(hidden, table, Ask(top=3, ids_BL=ids, members_V=members), **options)
    logits = (hidden.double() @ table.double().T / 5).tanh() * 5 / heat[:, None, None].double()
    p = logits.softmax(-1)
    assert torch.equal(said.best_BL, logits.argmax(-1))
    torch.testing.assert_close(
        said.entropy_BL.double(), -(p * p.log()).sum(-1), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(said.soft_BLD.double(), p @ table.double() * 4, rtol=1e-3, atol=1e-4)
    top = p.topk(3)
    assert torch.equal(asked["top_BLG"], top.indices)
    torch.testing.assert_close(
        asked["top_logprob_BLG"].double().exp(), top.values, rtol=1e-4, atol=1e-6
    )
    picked = p.gather(-1, ids[..., None])[..., 0]
    torch.testing.assert_close(asked["logprob_BL"].double(), picked.log(), rtol=1e-4, atol=1e-4)
    mass = p[..., members].sum(-1)
    torch.testing.assert_close(asked["mass_BL"].double(), mass, rtol=1e-4, atol=1e-6)


def test_a_banned_token_has_no_say_and_makes_no_nan() -> None:
    hidden, table = torch.randn(1, 4, 8, generator=dice()), torch.randn(20, 8, generator=dice(1))
    options = {"cap": 30.0, "scale": torch.tensor(1.0), "temperature_B": torch.tensor([0.4])}
    uniform = torch.rand(1, 4, generator=dice(2), dtype=torch.float64)
    free = readout(hidden, table, uniform_BL=uniform, **options)
    ban = free.best_BL[0, 0]
    shaped = readout(
        hidden,
        table,
        uniform_BL=uniform,
        bias_V=banning([int(ban)], 20, CPU),
        **options,
    )
    assert (shaped.best_BL != ban).all() and (shaped.token_BL != ban).all()
    assert shaped.entropy_BL.isfinite().all() and shaped.soft_BLD.isfinite().all()


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("vocabulary", [1, 7, 1000, 1024, 1500, 2048, 3000, 262_144])
def test_what_is_no_number_gives_no_id_outside_the_vocabulary(
    vocabulary: int, kernels: str, damage: float
) -> None:
    hidden = torch.randn(1, 4, 16, generator=dice())
    table = torch.randn(vocabulary, 16, generator=dice(1))
    hidden[0, 1], hidden[0, 2, 3], table[vocabulary // 2, 5] = damage, damage, damage
    said = choose(CPU, torch.float32, kernels).readout(
        hidden,
        table,
        cap=30.0,
        scale=torch.tensor(4.0),
        temperature_B=torch.tensor([0.7]),
        uniform_BL=torch.tensor([[0.0, 0.3, 0.9, 1 - 2**-53]], dtype=torch.float64),
    )
    for ids_BL in (said.token_BL, said.best_BL):
        assert ids_BL.min() >= 0 and ids_BL.max() < vocabulary
    if damage != damage:
        assert said.entropy_BL.isnan().all()


@given(st.integers(0, 10_000), st.integers(1, 2600))
@settings(max_examples=40, deadline=None)
def test_a_draw_is_the_inverse_of_the_running_sum(seed: int, vocabulary: int) -> None:
    p = torch.rand(4, vocabulary, generator=dice(seed)) ** 8
    p[:, torch.rand(vocabulary, generator=dice(seed + 1)) < 0.3] = 0.0
    p[:, vocabulary // 2] += 1e-3
    uniform = torch.tensor([0.0, 0.25, 0.999999, 1 - 2**-53], dtype=torch.float64)
    token = draw(p, uniform)
    assert (p.gather(-1, token[:, None]) > 0).all()
    total = p.double().cumsum(-1)
    target = uniform * total[:, -1]
    before = torch.where(token > 0, total.gather(-1, (token - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    after = total.gather(-1, token[:, None])[:, 0]
    slack = 1e-9 * total[:, -1]
    assert ((before <= target + slack) & (target <= after + slack)).all()


def test_draws_follow_the_probabilities() -> None:
    p = torch.tensor([[0.5, 0.0, 0.3, 0.2]]).expand(4000, -1)
    uniform = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    assert torch.bincount(draw(p, uniform), minlength=4).tolist() == [2000, 0, 1200, 800]
