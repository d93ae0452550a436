"""Words behind the door: answers are dictated, so that thoughts, calls and stops can be met.

The network runs as always; what is read of its vocabulary is replaced by the wanted tokens.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from PIL import Image

import diffusiongemma as dg
from diffusiongemma.core.errors import CheckpointError, InputError, OptionError
from diffusiongemma.engine.gemma import Gemma
from diffusiongemma.kernels.readout import Readout

CANVAS = 16
NAMES = ("config.json", "generation_config.json")


class Dictation:
    """A readout that is sure of a given text, canvas by canvas."""

    def __init__(self, gemma: Gemma, ids: list[int], eos: int) -> None:
        self.read = gemma.model.readout
        self.ids = ids + [eos] * (2 * CANVAS)
        self.canvas = 0

    def __call__(self, *given) -> Readout:
        said = self.read(*given)
        wanted = torch.tensor(self.ids[self.canvas * CANVAS : (self.canvas + 1) * CANVAS])
        wanted_BL = wanted.expand_as(said.best_BL)
        sure_BL = torch.zeros_like(said.entropy_BL)
        return replace(said, token_BL=wanted_BL, best_BL=wanted_BL, entropy_BL=sure_BL)


@contextlib.contextmanager
def dictating(gemma: Gemma, text: str) -> Iterator[Dictation]:
    """Have the network write `text`."""
    assert gemma.chat is not None
    eos = gemma.chat.tokenizer.id("<turn|>")
    assert eos is not None
    with pytest.MonkeyPatch.context() as patch:
        dictation = Dictation(gemma, gemma.chat.tokenizer.encode(text), eos)
        patch.setattr(gemma.model, "readout", dictation)
        yield dictation


def dictated(gemma: Gemma, text: str, prompt="hello", **options) -> tuple[dg.Reply, list]:
    """The reply of a network that is made to write `text`, and its events."""
    events = []
    with dictating(gemma, text) as dictation:
        for event in gemma.stream(prompt, seed=1, **options):
            events.append(event)
            if isinstance(event, dg.Committed):
                dictation.canvas += 1
    return events[-1].reply, events


def streamed(events: list) -> tuple[str, str]:
    """Text and thought as they came."""
    commits = [event for event in events if isinstance(event, dg.Committed)]
    return "".join(one.text for one in commits), "".join(one.thought for one in commits)


def test_an_answer_over_several_canvases(speaks_words: Gemma) -> None:
    text = "The quick brown fox jumps over the lazy dog, twice."
    reply, events = dictated(speaks_words, text)
    assert reply.text == text and reply.thought is None and reply.finish_reason == "stop"
    assert reply.stats.steps == (2, 2, 2, 2) and not reply.stats.loop
    assert reply.stats.tokens_per_forward == pytest.approx(len(text) / (8 + 3))
    assert "".join(e.text for e in events if isinstance(e, dg.Committed)) == text


def test_a_thought_is_split_from_the_answer(speaks_words: Gemma) -> None:
    said = "<|channel>thought\nlet me see, twenty plus twenty-two<channel|>It is 42."
    reply, events = dictated(speaks_words, said, think=True)
    assert reply.thought == "let me see, twenty plus twenty-two"
    assert reply.text == "It is 42."
    assert "".join(e.text for e in events if isinstance(e, dg.Committed)) == "It is 42."


def test_a_thought_without_its_closing_mark(speaks_words: Gemma) -> None:
    reply, _ = dictated(speaks_words, "<|channel>thought\nhm, and then", think=True)
    assert reply.thought == "hm, and then" and reply.text == ""


ASKED = [
    {"role": "user", "content": "How long is it?"},
    {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "size", "arguments": {}}}],
    },
]
ANSWER = {"role": "tool", "name": "size", "content": "212"}
BEGUN = "212, so bytes.\n<channel|>It has 212 bytes."


def test_a_reply_that_begins_within_a_thought(speaks_words: Gemma) -> None:
    """Where the template ends the prompt so: after a tool's answer."""
    reply, events = dictated(speaks_words, BEGUN, [*ASKED, ANSWER], think=True)
    assert (reply.thought, reply.text) == ("212, so bytes.", "It has 212 bytes.")
    assert streamed(events) == ("It has 212 bytes.", "212, so bytes.")
    assert "".join(text for text, _ in reply.pieces) == reply.text
    reply, events = dictated(speaks_words, BEGUN, [*ASKED, ANSWER], think=True, stop="bytes.")
    assert (reply.thought, reply.text) == ("212, so bytes.", "It has 212 ")
    assert streamed(events) == ("It has 212 ", "212, so bytes.")
    reply, _ = dictated(speaks_words, "so it ends", [*ASKED, ANSWER], think=False)
    assert (reply.thought, reply.text) == (None, "so it ends")


def test_ids_that_end_within_a_thought(speaks_words: Gemma) -> None:
    assert speaks_words.chat is not None
    ids = speaks_words.chat.tokenizer.encode("<|turn>model\n<|channel>thought\n")
    reply, _ = dictated(speaks_words, BEGUN, ids)
    assert (reply.thought, reply.text) == ("212, so bytes.", "It has 212 bytes.")


def test_many_that_begin_within_a_thought(speaks_words: Gemma) -> None:
    with dictating(speaks_words, "so\n<channel|>It is 7."):
        prompts = ["hello", [*ASKED, ANSWER]]
        plain, begun = speaks_words.generate_many(prompts, seed=1, think=True)
    assert (plain.thought, plain.text) == (None, "so\nIt is 7.")
    assert (begun.thought, begun.text) == ("so", "It is 7.")


def test_a_conversation_keeps_such_a_thought_as_one(speaks_words: Gemma) -> None:
    talk = speaks_words.converse(think=True)
    talk.messages += ASKED
    with dictating(speaks_words, "so\n<channel|>It is 7."):
        talk.generate([ANSWER], seed=1)
    answer = {"role": "assistant", "content": "It is 7.", "reasoning_content": "so"}
    assert talk.messages == [*ASKED, ANSWER, answer]


def test_a_conversation_that_is_left_keeps_such_a_thought_as_one(speaks_words: Gemma) -> None:
    talk = speaks_words.converse(think=True)
    talk.messages += ASKED
    with dictating(speaks_words, "so\n<channel|>Well, and on and on and on") as dictation:
        turn = talk.stream([ANSWER], seed=1)
        for event in turn:
            if isinstance(event, dg.Committed):
                break
        turn.close()
    assert dictation.canvas == 0
    answer = {"role": "assistant", "content": "Well, and on", "reasoning_content": "so"}
    assert talk.messages == [*ASKED, ANSWER, answer]


def test_a_traced_thought_comes_back(speaks_words: Gemma, tmp_path) -> None:
    from diffusiongemma.engine import recorder, trace_file

    with dictating(speaks_words, "so\n<channel|>It is 7."):
        made = recorder.record(speaks_words, [*ASKED, ANSWER], seed=1, think=True)
    again = trace_file.read(trace_file.write(made, tmp_path / "run.jsonl"))
    assert again == made and again.finished.reply.thought == "so"
    assert streamed(list(again.events)) == ("It is 7.", "so")


@pytest.mark.parametrize("files", [None, 1, [1, 5], [40]])
def test_marks_end_an_answer_whatever_the_files_say(words_folder, tmp_path, files) -> None:
    folder = shutil.copytree(words_folder, tmp_path / "other")
    for name in NAMES:
        said = json.loads((folder / name).read_text())
        said.pop("eos_token_id", None)
        said.get("text_config", {}).pop("eos_token_id", None)
        (folder / name).write_text(json.dumps(said if files is None else said | {
            "eos_token_id": files
        }))  # fmt: skip
    gemma = dg.load(folder)
    made_up = "<|tool_response>response:f{b:2}<tool_response|>made up"
    for said, text, calls in [
        (f"<|tool_call>call:f{{a:1}}<tool_call|>{made_up}", "", 1),
        ("Hello.<turn|>\n<|turn>user\nand on it goes", "Hello.", 0),
        ("Hello.<eos>and on", "Hello.", 0),
    ]:
        reply, events = dictated(gemma, said)
        assert streamed(events) == (text, "") and reply.text == text
        assert len(reply.tool_calls) == calls and reply.finish_reason == "stop"


def test_a_tool_call_is_parsed(speaks_words: Gemma) -> None:
    tool = {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
    }
    said = '<|tool_call>call:weather{city:<|"|>Zürich<|"|>,days:3}<tool_call|>'
    reply, _ = dictated(speaks_words, said, tools=[tool])
    (call,) = reply.tool_calls
    assert call.name == "weather" and call.arguments == {"city": "Zürich", "days": 3}
    assert reply.text == ""


@pytest.mark.parametrize("stop", ["STOP", "TOP h"])
def test_a_stop_string_across_two_canvases(speaks_words: Gemma, stop: str) -> None:
    text = "twelve letters STOP here, and then some more"  # the border lies within STOP
    assert text.index("STOP") < CANVAS < text.index("STOP") + 4
    reply, events = dictated(speaks_words, text, stop=[stop])
    expected = text[: text.index(stop)]
    assert reply.text == expected and reply.finish_reason == "stop"
    assert "".join(e.text for e in events if isinstance(e, dg.Committed)) == expected
    assert len(reply.tokens) == len(expected) == reply.stats.new_tokens


def test_what_was_thought_and_called_before_a_stop_is_kept(speaks_words: Gemma) -> None:
    said = "<|channel>thought\nhm<channel|>well<|tool_call>call:f{a:1}<tool_call|>END, more"
    reply, _ = dictated(speaks_words, said, stop="END")
    assert (reply.thought, reply.text) == ("hm", "well")
    assert [call.name for call in reply.tool_calls] == ["f"]
    assert speaks_words.chat is not None
    whole = speaks_words.chat.tokenizer.encode(said)
    assert list(reply.tokens) == whole[: len(whole) - len("END, more")]


def test_a_stopped_row_is_not_drafted_any_further(speaks_words: Gemma, monkeypatch) -> None:
    calls = []
    denoise = speaks_words.model.denoise
    monkeypatch.setattr(speaks_words.model, "denoise", lambda *a: calls.append(1) or denoise(*a))
    options = {"seed": 1, "max_denoising_steps": 2, "max_new_tokens": 320}
    first = speaks_words.generate("hello", **options).text[:1]
    calls.clear()
    (reply,) = speaks_words.generate_many(["hello"], stop=first, **options)
    assert reply.finish_reason == "stop" and len(calls) == sum(reply.stats.steps)


def test_a_character_across_two_canvases_comes_whole(speaks_words: Gemma) -> None:
    text = "fifteen letters\u20ac, yes"  # the euro sign takes three bytes, one before the border
    reply, events = dictated(speaks_words, text)
    pieces = [e.text for e in events if isinstance(e, dg.Committed)]
    assert reply.text == text == "".join(pieces)
    assert not any("\ufffd" in piece for piece in pieces)


def test_repetition_is_warned_of(speaks_words: Gemma) -> None:
    reply, _ = dictated(speaks_words, "the the the the the the the the")
    assert reply.stats.loop


def test_together_with_words_as_alone(speaks_words: Gemma) -> None:
    prompts = ["hello", [{"role": "user", "content": "and now?"}], [5, 6, 7]]
    together = speaks_words.generate_many(prompts, seed=2, max_new_tokens=20, max_denoising_steps=3)
    for prompt, reply in zip(prompts, together, strict=True):
        alone = speaks_words.generate(prompt, seed=2, max_new_tokens=20, max_denoising_steps=3)
        assert (reply.tokens, reply.text) == (alone.tokens, alone.text)


def test_images_reach_the_network(speaks_words: Gemma, tmp_path) -> None:
    options = {"seed": 2, "max_new_tokens": 8, "max_denoising_steps": 3}
    replies = []
    for colour in ("red", "blue"):
        file = tmp_path / f"{colour}.png"
        Image.new("RGB", (30, 20), colour).save(file)
        replies.append(speaks_words.generate("what is it?", images=[file], **options))
    assert replies[0].stats.prompt_tokens == replies[1].stats.prompt_tokens > 60
    assert replies[0].tokens != replies[1].tokens
    finer = speaks_words.generate("what is it?", images=[file], image_tokens=280, **options)
    assert finer.stats.prompt_tokens > 3 * replies[1].stats.prompt_tokens
    part = {"type": "image", "image": Image.new("RGB", (30, 20), "blue")}
    said = [{"role": "user", "content": [part, {"type": "text", "text": "what is it?"}]}]
    assert speaks_words.generate(said, **options).tokens == replies[1].tokens


def test_long_prompts_are_read_in_chunks_around_images(speaks_words: Gemma, monkeypatch) -> None:
    from diffusiongemma.engine import runner

    image = {"type": "image", "image": Image.new("RGB", (60, 40), "green")}
    text = {"type": "text", "text": "what may this picture show, in so many words? " * 3}
    said = [{"role": "user", "content": [text, image, text]}]
    options = {"seed": 2, "max_new_tokens": 8, "max_denoising_steps": 2}
    at_once = next(iter(speaks_words.steps(said, **options))).hidden_BLD
    monkeypatch.setattr(runner, "PROMPT_CHUNK", 7)
    in_pieces = next(iter(speaks_words.steps(said, **options))).hidden_BLD
    assert torch.equal(in_pieces, at_once)


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ("  ", {}, InputError, "the prompt is empty"),
        (
            [{"role": "system", "content": "a"}],
            {"system": "b"},
            OptionError,
            "already begins with a",
        ),
        (
            [{"role": "user", "content": "a"}],
            {"images": ["x"]},
            OptionError,
            "belong into its mess",
        ),
        ("hi", {"images": ["/nowhere.png"]}, InputError, "nowhere.png"),
        (
            "hi",
            {"images": [Image.new("L", (9, 9))], "image_tokens": 71},
            OptionError,
            "70, 140, 280",
        ),
        ("hi", {"stop": ["word", ""]}, OptionError, "stop must be a text or a list"),
    ],
)
def test_bad_requests_say_what_got_do(speaks_words, prompt, options, error, message: str) -> None:
    with pytest.raises(error, match=message):
        speaks_words.generate(prompt, **options)


def test_an_image_processor_of_another_checkpoint_is_refused(words_folder, tmp_path) -> None:
    folder = shutil.copytree(words_folder, tmp_path / "mixed")
    (folder / "preprocessor_config.json").write_text('{"patch_size": 16}')
    with pytest.raises(CheckpointError, match="cuts patches of 16 pixels pooled by 2"):
        dg.load(folder)


def test_saved_and_opened_again_it_is_the_same(speaks_words: Gemma, tmp_path) -> None:
    again = dg.load(speaks_words.save(tmp_path / "copy"))
    options = {"seed": 4, "max_new_tokens": 20, "max_denoising_steps": 3}
    assert again.generate("hello", **options).text == speaks_words.generate("hello", **options).text
    files = [json.loads((again.folder / name).read_text()) for name in NAMES]
    before = [json.loads((speaks_words.folder / name).read_text()) for name in NAMES]
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        assert files[0]["text_config"][name] == before[0]["text_config"][name]
    assert files[1]["transformers_version"] == before[1]["transformers_version"]
    assert again.sampler == speaks_words.sampler and again.eos == speaks_words.eos
