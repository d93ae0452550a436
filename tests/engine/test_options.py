"""The options of the doors as type checkers see them, and results as people see them."""

import types
import typing
from dataclasses import fields

import pytest

import diffusiongemma as dg
from diffusiongemma.core.brief import WIDTH
from diffusiongemma.core.errors import OptionError
from diffusiongemma.diffusion.config import SamplerConfig
from diffusiongemma.engine.options import ConversationOptions, Options, SamplingOptions
from diffusiongemma.engine.prompt import Asked

QUICK = {"max_new_tokens": 16, "max_denoising_steps": 3}


@pytest.fixture(scope="module")
def gemma() -> dg.Gemma:
    return dg.load(device="cpu")


def test_the_types_say_what_the_owners_of_the_options_say() -> None:
    owned = typing.get_type_hints(SamplerConfig)
    assert typing.get_type_hints(SamplingOptions) == owned
    asked = {field.name for field in fields(Asked)}
    assert set(typing.get_type_hints(Options)) == {*owned, *asked}
    turns = set(typing.get_type_hints(ConversationOptions))
    assert turns == {*owned, *asked, "stop", "rule"} - {"images"}
    for name, kind in typing.get_type_hints(Asked).items():
        if name != "images":
            said = typing.get_type_hints(Options)[name]
            assert said == kind or types.NoneType in typing.get_args(said)


@pytest.mark.parametrize("door", ["generate", "stream", "steps", "generate_many"])
def test_every_door_s_options_are_typed(door: str) -> None:
    hints = typing.get_type_hints(getattr(dg.Gemma, door))
    assert typing.get_args(hints["options"]) == (Options,)


@pytest.mark.parametrize("name", ["thinkk", "seeds", "systen", "top_k"])
def test_an_unknown_option_is_told_beside_all_that_are_known(gemma: dg.Gemma, name: str) -> None:
    with pytest.raises(OptionError) as caught:
        gemma.generate("Sort: 3 1", **{name: 1})
    told = str(caught.value)
    assert "did you mean" in told or all(one in told for one in ("think", "seed", "t_max"))


def test_results_fit_a_line(gemma: dg.Gemma) -> None:
    reply = gemma.generate("Sort: 3 1 2 " * 9, seed=1, **QUICK)
    told = list(gemma.stream("Sort: 3 1 2", seed=1, **QUICK))
    step = next(iter(gemma.steps("Sort: 3 1 2", seed=1, ask=dg.Ask(top=2), **QUICK)))
    shown = [gemma, reply, reply.stats, *told, step, step.step, step.readout, gemma.converse()]
    for one in shown:
        text = repr(one)
        assert len(text) <= WIDTH and "\n" not in text and text.startswith(type(one).__name__)
    assert f"text={reply.text!r}"[:30] in repr(reply)
