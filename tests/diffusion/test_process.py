"""The process by hand-made numbers: canvases of four tokens, no network."""

import json
import math

import numpy as np
import pytest
import torch

from diffusiongemma.core.errors import OptionError
from diffusiongemma.diffusion.commit import cut
from diffusiongemma.diffusion.config import HELP, SamplerConfig
from diffusiongemma.diffusion.drafts import BROKEN, DONE, Drafts
from diffusiongemma.diffusion.step import refine
from diffusiongemma.diffusion.temperature import temperature
from diffusiongemma.kernels.ops import Ops
from diffusiongemma.kernels.readout import Readout
from diffusiongemma.kernels.refine import within_bound

OPS = Ops(name="reference")


def said(token, best, entropy) -> Readout:
    """What a network might say of one row."""
    return Readout(
        token_BL=torch.tensor([token]),
        best_BL=torch.tensor([best]),
        entropy_BL=torch.tensor([entropy]),
        soft_BLD=torch.zeros(1, len(token), 2),
    )


def start(width: int = 4, **options) -> Drafts:
    """One canvas before its first step."""
    drafts = Drafts(100, torch.zeros(1, width, 2))
    drafts.open([SamplerConfig(**options)], [0])
    return drafts


def test_temperature_starts_at_t_max_and_ends_above_t_min() -> None:
    assert temperature(1, 48, 0.4, 0.8) == pytest.approx(0.8)
    assert temperature(48, 48, 0.4, 0.8) == pytest.approx(0.4 + 0.4 / 48)
    assert temperature(1, 1, 0.4, 0.8) == pytest.approx(0.8)


def test_accepts_lowest_entropies_while_those_before_fit_the_bound() -> None:
    entropy = torch.tensor([[0.5, 0.04, 0.06, 0.01]])
    # In order 0.01, 0.04, 0.06, 0.5 the sums before each are 0, 0.01, 0.05, 0.11.
    assert within_bound(entropy, 0.1).tolist() == [[False, True, True, True]]
    assert within_bound(entropy, 0.12).tolist() == [[True, True, True, True]]
    assert within_bound(entropy, 0.0).tolist() == [[False, False, False, True]]


def test_the_most_certain_position_always_passes() -> None:
    assert within_bound(torch.tensor([[9.0, 8.0, 9.0]]), 0.0).tolist() == [[False, True, False]]


def test_rows_are_accepted_by_themselves() -> None:
    entropy = torch.tensor([[0.0, 5.0], [5.0, 0.0]])
    assert within_bound(entropy, 0.1).tolist() == [[True, True], [True, True]]
    entropy = torch.tensor([[0.2, 5.0], [5.0, 0.2]])
    assert within_bound(entropy, 0.1).tolist() == [[True, False], [False, True]]


def test_rejected_positions_become_noise_also_if_accepted_before() -> None:
    drafts, noise = start(), torch.tensor([[70, 71, 72, 73]])
    first = drafts.canvas_BL.clone()
    refine(drafts, said([1, 2, 3, 4], [1, 2, 3, 4], [0.0, 0.0, 3.0, 3.0]), noise, OPS)
    assert torch.equal(drafts.before_BL, first)
    # The first uncertain position still passes: nothing uncertain stands before it.
    assert drafts.canvas_BL.tolist() == [[1, 2, 3, 73]]
    refine(drafts, said([5, 6, 7, 8], [1, 2, 3, 4], [3.0, 3.0, 0.0, 0.0]), noise, OPS)
    assert drafts.before_BL.tolist() == [[1, 2, 3, 73]]
    assert drafts.canvas_BL.tolist() == [[5, 71, 7, 8]]


def test_revisions_count_from_the_second_step() -> None:
    drafts, noise = start(), torch.zeros(1, 4, dtype=torch.long)
    refine(drafts, said([1, 2, 3, 4], [1, 2, 3, 4], [0.0] * 4), noise, OPS)
    assert not drafts.revised_BL.any()
    refine(drafts, said([1, 2, 3, 4], [1, 9, 3, 9], [0.0] * 4), noise, OPS)
    assert drafts.revised_BL.tolist() == [[False, True, False, True]]
    assert drafts.revisions_B.tolist() == [2]


@pytest.mark.parametrize(
    ("threshold", "entropy", "steps"), [(0, 0.0, 1), (1, 0.0, 2), (3, 0.0, 4), (1, 0.01, None)]
)
def test_stops_when_stable_and_sure(threshold: int, entropy: float, steps: int | None) -> None:
    drafts, noise = start(stability_threshold=threshold), torch.zeros(1, 4, dtype=torch.long)
    stopped = None
    for number in range(1, 8):
        refine(drafts, said([1] * 4, [1] * 4, [entropy] * 4), noise, OPS)
        if int(drafts.flags_B) == DONE and stopped is None:
            stopped = number
    assert stopped == steps


def test_confidence_is_the_mean_over_the_whole_canvas_and_strict() -> None:
    noise = torch.zeros(1, 4, dtype=torch.long)
    for entropy, done in (([0.0, 0.0, 0.0, 0.9], True), ([0.25] * 4, False), ([1.0] * 4, False)):
        drafts = start(stability_threshold=0, confidence_threshold=0.25)
        refine(drafts, said([1] * 4, [1] * 4, entropy), noise, OPS)
        assert (int(drafts.flags_B) == DONE) is done


def test_a_change_starts_the_count_again() -> None:
    drafts, noise = start(1, stability_threshold=2), torch.zeros(1, 1, dtype=torch.long)
    done = []
    for best in (5, 5, 6, 6, 6):
        refine(drafts, said([best], [best], [0.0]), noise, OPS)
        done.append(int(drafts.flags_B) == DONE)
    assert done == [False, False, False, False, True]


def test_what_is_no_number_is_flagged() -> None:
    drafts, noise = start(), torch.zeros(1, 4, dtype=torch.long)
    refine(drafts, said([1] * 4, [1] * 4, [0.0, math.nan, 0.0, 0.0]), noise, OPS)
    assert int(drafts.flags_B) & BROKEN


OPTIONS = (
    {"entropy_bound": 0.0, "t_min": 0.1, "t_max": 1.3, "max_denoising_steps": 7},
    {"entropy_bound": 9.0, "stability_threshold": 0, "confidence_threshold": 2.0},
    {"t_min": 0.3, "t_max": 0.3, "stability_threshold": 3},
)


def _pushed(drafts: Drafts) -> Drafts:
    """Three steps of predictions that depend on the canvas alone."""
    for step in range(3):
        drafts.step_B += 1
        noise_BL = drafts.draws()[1]
        entropy_BL = (drafts.canvas_BL % 7) / 5 + 0.01
        best_BL = drafts.canvas_BL % (3 + step)
        read = Readout(
            token_BL=best_BL + 1, best_BL=best_BL, entropy_BL=entropy_BL,
            soft_BLD=torch.zeros(*best_BL.shape, 2),
        )  # fmt: skip
        refine(drafts, read, noise_BL, OPS)
    return drafts


def test_options_are_each_row_s_own() -> None:
    """Rows with other options and seeds in one step, whole or in part, are the rows alone."""
    configs = [SamplerConfig(**options) for options in OPTIONS]
    together, parts = (Drafts(100, torch.zeros(3, 6, 2)) for _ in "12")
    for drafts in (together, parts):
        drafts.open(configs, [4, 5, 6])
    _pushed(together)
    for rows in ([1], [2, 0]):
        part = parts.part(rows, 6)
        parts.put(rows, _pushed(part))
    for row, config in enumerate(configs):
        alone = Drafts(100, torch.zeros(1, 6, 2))
        alone.open([config], [4 + row])
        _pushed(alone)
        for drafts in (together, parts):
            assert drafts.temperature_B()[row] == alone.temperature_B()[0]
            for mine, all_of_them in zip(alone.state(), drafts.state(), strict=True):
                assert torch.equal(mine[0], all_of_them[row])


@pytest.mark.parametrize("t_min", [0.0, 0.1, 0.4, 1 / 3])
def test_temperatures_on_tensors_are_pythons_rounded_once(t_min: float) -> None:
    drafts = start(t_min=t_min, t_max=0.8, max_denoising_steps=48)
    for step in range(1, 49):
        drafts.step_B.fill_(step)
        expected = np.float32(temperature(step, 48, t_min, 0.8))
        assert drafts.temperature_B().tolist() == [float(expected)]


def test_a_row_that_begins_anew_forgets_and_others_do_not() -> None:
    drafts = Drafts(100, torch.zeros(2, 6, 2))
    drafts.open([SamplerConfig()] * 2, [8, 8])
    first = drafts.canvas_BL[0].clone()
    _pushed(drafts).expected_BLD.fill_(1.0)
    other = [one[1].clone() for one in drafts.state()]
    drafts.begin(torch.tensor([True, False]))
    assert drafts.canvas_B.tolist() == [1, 0] and drafts.step_B.tolist() == [0, 3]
    assert drafts.best_BL[0].tolist() == [-1] * 6 and not drafts.expected_BLD[0].any()
    assert drafts.revisions_B[0] == drafts.repeats_B[0] == 0
    assert not torch.equal(drafts.canvas_BL[0], first)
    for before, now in zip(other, drafts.state(), strict=True):
        assert torch.equal(before, now[1])


@pytest.mark.parametrize(
    ("whole", "limit", "made", "tokens", "reason"),
    [
        ((5, 6, 7), None, 0, (5, 6, 7), None),
        ((5, 1, 7), None, 0, (5,), "stop"),
        ((1, 6, 7), None, 9, (), "stop"),
        ((5, 6, 2), None, 0, (5, 6), "stop"),
        ((5, 6, 7), 2, 0, (5, 6), "length"),
        ((5, 6, 7), 3, 0, (5, 6, 7), "length"),
        ((5, 6, 7), 4, 0, (5, 6, 7), None),
        ((5, 6, 7), 10, 8, (5, 6), "length"),
        ((5, 6, 1), 2, 0, (5, 6), "stop"),
        ((5, 6, 1), 1, 0, (5,), "length"),
    ],
)
def test_answers_end_exactly(whole, limit, made, tokens, reason) -> None:
    assert cut(whole, frozenset({1, 2}), limit, made) == (tokens, reason)


def test_defaults_are_those_of_the_released_model() -> None:
    config = SamplerConfig.from_generation_config({})
    assert (config.max_denoising_steps, config.entropy_bound) == (48, 0.1)
    assert (config.t_min, config.t_max) == (0.4, 0.8)
    assert (config.stability_threshold, config.confidence_threshold) == (1, 0.005)
    assert config.max_new_tokens is None
    assert set(HELP) == set(SamplerConfig.__slots__)


def test_the_file_of_the_checkpoint_is_honoured_and_null_is_the_default() -> None:
    raw = {
        "max_denoising_steps": 12,
        "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.3},
        "t_min": None,
        "stability_threshold": 2,
        "max_new_tokens": 256,
    }
    config = SamplerConfig.from_generation_config(raw)
    assert (config.max_denoising_steps, config.entropy_bound, config.t_min) == (12, 0.3, 0.4)
    assert config.stability_threshold == 2
    assert config.max_new_tokens is None  # 256 in the file is no limit of ours
    assert SamplerConfig.from_generation_config(config.to_generation_config()) == config


def test_numbers_of_numpy_are_taken_as_pythons() -> None:
    given = {
        "max_denoising_steps": np.int64(12),
        "entropy_bound": np.float32(0.5),
        "t_max": np.float64(1),
        "t_min": np.int8(1),
        "max_new_tokens": np.array(7),
    }
    plain = {"max_denoising_steps": 12, "entropy_bound": 0.5, "t_max": 1.0, "t_min": 1.0}
    plain |= {"max_new_tokens": 7}
    config = SamplerConfig().with_options(**given)
    assert config == SamplerConfig(**plain)
    json.dumps([getattr(config, name) for name in given])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_denoising_steps": np.True_}, "max_denoising_steps must be a whole number"),
        ({"t_min": np.True_}, "t_min must be a number"),
        ({"max_new_tokens": np.array([7])}, "max_new_tokens must be a whole number"),
        ({"entropy_bnd": 1}, "unknown option 'entropy_bnd'; did you mean 'entropy_bound'"),
        ({"max_denoising_steps": 0}, "max_denoising_steps must be a whole number of at least 1"),
        ({"max_denoising_steps": 2.5}, "max_denoising_steps must be a whole number"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number"),
        ({"entropy_bound": -0.1}, "entropy_bound must be a number from 0 to 1e6, got -0.1"),
        ({"t_max": math.nan}, "t_max must be a number from 0.001 to 1e6, got nan"),
        ({"t_max": math.inf}, "t_max must be a number from 0.001 to 1e6, got inf"),
        ({"t_max": 1e-38, "t_min": 0.0}, "t_max must be a number from 0.001"),
        ({"stability_threshold": 10**30}, r"a whole number of at most 2147483647, got 1000"),
        ({"canvas_length": 16_385}, r"canvas_length must be .* of at most 16384, got 16385"),
        ({"t_max": 0.3}, "t_max must not be below t_min, got 0.3 < 0.4"),
        ({"confidence_threshold": "low"}, "confidence_threshold must be a number"),
    ],
)
def test_bad_options_say_what_got_do(options, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SamplerConfig().with_options(**options)


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(OptionError, match="sampler_config must be an object, got 'x'"):
        SamplerConfig.from_generation_config({"sampler_config": "x"})
    with pytest.raises(OptionError, match="sampler 'Magic'; only EntropyBoundSamplerConfig"):
        SamplerConfig.from_generation_config({"sampler_config": {"_cls_name": "Magic"}})
