"""A small network in one call is the network as it is written, also after weights changed."""

import copy
import dataclasses
import itertools
import weakref

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor, nn

import diffusiongemma as dg
from diffusiongemma.cli.benching.ours import Ours
from diffusiongemma.kernels.native import build
from diffusiongemma.kernels.ops import Ops
from diffusiongemma.model.config import LayerConfig, ModelConfig
from diffusiongemma.model.context import Context
from diffusiongemma.model.init import initialise
from diffusiongemma.model.layers import RMSNorm
from diffusiongemma.model.model import DiffusionGemma, Inputs
from diffusiongemma.model.native import Call, _Pass
from diffusiongemma.quant.apply import quantise

pytestmark = [
    pytest.mark.skipif(build.library() is None, reason=f"no library: {build.reason()}"),
    pytest.mark.usefixtures("frozen"),
]
SLIDING = LayerConfig(sliding=True, head_dim=16, num_key_value_heads=2)
FULL = LayerConfig(sliding=False, head_dim=32, num_key_value_heads=1)
TOY = ModelConfig(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    layers=(SLIDING, FULL, SLIDING),
    num_attention_heads=4,
    sliding_window=12,
    num_experts=5,
    top_k_experts=3,
    moe_intermediate_size=16,
    max_position_embeddings=700,
    canvas_length=8,
    dtype="float32",
)


@pytest.fixture
def frozen():
    with torch.no_grad():
        yield


def toy(seed: int = 1, dtype: torch.dtype = torch.float32, **changes) -> DiffusionGemma:
    """Every weight, norm and scalar another than the neutral one."""
    model = initialise(DiffusionGemma(dataclasses.replace(TOY, **changes)), seed=seed)
    dice = torch.Generator().manual_seed(seed)
    for name, part in itertools.chain(model.named_parameters(), model.named_buffers()):
        if part.ndim < 2 or "norm" in name:
            part.mul_(torch.rand(part.shape, generator=dice) + 0.5)
    return model.to(dtype)


def ids(count: int, rows: int = 1, seed: int = 0) -> Tensor:
    dice = torch.Generator().manual_seed(seed)
    return torch.randint(0, TOY.vocab_size, (rows, count), generator=dice)


def said(model: DiffusionGemma, cuts: tuple[int, ...] = (1, 30, 31, 80)) -> list[Tensor]:
    """Hidden states of a text in pieces and of canvases after it, and what was remembered."""
    context, out = model.context(1), []
    for start, stop in itertools.pairwise((0, *cuts)):
        out.append(model.encode(model.embed(ids(stop)[:, start:stop]), context))
        out.append(model.denoise(ids(8, seed=2), None, context))
    soft = torch.randn(1, 11, 48, generator=torch.Generator().manual_seed(3)).to(model.dtype)
    out.append(model.denoise(ids(11, seed=4), soft, context))
    for store in context.rows[0].stores:
        out += store.read(store.start) or ()
    return out


def used(model: DiffusionGemma) -> bool:
    return taken(model, model.context(1)) is not None


def taken(model: DiffusionGemma, context: Context) -> Call | None:
    return model._call(model.running, context, model.embedding.weight)


def as_written(model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr(model, "kernels", "reference")
        assert model.choice.trunk == "modules"
        return said(model)


def furthest(one: list[Tensor], other: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers": (FULL,), "num_experts": 1, "top_k_experts": 1},
        {"layers": (SLIDING,), "sliding_window": 2},
        {"num_attention_heads": 2, "sliding_window": 500},
        {"intermediate_size": 1024, "num_attention_heads": 32},
        {"hidden_size": 16, "intermediate_size": 16, "num_experts": 33, "top_k_experts": 33},
    ],
    ids=["usual", "one expert", "window of two", "wide window", "widest", "all experts"],
)
def test_it_is_what_the_modules_say(changes, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy(**changes)
    assert used(model)
    if model.config.hidden_size != 48:
        monkeypatch.setattr(torch, "randn", lambda *shape, **_: torch.ones(1, 11, 16))
    assert furthest(said(model), as_written(model, monkeypatch)) < 2e-5


def test_bfloat16_is_nearer_to_float32_than_the_modules_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = theirs = 0.0
    for seed in range(12):
        model = toy(seed, torch.bfloat16)
        truth = as_written(copy.deepcopy(model).float(), monkeypatch)
        found, plain = said(model), as_written(model, monkeypatch)
        ours += sum(float((a.float() - b).pow(2).mean()) for a, b in zip(found, truth, strict=True))
        theirs += sum(
            float((a.float() - b).pow(2).mean()) for a, b in zip(plain, truth, strict=True)
        )
    assert 0 < ours < theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pieces_and_neighbours_change_no_bit(dtype: torch.dtype) -> None:
    model = toy(dtype=dtype)
    assert used(model)
    # What the text looks like depends on no border, with windows or without.
    whole, pieces = (said(model, cuts)[-7:] for cuts in ((80,), (3, 50, 79, 80)))
    assert all(torch.equal(a, b) for a, b in zip(whole, pieces, strict=True))
    lengths = [5, 61, 1, 0, 40]
    texts = [ids(max(n, 1), seed=n)[:, :n] for n in lengths]
    padded = torch.stack([nn.functional.pad(text[0], (0, 61 - text.shape[1])) for text in texts])
    context = model.context(5)
    together = model.encode(model.embed(padded), context, torch.tensor(lengths))
    drafts = model.denoise(ids(8, 5, seed=9), None, context)
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        alone = model.context(1)
        if length:
            hidden = model.encode(model.embed(text), alone)
            assert torch.equal(hidden[0], together[row, :length])
        draft = model.denoise(ids(8, 5, seed=9)[row : row + 1], None, alone)
        assert torch.equal(draft[0], drafts[row])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_change_no_bit(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusiongemma.model.native._SHARE", 1)  # or these texts were too short
    model, before, found = toy(dtype=dtype), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 11):
            torch.set_num_threads(threads)
            context = model.context(5)
            lengths = torch.tensor([5, 61, 1, 0, 40])
            text = model.encode(model.embed(ids(61, 5)), context, lengths)
            found.append([*said(model), text, model.denoise(ids(8, 5, seed=9), None, context)])
    finally:
        torch.set_num_threads(before)
    for one in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(one, found[0], strict=True))


class Listening:
    """The library, and what it was asked."""

    def __init__(self, library, said: list) -> None:
        self.library, self.said = library, said

    def diffusiongemma_trunk(self, address: int) -> int:
        self.said.append(_Pass.from_address(address).threads)
        return self.library.diffusiongemma_trunk(address)

    def diffusiongemma_readout(self, address: int) -> int:
        self.said.append("readout")
        return self.library.diffusiongemma_readout(address)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list:
    found: list = []
    ears = Listening(build.library(), found)
    monkeypatch.setattr(build, "library", lambda: ears)
    return found


def test_threads_get_shares_that_are_worth_it(asked: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    model, before = toy(), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for tokens in (40, 130, 600):
            model.encode(model.embed(ids(tokens)), model.context(1))
        monkeypatch.setenv("OMP_WAIT_POLICY", "active")
        model.encode(model.embed(ids(600)), model.context(1))
    finally:
        torch.set_num_threads(before)
    assert asked == [0, 2, 3, 1]


def test_an_answer_takes_two_calls_a_step(asked: list) -> None:
    """The network's and the vocabulary's, bans and all; nothing falls back unseen."""
    gemma = dg.load(device="cpu")
    answer = gemma.generate("Sort: 7 3 5", seed=1)
    steps = sum(answer.stats.steps)
    assert asked.count("readout") == steps
    assert len(asked) >= 2 * steps + 1  # and the prompt's


def test_the_bench_times_what_users_run(asked: list) -> None:
    """Under gradients, which calls for the operations, a step would look five times as long."""
    with torch.enable_grad():
        side = Ours(dg.load(device="cpu").model)
        side.prepare(torch.tensor([[2, 40, 41]]), steps=2)
        side.step()
    assert len(asked) == 3


def test_a_large_one_is_for_few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusiongemma.model.native.LIMIT", 1000)
    model, before = toy(), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert used(model)
        with monkeypatch.context() as patch:
            patch.setenv("OMP_WAIT_POLICY", "active")
            assert not used(model)
        torch.set_num_threads(5)
        assert not used(model)
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(build, "multiplies_bfloat16", lambda: False)
    assert not used(toy(dtype=torch.bfloat16))


def _in_place(model: DiffusionGemma) -> None:
    model.blocks[1].experts.down.data[:, ::2].mul_(2)


def _other_weight(model: DiffusionGemma) -> None:
    model.blocks[0].attention.q.weight = nn.Parameter(torch.randn(64, 48))


def _other_module(model: DiffusionGemma) -> None:
    class Flipped(type(model.blocks[0].dense)):
        def forward(self, x_SD: Tensor, ops: Ops) -> Tensor:
            return super().forward(x_SD, ops).flip(-1)

    model.blocks[2].dense.__class__ = Flipped


def _hook(model: DiffusionGemma) -> None:
    model.blocks[1].register_forward_hook(lambda _, __, out: 2 * out)


def _method(model: DiffusionGemma) -> None:
    plain = model.blocks[1].router.forward
    model.blocks[1].router.forward = lambda *given: (plain(*given)[0], plain(*given)[1].flip(-1))


def _loaded(model: DiffusionGemma) -> None:
    model.load_state_dict(toy(7).state_dict())


def _assigned(model: DiffusionGemma) -> None:
    model.load_state_dict(toy(7).state_dict(), assign=True)


def _other_norm(model: DiffusionGemma) -> None:
    model.norm = RMSNorm(48, 1e-6).requires_grad_(False)
    model.norm.weight.mul_(3)


def _turned(model: DiffusionGemma) -> None:
    model.blocks[1].attention.q.weight.data = torch.randn(128, 48)
    said(model)
    square = model.blocks[0].router
    square.weight = nn.Parameter(torch.randn(5, 48))


def _transposed(model: DiffusionGemma) -> None:
    weight = model.blocks[0].experts.down.data
    weight.data[0, :16] = torch.randn(16, 16)
    model.blocks[0].experts.down.data = weight.transpose(1, 2).contiguous().transpose(1, 2)


def _other_window(model: DiffusionGemma) -> None:
    model.config = dataclasses.replace(model.config, rope_theta_sliding=3.0)


def _narrowed(model: DiffusionGemma) -> None:
    model.to(torch.bfloat16)


def _strided(model: DiffusionGemma) -> None:
    weight = torch.randn(48, 48).t()
    model.blocks[0].dense.gate.weight = nn.Parameter(torch.cat([weight, weight[:32]]).t().t())
    model.blocks[0].router.weight = nn.Parameter(torch.randn(48, 5).t())


def _quantised(model: DiffusionGemma) -> None:
    quantise(model)


@pytest.mark.parametrize(
    "change",
    [
        *(_in_place, _other_weight, _loaded, _assigned, _narrowed, _strided),
        *(_quantised, _transposed, _turned, _other_window),
    ],
)
def test_changes_are_seen(change, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and architecture of today count, not those of the first call."""
    model = toy()
    before = said(model)
    assert used(model)
    change(model)
    after = said(model)
    if model.dtype == torch.float32:
        assert furthest(after, as_written(model, monkeypatch)) < 2e-5
    else:
        assert furthest(after, said(copy.deepcopy(model))) == 0
    assert furthest(after, before) > 1e-2


@pytest.mark.parametrize("change", [_other_module, _hook, _method, _other_norm])
def test_the_reference_sees_other_modules(change) -> None:
    """Hooks, methods and modules in the place of others: whoever has some asks for it."""
    model = toy()
    model.kernels = "reference"
    before = said(model)
    change(model)
    assert furthest(said(model), before) > 1e-2


def test_a_copy_has_weights_of_its_own() -> None:
    model = toy()
    before = said(model)
    twin = copy.deepcopy(model)
    assert used(twin) and furthest(said(twin), before) == 0
    _in_place(twin)
    assert furthest(said(twin), before) > 1e-2 and furthest(said(model), before) == 0


def test_weights_that_were_replaced_are_let_go() -> None:
    model = toy()
    said(model)
    gone = [weakref.ref(model.blocks[0].attention.q), weakref.ref(model.blocks[1].experts.down)]
    quantise(model)
    said(model)
    assert [one() for one in gone] == [None, None]


def test_a_weight_that_is_computed_is_left_to_the_modules() -> None:
    model = toy()
    part = model.blocks[0].attention.q
    nn.utils.parametrize.register_parametrization(part, "weight", nn.Tanh())
    assert not used(model)
    said(model)


def test_where_it_would_not_be_the_same_it_is_not_used() -> None:
    assert not used(toy(hidden_size=40))
    assert not used(toy(intermediate_size=1040))
    assert not used(toy().to(torch.float16))
    mixed = toy()
    mixed.norm.to(torch.bfloat16)
    assert not used(mixed)
    model = toy()
    with torch.enable_grad():
        assert not used(model)


def test_weights_that_are_no_numbers_are_told_and_not_fatal() -> None:
    """A router that says nothing could send a token to one expert as often as it may choose."""
    model = toy(num_experts=33, top_k_experts=8, hidden_size=256)
    model.blocks[0].router.weight.fill_(float("nan"))
    assert used(model)
    for _ in range(3):
        hidden = model.encode(model.embed(ids(200)), model.context(1))
        assert hidden.isnan().any()


def test_a_context_of_another_kind_is_left_to_the_modules() -> None:
    model = toy(dtype=torch.bfloat16)
    context = model.context(1, capacity=100)
    model.encode(model.embed(ids(30)), context)
    model.float()
    assert used(model)
    assert taken(model, context) is None
    other = toy(num_attention_heads=8, layers=(FULL, FULL, SLIDING))
    assert taken(other, model.context(1, capacity=100)) is None


def test_tensors_that_do_not_fit_are_refused_as_ever() -> None:
    model = toy()
    with pytest.raises((RuntimeError, TypeCheckError)):
        wrong = Inputs(torch.randn(1, 30, 16), torch.full((1, 30), -1))
        model.encode(wrong, model.context(1))
    hidden, heat, uniform = torch.randn(3, 8, 48), torch.ones(3), torch.rand(3, 8).double()
    for given in ((hidden, heat[:1], uniform), (hidden[..., :16], heat, uniform)):
        with pytest.raises((RuntimeError, IndexError, TypeCheckError)):
            model.readout(*given)
    text = Inputs(torch.randn(1, 30, 48), torch.full((1, 30), -1))
    image = Inputs(text.embedded_BTD, torch.zeros(1, 30, dtype=torch.int64))
    outs = [model.encode(one, model.context(1)) for one in (text, image)]
    assert float((outs[0] - outs[1]).abs().max()) > 0.1


def test_the_context_is_not_written_by_a_draft() -> None:
    model, context = toy(), None
    context = model.context(1)
    model.encode(model.embed(ids(30)), context)
    kept = [store.read(store.start)[0].clone() for store in context.rows[0].stores]
    model.denoise(ids(8), None, context)
    for store, before in zip(context.rows[0].stores, kept, strict=True):
        assert torch.equal(store.read(store.start)[0], before)
