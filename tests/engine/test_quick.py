"""Answers in fixed memory, with the host out of the way, are the plain loop's answers."""

import dataclasses

import pytest
import torch

import diffusiongemma as dg
from diffusiongemma.diffusion.commit import Commit
from diffusiongemma.diffusion.config import SamplerConfig
from diffusiongemma.diffusion.loop import Recipe
from diffusiongemma.engine.engine import Engine, Look, Request
from diffusiongemma.engine.events import Refined
from diffusiongemma.engine.quick import Quick, takes
from diffusiongemma.model.config import LayerConfig, ModelConfig
from diffusiongemma.model.context import Context
from diffusiongemma.model.init import initialise
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.model.slots import Slots

# On a CPU the trunk over fixed buffers is torch's operations, so the plain loop is that here too.
pytestmark = pytest.mark.usefixtures("plain")
SLIDING = LayerConfig(sliding=True, head_dim=16, num_key_value_heads=2)
FULL = LayerConfig(sliding=False, head_dim=32, num_key_value_heads=1)
TOY = ModelConfig(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=96,
    layers=(SLIDING, SLIDING, FULL),
    num_attention_heads=4,
    sliding_window=12,
    num_experts=6,
    top_k_experts=2,
    moe_intermediate_size=32,
    max_position_embeddings=400,
    canvas_length=16,
    dtype="float32",
)


def _model(seed: int = 3, **changes) -> DiffusionGemma:
    model = initialise(DiffusionGemma(dataclasses.replace(TOY, **changes)), seed=seed)
    for block in model.blocks:  # or the encoder's path could not be told from the denoiser's
        block.encode_scalar.fill_(0.8)
        block.denoise_scalar.fill_(1.1)
    return model.requires_grad_(False)


def _recipe(seed: int, **config) -> Recipe:
    given = {"max_denoising_steps": 5, "max_new_tokens": 70} | config
    return Recipe(
        config=SamplerConfig(**given), seed=seed, vocabulary=97, canvas_length=16, longest=400
    )


def _read(model: DiffusionGemma, ids: list[torch.Tensor]) -> Context:
    """A context with a prompt in each row."""
    context = model.context(rows=len(ids))
    for row, one in enumerate(ids):
        model.encode(model.embed(one), context.pick([row]))
    return context


def _plain(model: DiffusionGemma, ids: torch.Tensor, recipe: Recipe) -> list[Refined | Commit]:
    request = Request(ids=tuple(ids[0].tolist()), images=(), recipe=recipe)
    return [one for _, one in Engine(model).answer([request], look=Look.EVENTS)]


def _prompts(*lengths: int) -> list[torch.Tensor]:
    dice = torch.Generator().manual_seed(1)
    return [torch.randint(0, 97, (1, n), generator=dice) for n in lengths]


def _quick(quick: Quick, ids: list[torch.Tensor], recipes: list[Recipe]) -> list[list]:
    said: list[list] = [[] for _ in ids]
    for row, item in quick.answer(_read(quick.model, ids), recipes, watched=True):
        said[row].append(item)
    return said


@torch.no_grad()
@pytest.mark.parametrize(
    "layers", [(SLIDING, SLIDING, FULL), (FULL,), (SLIDING,)], ids=["ssf", "f", "s"]
)
@pytest.mark.parametrize("tokens", [1, 9, 75])
def test_one_answer_is_the_plain_loops(layers: tuple, tokens: int) -> None:
    """Five canvases: sliding layers forget on the way."""
    model, (ids,) = _model(layers=layers), _prompts(tokens)
    recipe = _recipe(seed=7)
    (said,) = _quick(Quick(model), [ids], [recipe])
    plain = _plain(model, ids, recipe)
    assert said == plain
    assert len([one for one in said if isinstance(one, Commit)]) == 5


@torch.no_grad()
def test_rows_out_of_step_are_the_rows_alone() -> None:
    """Canvases end at different steps, so some rows commit while others go on."""
    model, ids = _model(), _prompts(30, 3, 18)
    sampling = {"confidence_threshold": 2.0, "stability_threshold": 0, "max_denoising_steps": 7}
    recipes = [_recipe(seed, **sampling, t_max=0.5) for seed in (1, 2, 3)]
    said = _quick(Quick(model), ids, recipes)
    for row, recipe in enumerate(recipes):
        assert said[row] == _plain(model, ids[row], recipe)
    assert len({tuple(one.steps for one in row if isinstance(one, Commit)) for row in said}) > 1


@torch.no_grad()
def test_an_answer_without_a_limit_moves_to_more_memory_and_ends_with_the_context(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("diffusiongemma.engine.quick._ROOM", 32)
    monkeypatch.setattr("diffusiongemma.engine.quick._GRAIN", 16)
    model, (ids,) = _model(), _prompts(50)
    recipe = _recipe(seed=4, max_new_tokens=None, max_denoising_steps=2)
    (said,) = _quick(Quick(model), [ids], [recipe])
    plain = _plain(model, ids, recipe)
    assert said == plain
    assert said[-1].reason == "context" and len(said[-1].whole) == (400 - 50) % 16


@torch.no_grad()
def test_memory_serves_the_next_answer_and_two_at_once_do_not_share() -> None:
    model, (one, other) = _model(), _prompts(20, 31)
    quick, recipe = Quick(model), _recipe(seed=5)
    wanted = [_plain(model, ids, recipe) for ids in (one, other)]
    assert _quick(quick, [one], [recipe])[0] == wanted[0]
    kept = quick._idle[0]
    assert _quick(quick, [other], [recipe])[0] == wanted[1]
    assert quick._idle[0] is kept
    both = [quick.answer(_read(model, [ids]), [recipe], watched=True) for ids in (one, other)]
    said = list(zip(*both, strict=True))  # a step of one, a step of the other
    assert [[item for _, item in row] for row in zip(*said, strict=True)] == wanted


@torch.no_grad()
def test_nothing_in_a_step_waits_for_the_device() -> None:
    """Lengths come from tensors: the same step over longer contexts, without telling the host."""
    from diffusiongemma.model import slots as slotted

    model, (ids,) = _model(), _prompts(40)
    context = model.context(capacity=64)
    model.encode(model.embed(ids), context)
    slots, (canvas,) = Slots(context, 16), _prompts(16)
    soft = torch.zeros(1, 16, 64)
    first = slotted.denoise(model, canvas, soft, slots)
    context.truncate([33])
    assert torch.equal(slotted.denoise(model, canvas, soft, slots), first)
    slots.refresh()
    assert torch.equal(
        slotted.denoise(model, canvas, soft, slots), model.denoise(canvas, None, context)
    )


def test_the_doors_say_the_same_through_either_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: generate, stream, several prompts, and a conversation that reuses its past."""
    gemma = dg.load()
    asked = ["Reverse: lantern", "JSON: Ada, 36, lives in Bern."]

    def said() -> list:
        events = [one for one in gemma.stream(asked[0], seed=3) if isinstance(one, Refined)]
        both = gemma.generate_many(asked, seed=4, max_new_tokens=64)
        chat = gemma.converse()
        turns = [chat.generate(prompt, seed=5).tokens for prompt in asked]
        one = gemma.generate(asked[1], seed=6, stop='"city"')
        return [events, [reply.tokens for reply in both], turns, one.text, one.tokens]

    plain = said()
    used = []

    def taken(model: DiffusionGemma, recipes: list[Recipe], lengths: list[int]) -> bool:
        used.append(len(recipes))
        return True

    monkeypatch.setattr("diffusiongemma.engine.engine.takes", taken)
    assert said() == plain
    assert used == [1, 2, 1, 1, 1]


@pytest.mark.parametrize(
    ("rows", "length", "limit", "taken"),
    [
        (1, 384, None, True),
        (1, 385, None, False),  # less than a canvas is left
        (3, 300, 96, True),
        (3, 305, 96, False),  # the last canvas would not fit
        (3, 10, None, False),  # nobody knows how much memory
        (3, 10, 10**9, False),
    ],
)
def test_answers_that_end_with_the_context_are_left_to_the_plain_loop(
    rows: int, length: int, limit: int | None, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, recipe = _model(), _recipe(seed=1, max_new_tokens=limit)
    monkeypatch.setattr(DiffusionGemma, "device", torch.device("cuda"))
    assert takes(model, [recipe] * rows, [5] * (rows - 1) + [length]) is taken


@torch.no_grad()
def test_memory_that_is_much_too_large_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusiongemma.engine.quick._ROOM", 20_000)
    model, (ids,) = _model(max_position_embeddings=60_000), _prompts(20)
    quick, rooms = Quick(model), []
    for tokens in (16_000, 10_000, 70, 10**9):
        recipe = dataclasses.replace(_recipe(seed=1, max_new_tokens=tokens), longest=60_000)
        next(quick.answer(_read(model, [ids]), [recipe], watched=True))
        rooms.append(quick._idle[0].slots.context.rows[0].room)
    assert rooms == [16_384, 16_384, 1024, 20_480]  # the largest limit wants no more than others
