"""The door, on random checkpoints: seeds, exact lengths, streams, rows together, research."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import diffusiongemma as dg
from diffusiongemma.core.errors import CheckpointError, InputError, OptionError

QUICK = {"max_denoising_steps": 4}
PROMPT = [5, 6, 7, 8, 9, 10, 11]


def test_the_same_seed_gives_the_same_answer(speaks_ids: dg.Gemma) -> None:
    one, same, other = (
        speaks_ids.generate(PROMPT, seed=seed, max_new_tokens=20, **QUICK) for seed in (3, 3, 4)
    )
    assert one.tokens == same.tokens and one.stats.steps == same.stats.steps
    assert one.tokens != other.tokens
    drawn = speaks_ids.generate(PROMPT, max_new_tokens=20, **QUICK)
    again = speaks_ids.generate(PROMPT, seed=drawn.stats.seed, max_new_tokens=20, **QUICK)
    assert drawn.tokens == again.tokens


@given(
    st.lists(st.lists(st.integers(3, 300), min_size=1, max_size=60), min_size=2, max_size=4),
    st.lists(st.integers(0, 2**40), min_size=4, max_size=4),
    st.integers(1, 30),
    st.floats(0.0, 20.0),
)
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_rows_together_answer_as_alone(speaks_ids, prompts, seeds, limit, bound) -> None:
    """Bitwise: one differing bit in a logit would end in another text within a few steps."""
    options = {"max_new_tokens": limit, "entropy_bound": bound, "confidence_threshold": 1.0} | QUICK
    together = speaks_ids.generate_many(prompts, seed=seeds[: len(prompts)], **options)
    for prompt, seed, reply in zip(prompts, seeds, together, strict=False):
        alone = speaks_ids.generate(prompt, seed=seed, **options)
        assert reply.tokens == alone.tokens
        assert reply.finish_reason == alone.finish_reason
        assert reply.stats.steps == alone.stats.steps
        assert reply.stats.revisions == alone.stats.revisions


def test_rows_together_are_bitwise_equal_in_every_step(speaks_ids: dg.Gemma) -> None:
    from diffusiongemma.engine.engine import Look

    prompts = [PROMPT, [3], PROMPT * 9]
    alone = [list(speaks_ids.steps(p, seed=1, max_new_tokens=16, **QUICK)) for p in prompts]
    requests = [
        speaks_ids._request(p, 1, (), None, None, {"max_new_tokens": 16} | QUICK).request
        for p in prompts
    ]
    seen: list[list] = [[], [], []]
    for row, item in speaks_ids._engine.answer(requests, look=Look.STEPS):
        if hasattr(item, "hidden_BLD"):
            seen[row].append(item)
    for mine, theirs in zip(alone, seen, strict=True):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            assert torch.equal(a.hidden_BLD, b.hidden_BLD)
            assert torch.equal(a.readout.entropy_BL, b.readout.entropy_BL)
            assert torch.equal(a.step.canvas_BL, b.step.canvas_BL)


@pytest.mark.parametrize("limit", [1, 7, 8, 9, 16, 23])
def test_max_new_tokens_is_exact(speaks_ids: dg.Gemma, limit: int) -> None:
    reply = speaks_ids.generate(PROMPT, seed=3, max_new_tokens=limit, **QUICK)
    assert len(reply.tokens) == limit == reply.stats.new_tokens
    assert reply.finish_reason == "length"
    assert len(reply.stats.steps) == -(-limit // 8)


def test_answers_go_on_to_the_end_of_the_context(speaks_ids: dg.Gemma) -> None:
    longest = speaks_ids.model.config.max_position_embeddings
    ids = [5 + n % 200 for n in range(longest - 21)]
    reply = speaks_ids.generate(ids, seed=1, **QUICK)
    assert reply.finish_reason == "context"
    assert len(reply.tokens) == 21 and len(reply.stats.steps) == 3  # canvases of 8, 8 and 5


def test_placeholders_of_images_are_never_in_an_answer(speaks_ids: dg.Gemma) -> None:
    config = speaks_ids.model.config
    banned = {config.image_token_id, config.boi_token_id, config.eoi_token_id}
    noise, tokens = set(), set()
    for seed in range(8):
        for step in speaks_ids.steps(PROMPT, seed=seed, max_new_tokens=24, **QUICK):
            noise |= set(step.before_BL[0].tolist())
            tokens |= set(step.step.best_BL[0].tolist()) | set(step.readout.token_BL[0].tolist())
    assert banned & noise  # noise is drawn from the whole vocabulary, as in training
    assert not banned & tokens


def test_a_stream_tells_every_step_and_ends_with_the_reply(speaks_ids: dg.Gemma) -> None:
    events = list(speaks_ids.stream(PROMPT, seed=3, max_new_tokens=20, **QUICK))
    *middle, last = events
    assert isinstance(last, dg.Finished)
    refined = [event for event in middle if isinstance(event, dg.Refined)]
    committed = [event for event in middle if isinstance(event, dg.Committed)]
    assert len(refined) == sum(last.reply.stats.steps)
    assert tuple(token for event in committed for token in event.tokens) == last.reply.tokens
    assert [event.canvas for event in committed] == [0, 1, 2]
    assert refined[-1].best[:4] == last.reply.tokens[16:]
    assert sum(sum(event.revised) for event in refined) == last.reply.stats.revisions
    assert (
        last.reply.tokens == speaks_ids.generate(PROMPT, seed=3, max_new_tokens=20, **QUICK).tokens
    )


def test_a_researcher_sees_every_step_and_may_replace_the_canvas(speaks_ids: dg.Gemma) -> None:
    ask = dg.Ask(top=2)
    seen = []
    for step in speaks_ids.steps(PROMPT, seed=3, max_new_tokens=8, ask=ask, **QUICK):
        seen.append(step)
        if step.number == 2:
            step.replace([42] * 8)
    assert [step.number for step in seen] == [1, 2, 3, 4]
    assert seen[0].hidden_BLD.shape == (1, 8, 64)
    assert seen[0].readout.top_BLG is not None and seen[0].readout.top_BLG.shape == (1, 8, 2)
    assert torch.equal(seen[1].before_BL, seen[0].step.canvas_BL)
    assert seen[2].before_BL.tolist() == [[42] * 8]
    assert seen[0].temperature == pytest.approx(0.8)
    logits = speaks_ids.model.logits(seen[0].hidden_BLD)
    assert logits.shape == (1, 8, 320)


@pytest.mark.parametrize(
    ("canvas", "message"),
    [
        ([1, 2], r"a canvas has 8 token ids here, got \(1, 2\)"),
        ([999] * 8, "must lie in 0 to 319, got 999"),
        ([True] * 8, r"a canvas has 8 token ids here, got \(1, 8\) of torch.bool"),
        (torch.ones(1, 8).long()[:, ::2], r"got \(1, 4\)"),
        ([2**70] * 8, "a canvas has 8 token ids here, got list .*give a list or a tensor of whole"),
    ],
)
def test_a_wrong_canvas_is_refused(speaks_ids: dg.Gemma, canvas, message: str) -> None:
    step = next(iter(speaks_ids.steps(PROMPT, seed=3, **QUICK)))
    with pytest.raises(InputError, match=message):
        step.replace(canvas)


def test_a_rule_of_one_s_own_decides_what_is_accepted(speaks_ids: dg.Gemma) -> None:
    class Nothing:
        def __call__(self, readout: dg.Readout) -> torch.Tensor:
            return torch.zeros_like(readout.token_BL, dtype=torch.bool)

    steps = list(speaks_ids.steps(PROMPT, seed=3, rule=Nothing(), max_new_tokens=8, **QUICK))
    assert not any(step.step.accepted_BL.any() for step in steps)


def test_a_rule_that_answers_wrongly_is_told_so(speaks_ids: dg.Gemma) -> None:
    class Floats:
        def __call__(self, readout: dg.Readout):
            return readout.entropy_BL

    with pytest.raises(
        OptionError, match=r"bool tensor of shape \(1, 8\).*got \(1, 8\) of torch.fl"
    ):
        speaks_ids.generate(PROMPT, seed=1, rule=Floats(), **QUICK)


def test_the_stats_add_up(speaks_ids: dg.Gemma) -> None:
    stats = speaks_ids.generate(PROMPT, seed=3, max_new_tokens=20, **QUICK).stats
    assert stats.prompt_tokens == 7 and stats.new_tokens == 20 and stats.steps == (4, 4, 4)
    assert stats.steps_per_canvas == 4
    assert stats.tokens_per_forward == pytest.approx(20 / (12 + 2))  # two commits, not the last
    assert stats.tokens_per_second == pytest.approx(20 / stats.seconds)
    assert {"seed", "loop", "tokens_per_forward"} <= set(stats.as_dict())


def test_time_that_a_reader_takes_is_not_the_answers(speaks_ids: dg.Gemma) -> None:
    kept, begun = 0.0, time.perf_counter()
    events = speaks_ids.stream(PROMPT, seed=3, max_new_tokens=20, **QUICK)
    for event in events:
        if isinstance(event, dg.Finished):
            whole = time.perf_counter() - begun
            assert 0 < event.reply.stats.seconds <= whole - kept < whole
        given = time.perf_counter()
        time.sleep(0.01)
        kept += time.perf_counter() - given


@pytest.mark.parametrize(
    ("tokens", "loops"),
    [
        ([7] * 16, True),
        ([7] * 15, False),
        ([1, 2, 3] * 8, True),
        (list(range(100)), False),
        ([*range(50), *[4, 5, 6, 7, 8] * 4], True),
        ([*[4, 5, 6, 7, 8] * 4, *range(50)], False),
        (list(range(40)) * 4, False),  # a phrase of forty is a refrain, not a loop
        ([], False),
    ],
)
def test_a_loop_is_noticed(tokens: list[int], loops: bool) -> None:
    from diffusiongemma.engine.reply import repeats

    assert repeats(tokens) is loops


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ([], {}, InputError, "a prompt must be text|no tokenizer|empty"),
        ([5, 999], {}, InputError, "token id 999 is not in the vocabulary; ids lie in 0 to 319"),
        ([5, -1], {}, InputError, "token id -1 is not in the vocabulary"),
        (
            [5] * 600,
            {},
            InputError,
            "the prompt has 600 tokens, and this model's context holds 512",
        ),
        ("hello", {}, InputError, "no tokenizer.json, so a prompt must be a list of token ids"),
        (
            PROMPT,
            {"system": "be brief"},
            OptionError,
            "system has no meaning for a prompt of token",
        ),
        (PROMPT, {"think": True}, OptionError, "think has no meaning"),
        (PROMPT, {"stop": ["a"]}, OptionError, "stop needs a tokenizer"),
        (PROMPT, {"seed": -1}, OptionError, "a seed must be a whole number from 0 to"),
        (PROMPT, {"seed": 2**64}, OptionError, "a seed must be a whole number from 0"),
        (PROMPT, {"cnavas_length": 8}, OptionError, "did you mean 'canvas_length'"),
        (
            PROMPT,
            {"canvas_length": 999},
            OptionError,
            "canvas_length 999 is longer than the context",
        ),
        (torch.ones(2, 3).long(), {}, InputError, r"one row of whole numbers, got shape \(2, 3\)"),
        (torch.ones(3), {}, InputError, "of torch.float32; give several prompts to generate_many"),
        (np.ones(3), {}, InputError, "one row of whole numbers, got shape .* of float64"),
        (np.ones(3, bool), {}, InputError, "one row of whole numbers, got shape .* of bool"),
        (np.ones((1, 1, 3), int), {}, InputError, r"got shape \(1, 1, 3\)"),
        ([[5, 6], [7]], {}, InputError, "no tokenizer.json, so a prompt must be a list of token"),
        ([319, 319], {}, InputError, "2 image placeholder tokens, but its 0 image"),
    ],
)
def test_bad_requests_say_what_got_do(speaks_ids, prompt, options, error, message: str) -> None:
    with pytest.raises(error, match=message):
        speaks_ids.generate(prompt, **options)


def test_a_damaged_checkpoint_says_so_at_the_first_step(ids_folder) -> None:
    broken = dg.load(ids_folder)
    broken.model.norm.weight.data = broken.model.norm.weight.data.clone()
    broken.model.norm.weight.data[3] = float("nan")
    with pytest.raises(CheckpointError, match="predictions are not numbers at step 1 of canvas 0"):
        broken.generate(PROMPT, seed=1)


def test_bad_requests_fail_before_the_first_event(speaks_ids: dg.Gemma) -> None:
    """At the call, not at the first `next`."""
    with pytest.raises(InputError):
        speaks_ids.stream([5, 999])
    with pytest.raises(OptionError):
        speaks_ids.steps(PROMPT, nonsense=1)


def test_images_for_a_checkpoint_that_speaks_ids(speaks_ids: dg.Gemma) -> None:
    from PIL import Image

    picture = Image.new("RGB", (40, 40), "orange")
    mark = speaks_ids.model.config.image_token_id
    options = {"images": [picture], "image_tokens": 70, "max_new_tokens": 8} | QUICK
    reply = speaks_ids.generate([5, *[mark] * 64, 6], **options)
    assert reply.stats.prompt_tokens == 66
    with pytest.raises(InputError, match=r"3 image placeholder tokens, but its 1 image.* make 64"):
        speaks_ids.generate([5, mark, mark, mark], **options)


def test_many_seeds_need_as_many_prompts(speaks_ids: dg.Gemma) -> None:
    with pytest.raises(OptionError, match="2 seeds were given for 1 prompts"):
        speaks_ids.generate_many([PROMPT], seed=[1, 2])
    with pytest.raises(InputError, match="must be a list of prompts, got one text"):
        speaks_ids.generate_many("hi")
    assert speaks_ids.generate_many([]) == []


@pytest.mark.parametrize(
    "prompt",
    [
        tuple(PROMPT),
        range(5, 12),
        [PROMPT],
        np.array(PROMPT),
        np.array([PROMPT], np.int32),
        [np.int64(one) for one in PROMPT],
        list(torch.tensor(PROMPT)),
        torch.tensor(PROMPT),
        torch.tensor([PROMPT]),
        [torch.tensor(PROMPT)],
        torch.tensor(PROMPT).to(torch.uint8),
    ],
)
def test_ids_in_every_shape(speaks_ids: dg.Gemma, prompt) -> None:
    from diffusiongemma.engine.recorder import record

    reply = speaks_ids.generate(prompt, seed=3, max_new_tokens=8, **QUICK)
    options = {"seed": np.uint64(3), "max_new_tokens": np.int64(8)}
    assert reply.tokens == speaks_ids.generate(PROMPT, **options, **QUICK).tokens
    assert type(reply.stats.seed) is int
    about = record(speaks_ids, prompt, seed=np.int64(3), max_new_tokens=1).about
    assert type(about.seed) is int
    assert about.prompt == "token ids 5 6 7 8 9 10 11"


def test_seeds_of_numpy(speaks_ids: dg.Gemma) -> None:
    plain = speaks_ids.generate_many([PROMPT] * 2, seed=[3, 4], max_new_tokens=8, **QUICK)
    for seeds in (np.array([3, 4]), [np.int64(3), torch.tensor(4)], torch.tensor([3, 4])):
        made = speaks_ids.generate_many([PROMPT] * 2, seed=seeds, max_new_tokens=8, **QUICK)
        assert [reply.tokens for reply in made] == [reply.tokens for reply in plain]
        json.dumps([reply.stats.as_dict() for reply in made])


def test_wrong_types_say_what_got_do(ids_folder) -> None:
    """In a process of its own: here the shape checks of the tests would speak first."""
    script = """
import sys, diffusiongemma as dg
gemma = dg.load(sys.argv[1])
for prompt, options in (
    (3.5, {}), ([5], {"seed": 1.5}), ([5], {"max_new_tokens": "many"}), ([5], {"seed": True}),
    ([True, 5], {}), ([5], {"stop": 5}),
):
    try:
        gemma.generate(prompt, **options)
    except dg.DiffusionGemmaError as error:
        print(error)
for canvas in (None, "12345678", [None] * 8):
    try:
        next(gemma.steps([5], max_denoising_steps=2)).replace(canvas)
    except dg.DiffusionGemmaError as error:
        print(error)
import numpy as np
print(dg.SamplerConfig(max_denoising_steps=np.int64(3), t_max=np.float32(0.5)))
"""
    command = [sys.executable, "-c", script, str(ids_folder)]
    env = os.environ | {"PYTHONPATH": str(Path(dg.__file__).parents[1])}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    said = run.stdout.splitlines()
    assert said[0].startswith("this checkpoint has no tokenizer.json, so a prompt must be a list")
    assert said[1] == "a seed must be a whole number from 0 to 2**64 - 1, got 1.5"
    assert said[2] == "max_new_tokens must be a whole number of at least 1, got 'many'"
    for line, kind in zip(said[6:9], ("NoneType", "str", "list"), strict=True):
        assert line.startswith(f"a canvas has 8 token ids here, got {kind} (")
    assert said[9].startswith("SamplerConfig(max_denoising_steps=3, entropy_bound=0.1, t_max=0.5")
    assert said[3] == "a seed must be a whole number from 0 to 2**64 - 1, got True"
    assert said[4].endswith("must be a list of token ids, got list")
    assert said[5] == "stop must be a text or a list of texts, none of them empty, got 5"


def test_without_a_name_the_small_model_opens() -> None:
    gemma = dg.load()
    reply = gemma.generate("Reverse: abc", seed=1)
    assert reply.finish_reason == "stop" and reply.text.isascii() and 1 <= len(reply.text) <= 32
    with pytest.raises(OptionError, match="has no revision 'main'; omit revision"):
        dg.load(revision="main")
