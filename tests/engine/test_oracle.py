"""Every door against the oracle of `tests/oracle.py`, bit for bit."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import diffusiongemma as dg
import oracle
from diffusiongemma.core.errors import OptionError
from diffusiongemma.engine.runner import PROMPT_CHUNK
from diffusiongemma.kernels.philox import Purpose
from diffusiongemma.kernels.refine import within_bound
from places import numbers

PROMPT = [5, 6, 7, 8, 9, 10, 11]


def _options(draw) -> dict:
    most = draw(st.integers(1, 5))
    options = {
        "max_denoising_steps": most,
        "max_new_tokens": draw(st.integers(1, 30)),
        "entropy_bound": draw(st.floats(0.0, 20.0)),
        "confidence_threshold": draw(st.sampled_from([0.0, 1.0, 9.0])),
        "stability_threshold": draw(st.integers(0, 2)),
        "t_min": draw(st.floats(0.05, 0.5)),
        "t_max": draw(st.floats(0.5, 1.5)),
    }
    if draw(st.booleans()):
        options["canvas_length"] = draw(st.integers(1, 8))
    return options


@st.composite
def requests(draw) -> tuple[list[list[int]], list[int], dict]:
    """One to three prompts of any length, a seed for each, and options for all."""
    prompts = st.lists(
        st.lists(st.integers(3, 300), min_size=1, max_size=70), min_size=1, max_size=3
    )
    rows = draw(prompts)
    seeds = [draw(st.integers(0, 2**64 - 1)) for _ in rows]
    return rows, seeds, _options(draw)


def _told(gemma: dg.Gemma, ids: list[int], seed: int, options: dict, **more) -> oracle.Answer:
    sampler = gemma.sampler.with_options(**options)
    return oracle.answer(
        gemma.model, ids, seed=seed, sampler=sampler, eos=sorted(gemma.eos), bias_V=gemma._bias_V,
        **more,
    )  # fmt: skip


def _same(reply: dg.Reply, told: oracle.Answer) -> None:
    assert list(reply.tokens) == told.tokens
    assert reply.finish_reason == told.reason
    assert list(reply.stats.steps) == [canvas.steps for canvas in told.canvases]
    assert reply.stats.revisions == sum(canvas.revisions for canvas in told.canvases)


@given(requests())
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_door_gives_the_oracle_s_answer(speaks_ids: dg.Gemma, asked) -> None:
    rows, seeds, options = asked
    told = [_told(speaks_ids, ids, seed, options) for ids, seed in zip(rows, seeds, strict=True)]
    for reply, one in zip(speaks_ids.generate_many(rows, seed=seeds, **options), told, strict=True):
        _same(reply, one)
    ids, seed, one = rows[0], seeds[0], told[0]
    _same(speaks_ids.generate(ids, seed=seed, **options), one)
    *_, last = speaks_ids.stream(ids, seed=seed, **options)
    assert isinstance(last, dg.Finished)
    _same(last.reply, one)
    steps = list(speaks_ids.steps(ids, seed=seed, **options))
    assert [step.before_BL[0].tolist() for step in steps] == [
        before for canvas in one.canvases for before in canvas.before
    ]
    ends = [step for step in steps if step.last]
    for step, canvas in zip(ends, one.canvases, strict=True):
        assert step.readout.entropy_BL[0].tolist() == canvas.entropies


@pytest.mark.parametrize("short", [3, 8, 13])
def test_the_end_of_the_context_is_the_oracle_s(speaks_ids: dg.Gemma, short: int) -> None:
    """Canvases become narrower before it."""
    longest = speaks_ids.model.config.max_position_embeddings
    ids, options = [5 + n % 200 for n in range(longest - short)], {"max_denoising_steps": 3}
    told = _told(speaks_ids, ids, 7, options)
    assert told.reason == "context" and len(told.tokens) == short
    _same(speaks_ids.generate(ids, seed=7, **options), told)


def test_end_marks_are_the_oracle_s(speaks_words: dg.Gemma) -> None:
    options, seen = {"max_denoising_steps": 4, "max_new_tokens": 80}, set()
    ids = [2, *range(40, 60)]
    for seed in range(6):
        told = _told(speaks_words, ids, seed, options)
        _same(speaks_words.generate(ids, seed=seed, **options), told)
        seen.add(told.reason)
    assert seen <= {"stop", "length"}


def test_a_rule_is_the_oracle_s(speaks_ids: dg.Gemma) -> None:
    options = {"max_denoising_steps": 5, "max_new_tokens": 16}

    def rule(readout) -> torch.Tensor:
        place = torch.arange(readout.entropy_BL.shape[1])
        return (readout.entropy_BL < 4.0) & (place % 3 > 0)

    told = _told(speaks_ids, PROMPT, 3, options, rule=rule)
    _same(speaks_ids.generate(PROMPT, seed=3, rule=rule, **options), told)
    assert told.tokens != _told(speaks_ids, PROMPT, 3, options).tokens


@dataclass(frozen=True)
class Margin:
    """Accepts where the likeliest token is well before the second."""

    needs = dg.Ask(top=2)

    def __call__(self, readout) -> torch.Tensor:
        first_BL, second_BL = readout.top_logprob_BLG.unbind(-1)
        return first_BL - second_BL >= 0.3


def test_a_rule_gets_what_it_needs_in_every_door(speaks_ids: dg.Gemma) -> None:
    options = {"max_denoising_steps": 4, "max_new_tokens": 16, "rule": Margin()}
    one = speaks_ids.generate(PROMPT, seed=3, **options)
    (many,) = speaks_ids.generate_many([PROMPT], seed=3, **options)
    *_, last = speaks_ids.stream(PROMPT, seed=3, **options)
    assert isinstance(last, dg.Finished)
    steps = list(speaks_ids.steps(PROMPT, seed=3, ask=dg.Ask(top=5), **options))
    assert one.tokens == many.tokens == last.reply.tokens
    assert one.tokens != speaks_ids.generate(PROMPT, seed=3, max_new_tokens=16).tokens
    best = [step.step.best_BL[0].tolist() for step in steps if step.last]
    assert list(one.tokens) == [token for canvas in best for token in canvas]
    assert steps[0].readout.top_BLG.shape[-1] == 5
    with pytest.raises(OptionError, match="a rule's `needs` must be an Ask, got 2"):
        wrong = Margin()
        object.__setattr__(wrong, "needs", 2)
        speaks_ids.generate(PROMPT, rule=wrong)


def test_the_shipped_model_answers_as_the_oracle() -> None:
    """Its layers run as compiled code on a CPU; canvases stop early, answers end by a mark."""
    gemma = dg.load()
    assert gemma.chat is not None
    prompt = gemma.chat.render([{"role": "user", "content": "What is 17 + 25?"}])
    for seed in range(3):
        told = _told(gemma, prompt.ids, seed, {})
        _same(gemma.generate(prompt.ids, seed=seed), told)
        assert told.reason == "stop"


@given(
    st.integers(0, 2**64 - 1), st.integers(0, 40), st.integers(0, 300), st.integers(1, 40),
    st.sampled_from([Purpose.DRAW, Purpose.NOISE]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_random_numbers_are_the_oracle_s(seed, canvas, step, width, purpose) -> None:
    found = numbers(seed, canvas, step, width, purpose).tolist()
    assert found == [oracle.uniform(seed, canvas, step, n, int(purpose)) for n in range(width)]


def test_philox_is_the_published_one() -> None:
    """The known answers of Random123, the authors' own library: zeros, ones, digits of pi."""
    ones = 0xFFFFFFFF
    for counter, seed, words in (
        ((0, 0, 0, 0), 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ((ones,) * 4, (ones << 32) | ones, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0x299F31D0 << 32) | 0xA4093822,
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ):
        assert oracle.philox(counter, seed) == words


@given(st.lists(st.floats(0, 6, width=32), min_size=1, max_size=60), st.floats(0, 30))
@settings(max_examples=200, deadline=None)
def test_the_bound_is_the_oracle_s(entropies: list[float], bound: float) -> None:
    """Ties, zeros and sums that lie on the bound among them."""
    near = float(np.float32(sum(sorted(entropies)[: len(entropies) // 2])))
    for edge in (bound, near, math.nextafter(near, 0)):
        found = within_bound(torch.tensor([entropies]), edge)[0].tolist()
        assert found == oracle.accepted(entropies, edge)


def test_a_prompt_is_cut_alike() -> None:
    assert oracle.CHUNK == PROMPT_CHUNK
