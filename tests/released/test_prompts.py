"""Prompts in the real vocabulary, by seven generations of the chat template: transformers' ids."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from diffusiongemma.dialog.chat import Chat
from diffusiongemma.dialog.tokenizer import Tokenizer
from real_files import GENERATIONS
from real_talks import TALKS, Talk, call, picture, result, says, text, user

ChatOf = Callable[[str], Chat]
TemplateOf = Callable[[str], str]

# These print a list of parts as Python does.
KNOW_ONLY_TEXTS = {"gemma4_v2", "gemma4_v3"}


@pytest.fixture(scope="session")
def processor(theirs: Any) -> Any:
    """transformers' processor of pictures and words.

    Its check of the parts wants a video processor, which needs torchvision; no video is shown here.
    """
    from transformers import Gemma4ImageProcessorPil, Gemma4Processor

    class Seeing(Gemma4Processor):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> type:
            return type(argument)

    return Seeing(
        feature_extractor=None,
        image_processor=Gemma4ImageProcessorPil(),
        tokenizer=theirs,
        video_processor=None,
    )


def read(processor: Any, talk: Talk, messages: list, template: str, think: bool) -> Any:
    """What transformers makes of a talk."""
    return processor.apply_chat_template(
        messages,
        tools=talk.tools,
        chat_template=template,
        enable_thinking=think,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"return_tensors": "pt"},
    )


def test_the_pieces_that_are_known(tokenizer: Tokenizer, known: dict[str, Any]) -> None:
    for number, (_, name) in known["rename_ids"].items():
        assert tokenizer.id(name) == int(number) and tokenizer.is_control(int(number))
    for piece, number in known["known_pieces"].items():
        if piece != "Four":  # one public test alone has it, and the vocabulary says "Manor" there
            assert tokenizer.id(piece) == number
    assert tokenizer.size == 262_144


def test_the_published_prompt(tokenizer: Tokenizer, known: dict[str, Any], chat: ChatOf) -> None:
    published = known["check"]
    assert [2, *tokenizer.encode(published["text"])] == published["ids"]
    assert chat("gemma-4").render([user("Why is the sky blue?")]).ids == published["ids"]
    without_thought = published["ids"][:-4]
    assert chat("diffusion_gemma").render([user("Why is the sky blue?")]).ids == without_thought


@pytest.mark.parametrize("think", [False, True], ids=["off", "on"])
@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("name", TALKS)
def test_transformers_ids(
    name: str, generation: str, think: bool, chat: ChatOf, template: TemplateOf, processor: Any
) -> None:
    talk = TALKS[name]
    messages = talk.messages
    if talk.plain is not None and generation in KNOW_ONLY_TEXTS:
        messages = talk.plain
    expected = read(processor, talk, messages, template(generation), think)
    prompt = chat(generation).render(talk.messages, tools=talk.tools, think=think)
    assert prompt.ids == expected["input_ids"][0].tolist()
    values = [v[(p >= 0).all(-1)] for v, p in zip(*_pictures(expected), strict=True)]
    assert len(values) == len(prompt.images)
    for ours, value in zip(prompt.images, values, strict=True):
        torch.testing.assert_close(ours.values_PX, value, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [name for name in TALKS if "picture" not in name])
def test_guarded_ids(name: str, chat: ChatOf, template: TemplateOf, theirs: Any) -> None:
    """With control tokens in users' words kept from acting, as transformers can do too."""
    talk, generation = TALKS[name], "diffusion_gemma"
    expected = theirs.apply_chat_template(
        talk.messages,
        tools=talk.tools,
        chat_template=template(generation),
        enable_thinking=True,
        add_generation_prompt=True,
        return_dict=False,
        sanitize_control_tokens=True,
    )
    prompt = chat(generation).render(talk.messages, tools=talk.tools, think=True, guard=True)
    assert prompt.ids == expected


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_long_history(generation: str, chat: ChatOf, template: TemplateOf, theirs: Any) -> None:
    """Templates look over the whole of it at each message."""
    messages = [user("Where does it rain?")]
    for n in range(60):
        messages += [says(tool_calls=[call("weather", f"{n}", city=f"Oslo {n}")])]
        messages += [result(f"rain {n}", name="weather", tool_call_id=f"{n}")]
    tools = TALKS["tools without a call"].tools
    expected = theirs.apply_chat_template(
        messages,
        tools=tools,
        chat_template=template(generation),
        enable_thinking=True,
        add_generation_prompt=True,
        return_dict=False,
    )
    assert chat(generation).render(messages, tools=tools, think=True).ids == expected


def _pictures(expected: Any) -> tuple[Any, Any]:
    return expected.get("pixel_values", ()), expected.get("image_position_ids", ())


@pytest.mark.parametrize("generation", ["gemma4_v4", "gemma4_v5", "gemma-4", "diffusion_gemma"])
def test_a_picture_that_a_tool_gives(
    generation: str, chat: ChatOf, template: TemplateOf, processor: Any
) -> None:
    """The later templates show it behind the tool's words."""
    content = [text("A map: "), picture(60, 40), text("of Oslo")]
    messages = [user("Map?"), says(tool_calls=[call("map")]), result(content, name="map")]
    talk = Talk(messages)
    expected = read(processor, talk, messages, template(generation), think=False)
    prompt = chat(generation).render(messages)
    assert prompt.ids == expected["input_ids"][0].tolist() and len(prompt.images) == 1
