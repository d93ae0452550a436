"""The engine, whoever comes, goes, waits or breaks: each row is the oracle's, bit for bit."""

import gc
import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import diffusiongemma as dg
import oracle
from diffusiongemma.core.errors import InputError
from diffusiongemma.diffusion.commit import Commit
from diffusiongemma.engine import runner
from diffusiongemma.engine.engine import Engine, Look, Request

PROMPT = [5, 6, 7, 8, 9, 10, 11]
QUICK = {"max_denoising_steps": 4, "max_new_tokens": 24}


def _rule(readout) -> torch.Tensor:
    place = torch.arange(readout.entropy_BL.shape[1])
    return (readout.entropy_BL < 4.0) & (place % 3 > 0)


@st.composite
def options(draw) -> dict:
    given = {
        "max_denoising_steps": draw(st.integers(1, 4)),
        "max_new_tokens": draw(st.integers(1, 20)),
        "entropy_bound": draw(st.sampled_from([0.0, 0.3, 5.0])),
        "confidence_threshold": draw(st.sampled_from([0.0, 2.0, 9.0])),
        "stability_threshold": draw(st.integers(0, 2)),
        "t_min": draw(st.floats(0.05, 0.5)),
        "t_max": draw(st.floats(0.5, 1.5)),
    }
    if draw(st.booleans()):
        given["canvas_length"] = draw(st.integers(1, 11))
    return given


@st.composite
def requests(draw) -> dict:
    """A request, when it comes, how it is watched, and when it is aborted, if it is."""
    return {
        "ids": draw(st.lists(st.integers(3, 300), min_size=1, max_size=40)),
        "seed": draw(st.integers(0, 2**64 - 1)),
        "options": draw(options()),
        "rule": draw(st.sampled_from([None, None, _rule])),
        "look": draw(st.sampled_from(Look)),
        "comes": draw(st.integers(0, 6)),
        "gone": draw(st.none() | st.none() | st.integers(1, 9)),
    }


def _asked(gemma: dg.Gemma, one: dict) -> Request:
    return gemma._request(one["ids"], one["seed"], (), one["rule"], None, one["options"]).request


def _wanted(gemma: dg.Gemma, one: dict) -> oracle.Answer:
    return oracle.answer(
        gemma.model, one["ids"], seed=one["seed"], rule=one["rule"], eos=sorted(gemma.eos),
        sampler=gemma.sampler.with_options(**one["options"]), bias_V=gemma._bias_V,
    )  # fmt: skip


def _is(commits: list[Commit], wanted: oracle.Answer) -> None:
    for commit, canvas in zip(commits, wanted.canvases, strict=True):
        assert list(commit.tokens) == canvas.tokens and list(commit.whole) == canvas.whole
        assert (commit.steps, commit.revisions) == (canvas.steps, canvas.revisions)
        assert list(commit.entropy) == canvas.entropies[: len(canvas.tokens)]
    assert commits[-1].reason == wanted.reason


@given(st.lists(requests(), min_size=1, max_size=4), st.sampled_from([1, 5, 1024]))
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_mixture_is_the_oracle_s(speaks_ids: dg.Gemma, asked: list[dict], chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "PROMPT_CHUNK", chunk)
        engine, numbers = Engine(speaks_ids.model), {}
        told: dict[int, list] = {place: [] for place in range(len(asked))}
        for turn in range(400):
            for place, one in enumerate(asked):
                if one["comes"] == turn:
                    numbers[place] = engine.submit(_asked(speaks_ids, one), look=one["look"])
                if one["gone"] is not None and one["comes"] + one["gone"] == turn:
                    engine.abort(numbers[place])
            busy = engine.step()
            for place, number in numbers.items():
                told[place] += engine._told.get(number, ())
                if number in engine._told:
                    engine._told[number].clear()
            if turn > 6 and not busy:
                break
    assert not busy
    for place, one in enumerate(asked):
        if one["gone"] is not None:
            continue
        wanted = _wanted(speaks_ids, one)
        _is([item for item in told[place] if isinstance(item, Commit)], wanted)
        steps = [item for item in told[place] if not isinstance(item, Commit)]
        if one["look"] is Look.EVENTS:
            seen = [list(item.before) for item in steps]
        else:
            seen = [item.before_BL[0].tolist() for item in steps]
        if one["look"] is not Look.NOTHING:
            assert seen == [before for canvas in wanted.canvases for before in canvas.before]


def test_two_texts_of_one_seed_in_turns_with_replaced_canvases(speaks_ids: dg.Gemma) -> None:
    def walked(*prompts: list[int]) -> list[list[list[int]]]:
        told: list[list[list[int]]] = [[] for _ in prompts]
        walks = [speaks_ids.steps(one, seed=3, **QUICK) for one in prompts]
        for steps in zip(*walks, strict=True):
            for step, seen in zip(steps, told, strict=True):
                seen.append(step.before_BL[0].tolist())
                if step.number == 2:
                    step.replace(step.step.canvas_BL.flip(-1))
        return told

    one, other = walked(PROMPT, PROMPT[::-1])
    assert walked(PROMPT) == [one] and walked(PROMPT[::-1]) == [other] and one != other


def test_an_answer_within_the_steps_of_another(speaks_ids: dg.Gemma) -> None:
    alone = speaks_ids.generate([3, 4], seed=8, **QUICK).tokens
    plain = [step.before_BL for step in speaks_ids.steps(PROMPT, seed=1, **QUICK)]
    seen = []
    for step in speaks_ids.steps(PROMPT, seed=1, **QUICK):
        seen.append(step.before_BL)
        assert speaks_ids.generate([3, 4], seed=8, **QUICK).tokens == alone
    assert all(map(torch.equal, seen, plain)) and len(seen) == len(plain)


def test_a_canvas_is_replaced_before_the_next_step_whatever_is_asked_between(
    speaks_ids: dg.Gemma,
) -> None:
    """A row whose reader has not come back for more is not stepped by others."""

    def walked(between: bool) -> list[list[int]]:
        seen = []
        for step in speaks_ids.steps(PROMPT, seed=1, **QUICK):
            seen.append(step.before_BL[0].tolist())
            if between:
                speaks_ids.generate([3, 4], seed=8, **QUICK)
            step.replace(step.step.canvas_BL.flip(-1))
        return seen

    assert walked(between=True) == walked(between=False)


def test_steps_that_are_kept_stay_as_they_were(speaks_ids: dg.Gemma) -> None:
    kept = list(speaks_ids.steps(PROMPT, seed=1, **QUICK))
    for number, step in enumerate(speaks_ids.steps(PROMPT, seed=1, **QUICK)):
        for name in ("canvas_BL", "best_BL", "entropy_BL", "accepted_BL", "revised_BL"):
            assert torch.equal(getattr(step.step, name), getattr(kept[number].step, name)), name
        assert torch.equal(step.hidden_BLD, kept[number].hidden_BLD)


def test_threads_get_their_own(speaks_ids: dg.Gemma) -> None:
    prompts = [PROMPT[: n + 1] for n in range(6)]
    wanted = [speaks_ids.generate(one, seed=9, **QUICK).tokens for one in prompts]
    found: list = [None] * 6

    def ask(place: int) -> None:
        if place % 2:
            *_, last = speaks_ids.stream(prompts[place], seed=9, **QUICK)
            found[place] = last.reply.tokens
        else:
            found[place] = speaks_ids.generate(prompts[place], seed=9, **QUICK).tokens

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == wanted


def test_readers_that_are_gone_leave_nothing(ids_folder) -> None:
    gemma = dg.load(ids_folder)
    engine = gemma._engine
    for number in range(3):
        stream = gemma.stream(PROMPT, seed=number, **QUICK)
        if number:
            next(stream)
        if number == 1:
            stream.close()
        del stream
    steps = gemma.steps(PROMPT, seed=1, **QUICK)
    next(steps)
    del steps
    gc.collect()
    gemma.generate(PROMPT, seed=1, **QUICK)
    assert not engine._scheduler.rows and not engine._runner.seats and not engine._told
    assert engine._runner._drafts is None


class BrokenError(Exception):
    pass


def _breaks(model, name: str, at: int, error: type[BaseException]):
    """A method that fails at one of its calls, after it has done its work."""
    true, calls = getattr(model, name), []

    def once(*given, **options):
        out = true(*given, **options)
        calls.append(name)
        if len(calls) == at:
            raise error("here")
        return out

    return once


@pytest.mark.parametrize("error", [BrokenError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize(
    ("where", "at"), [("denoise", 1), ("denoise", 3), ("encode", 1), ("encode", 2), ("readout", 6)]
)
def test_after_a_broken_step_the_others_are_what_they_are(
    speaks_ids: dg.Gemma, monkeypatch, error: type[BaseException], where: str, at: int
) -> None:
    """A stream and two answers; the step breaks in the hands of one, and the others go on."""
    asked = [
        {"ids": PROMPT, "seed": 1, "options": QUICK, "rule": None},
        {"ids": PROMPT[::-1], "seed": 2, "options": QUICK | {"canvas_length": 5}, "rule": _rule},
    ]
    model, engine = speaks_ids.model, Engine(speaks_ids.model)
    numbers = [engine.submit(_asked(speaks_ids, one), look=Look.EVENTS) for one in asked]
    told: list[list] = [[], []]
    with monkeypatch.context() as patch:
        patch.setattr(model, where, _breaks(model, where, at, error))
        with pytest.raises(error):
            while engine.step():
                pass
    while (item := engine.take(numbers)) is not None:
        told[item[0]].append(item[1])
    for seen, one in zip(told, asked, strict=True):
        wanted = _wanted(speaks_ids, one)
        _is([item for item in seen if isinstance(item, Commit)], wanted)
        befores = [list(item.before) for item in seen if not isinstance(item, Commit)]
        assert befores == [before for canvas in wanted.canvases for before in canvas.before]


@pytest.mark.usefixtures("plain")
def test_a_context_that_was_being_written_is_read_again(speaks_ids: dg.Gemma, monkeypatch) -> None:
    """As when a step breaks between two layers of a commit."""
    engine, one = Engine(speaks_ids.model), {"ids": PROMPT * 3, "seed": 4, "rule": None}
    one["options"] = QUICK
    number = engine.submit(_asked(speaks_ids, one))
    block, calls = speaks_ids.model.blocks[1], []
    true = type(block).forward

    def torn(self, *given):
        calls.append(self)
        if calls.count(block) == 6 and self is block:
            raise KeyboardInterrupt
        return true(self, *given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(block), "forward", torn)
        while engine.step():
            pass
    commits = []
    while (item := engine.take([number])) is not None:
        commits.append(item[1])
    _is(commits, _wanted(speaks_ids, one))


def test_a_replaced_canvas_cannot_be_repeated(speaks_ids: dg.Gemma, monkeypatch) -> None:
    steps = speaks_ids.steps(PROMPT, seed=1, **QUICK)
    step = next(steps)
    step.replace(step.step.canvas_BL.flip(-1))
    engine, model = speaks_ids._engine, speaks_ids.model
    (row,) = engine._scheduler.rows.values()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model, "denoise", _breaks(model, "denoise", 1, KeyboardInterrupt))
        row.wanted = True
        engine.step()
    with pytest.raises(InputError, match="interrupted after its canvas had been replaced"):
        next(steps)


def test_a_rule_that_fails_ends_its_own_row(speaks_ids: dg.Gemma) -> None:
    calls = []

    def fails(readout) -> torch.Tensor:
        calls.append(readout)
        if len(calls) == 3:
            raise ZeroDivisionError("of the rule")
        return readout.entropy_BL < 4.0

    engine = Engine(speaks_ids.model)
    good = {"ids": PROMPT, "seed": 1, "options": QUICK, "rule": _rule}
    bad = {"ids": PROMPT[::-1], "seed": 2, "options": QUICK, "rule": fails}
    numbers = [engine.submit(_asked(speaks_ids, one)) for one in (bad, good)]
    commits = []
    while (item := engine.take(numbers[1:])) is not None:
        commits.append(item[1])
    _is(commits, _wanted(speaks_ids, good))
    with pytest.raises(ZeroDivisionError, match="of the rule"):
        engine.take(numbers[:1])
    assert engine.take(numbers) is None


def test_one_rule_of_two_rows_that_fails_on_one(speaks_ids: dg.Gemma) -> None:
    """They share a call; the other goes on."""

    def picky(readout) -> torch.Tensor:
        if int(readout.best_BL[0, 0]) == first:
            raise ValueError("not this one")
        return readout.entropy_BL < 4.0

    walks = [next(speaks_ids.steps(PROMPT, seed=seed, **QUICK)) for seed in (1, 2)]
    first, second = (int(step.readout.best_BL[0, 0]) for step in walks)
    assert first != second
    engine, options = Engine(speaks_ids.model), QUICK | {"max_denoising_steps": 1}
    asked = [{"ids": PROMPT, "seed": s, "options": options, "rule": picky} for s in (1, 2)]
    numbers = [engine.submit(_asked(speaks_ids, one)) for one in asked]
    engine.step()
    engine.step()
    with pytest.raises(ValueError, match="not this one"):
        engine.take(numbers[:1])
    place, item = engine.take(numbers[1:])
    assert place == 0 and isinstance(item, Commit) and item.canvas == 0


def test_one_that_is_refused_leaves_none_of_the_others(speaks_words: dg.Gemma) -> None:
    engine = speaks_words._engine
    good = speaks_words._request("hello", 1, (), None, None, dict(QUICK)).request
    image = speaks_words.model.config.image_token_id
    bad = Request(ids=(3, image), images=(), recipe=good.recipe)
    with pytest.raises(InputError, match="1 image placeholder tokens"):
        engine.answer([good, good, bad])
    speaks_words.generate("hello", seed=1, **QUICK)
    assert not engine._scheduler.rows and not engine._runner.seats


def test_a_rule_that_asks_the_model_is_told_not_to(speaks_ids: dg.Gemma) -> None:
    def asks(readout) -> torch.Tensor:
        speaks_ids.generate(PROMPT, seed=1, **QUICK)
        return readout.entropy_BL < 4.0

    with pytest.raises(InputError, match="a rule cannot ask the model whose step it decides"):
        speaks_ids.generate(PROMPT, seed=1, rule=asks, **QUICK)
    assert not speaks_ids._engine._scheduler.rows


def test_a_caller_s_mode_is_his_own(speaks_ids: dg.Gemma) -> None:
    """Begun in inference mode, gone on with outside of it; and gradients stay as they were."""
    wanted = speaks_ids.generate(PROMPT, seed=1, **QUICK).tokens
    with torch.inference_mode():
        stream = speaks_ids.stream(PROMPT, seed=1, **QUICK)
        next(stream)
    with torch.enable_grad():
        *_, last = stream
        assert torch.is_grad_enabled()
    assert last.reply.tokens == wanted
