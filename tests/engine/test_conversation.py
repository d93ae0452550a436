"""A chat with memory: every turn is what `generate` would give, and is read only in part."""

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

import diffusiongemma as dg
import toys
from cli_help import edit
from diffusiongemma.core.errors import InputError, OptionError
from diffusiongemma.engine.conversation import Conversation
from diffusiongemma.model.model import Inputs
from toys_words import FIRST_BYTE, SIZE, write_words

CANVAS = 16
QUICK = {"max_denoising_steps": 4}
EMPTY_THOUGHT = len("?thought\n?")  # that the template adds at the end of a prompt, and only there
FLAT = """{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|turn>user
{{ m.content }}<turn|>
<|turn>model
{% else %}{{ m.content }}{% endif %}{% endfor %}"""


def opened(folder: Path) -> dg.Gemma:
    """Its answers are letters, which are read as they were written, without an end mark, so that
    their lengths are known.
    """
    gemma, first = dg.load(folder), FIRST_BYTE + ord("a")
    bias_V = torch.full((gemma.model.config.vocab_size,), -1e4)
    bias_V[first : first + 26] = 0.0
    gemma.eos, gemma._bias_V = frozenset(), bias_V
    return gemma


@pytest.fixture(scope="module")
def gemma(words_folder: Path) -> dg.Gemma:
    """Its sliding layers forget early: most cuts are too far back."""
    return opened(words_folder)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dg.Gemma:
    """Its sliding layers hold all that these tests say: every cut is exact."""
    folder = tmp_path_factory.mktemp("wide")
    toys.write(toys.Toy(seed=36, vocabulary=SIZE, canvas=CANVAS, window=400), folder)
    marks = write_words(folder)
    places = {"image_token_id": "<|image|>", "boi_token_id": "<|image>", "eoi_token_id": "<image|>"}
    edit(folder / "config.json", **{name: marks[mark] for name, mark in places.items()})
    return opened(folder)


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> dg.Gemma:
    """Its template writes an answer as the network wrote it, so that canvases may be reused."""
    folder = tmp_path_factory.mktemp("flat")
    toys.write(toys.Toy(seed=35, vocabulary=SIZE, canvas=CANVAS, vision=False), folder)
    write_words(folder)
    (folder / "chat_template.jinja").write_text(FLAT)
    return opened(folder)


@pytest.fixture
def encoded(gemma: dg.Gemma, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every pass that read a prompt or a canvas."""
    counts: list[int] = []
    encode = gemma.model.encode

    def count(inputs: Inputs, context: object, *lengths_B: torch.Tensor) -> torch.Tensor:
        counts.append(inputs.span_BT.numel())  # of one row, and so without padding
        return encode(inputs, context, *lengths_B)

    monkeypatch.setattr(gemma.model, "encode", count)
    return counts


TURNS = ("hello there", "what did I say?", "and before that?", "thank you")


@pytest.mark.parametrize("limit", [5, CANVAS, 2 * CANVAS, 5 * CANVAS + 3])
def test_a_turn_is_what_generate_gives(gemma: dg.Gemma, encoded: list[int], limit: int) -> None:
    talk = gemma.converse(system="be brief", max_new_tokens=limit, **QUICK)
    options = {"system": "be brief", "max_new_tokens": limit} | QUICK
    before = 0
    for number, text in enumerate(TURNS):
        asked = [*talk.messages, {"role": "user", "content": text}]
        encoded.clear()
        reply = talk.generate(text, seed=number)
        here = sum(encoded)
        encoded.clear()
        fresh = gemma.generate(asked, seed=number, **options)
        assert reply.tokens == fresh.tokens and reply.stats.steps == fresh.stats.steps
        assert reply.stats.prompt_tokens == fresh.stats.prompt_tokens
        assert sum(encoded) - here == talk.reused == reply.stats.reused_tokens
        assert talk.messages[:-1] == asked
        assert talk.messages[-1] == {"role": "assistant", "content": reply.text}
        assert talk.reused == (before - EMPTY_THOUGHT if number else 0)
        before = reply.stats.prompt_tokens


def test_canvases_of_an_answer_are_reused(flat: dg.Gemma) -> None:
    talk = flat.converse(max_new_tokens=5 * CANVAS, **QUICK)
    first = talk.generate("hello", seed=1)
    assert first.text.isalpha() and len(first.tokens) == 5 * CANVAS
    asked = [*talk.messages, {"role": "user", "content": "more"}]
    second = talk.generate("more", seed=2)
    fresh = flat.generate(asked, seed=2, max_new_tokens=5 * CANVAS, **QUICK)
    assert second.tokens == fresh.tokens
    assert talk.reused == first.stats.prompt_tokens + 4 * CANVAS  # the last one is never encoded


def test_a_changed_history_is_reused_up_to_the_change(wide: dg.Gemma) -> None:
    talk = wide.converse(max_new_tokens=8, **QUICK)
    talk.generate("hello", seed=1)
    talk.generate("go on", seed=2)
    talk.messages[0] = {"role": "user", "content": "hullo"}
    asked = [*talk.messages, {"role": "user", "content": "well"}]
    reply = talk.generate("well", seed=3)
    assert reply.tokens == wide.generate(asked, seed=3, max_new_tokens=8, **QUICK).tokens
    assert talk.reused == len("??user\nh")


def test_a_change_that_is_too_far_back_is_read_anew(gemma: dg.Gemma) -> None:
    talk = gemma.converse(max_new_tokens=8, **QUICK)
    talk.generate("hello" + "!" * 40, seed=1)
    talk.messages[0] = {"role": "user", "content": "hullo" + "!" * 40}
    asked = [*talk.messages, {"role": "user", "content": "well"}]
    reply = talk.generate("well", seed=3)
    assert reply.tokens == gemma.generate(asked, seed=3, max_new_tokens=8, **QUICK).tokens
    assert talk.reused == 0


def test_undo_and_forget(gemma: dg.Gemma) -> None:
    talk = gemma.converse(max_new_tokens=8, **QUICK)
    assert not talk.undo()
    talk.generate("hello", seed=1)
    kept = list(talk.messages)
    first = talk.generate("go on", seed=2)
    assert talk.undo() and talk.messages == kept
    again = talk.generate("go on", seed=2)
    assert again.tokens == first.tokens
    assert talk.reused == again.stats.prompt_tokens  # nothing was new
    talk.forget()
    assert talk.messages == [] and talk.generate("hello", seed=1).stats.reused_tokens == 0


def test_pictures_are_compared_and_not_only_their_places(wide: dg.Gemma) -> None:
    def picture(colour: str) -> Image.Image:
        return Image.new("RGB", (24, 16), colour)

    options = {"max_new_tokens": 8} | QUICK
    talk = wide.converse(**options)
    talk.generate("what is it?", images=picture("red"), seed=1)
    asked = [*talk.messages, {"role": "user", "content": "sure?"}]
    assert talk.generate("sure?", seed=2).tokens == wide.generate(asked, seed=2, **options).tokens
    seen = talk.reused
    assert seen > 60  # the picture was not looked at again
    content = talk.messages[0]["content"]
    talk.messages[0] = {"role": "user", "content": [{**content[0], "image": picture("blue")}]}
    asked = [*talk.messages, {"role": "user", "content": "sure?"}]
    assert talk.generate("sure?", seed=3).tokens == wide.generate(asked, seed=3, **options).tokens
    assert talk.reused == len("??user\n?")  # up to the mark that begins the picture


def until(talk: Conversation, kind: type, text: str = "go on") -> None:
    """Begin a turn, and leave it at its first event of a kind."""
    for event in talk.stream(text, seed=2):
        if isinstance(event, kind):
            break


def test_a_turn_that_is_left_at_once_is_dropped(gemma: dg.Gemma) -> None:
    talk = gemma.converse(max_new_tokens=3 * CANVAS, **QUICK)
    talk.generate("hello", seed=1)
    kept = list(talk.messages)
    until(talk, dg.Refined)
    assert talk.messages == kept
    asked = [*kept, {"role": "user", "content": "so?"}]
    fresh = gemma.generate(asked, seed=3, max_new_tokens=3 * CANVAS, **QUICK)
    assert talk.generate("so?", seed=3).tokens == fresh.tokens
    assert talk.reused > 0


def test_what_was_committed_before_a_turn_was_left_stays(gemma: dg.Gemma) -> None:
    talk = gemma.converse(max_new_tokens=3 * CANVAS, **QUICK)
    turn = talk.stream("hello", seed=1)
    said = next(event for event in turn if isinstance(event, dg.Committed))
    assert said.text
    after = talk.stream("so?", seed=3)  # closes the turn before
    assert talk.messages == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": said.text},
    ]
    fresh = gemma.generate(
        [*talk.messages, {"role": "user", "content": "so?"}],
        seed=3,
        max_new_tokens=3 * CANVAS,
        **QUICK,
    )
    assert next(turn, None) is None
    assert list(after)[-1].reply.tokens == fresh.tokens  # pyright: ignore[reportAttributeAccessIssue]


def test_threads_that_ask_at_once_are_answered_in_turn(gemma: dg.Gemma) -> None:
    talk = gemma.converse(max_new_tokens=8, **QUICK)
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda n: talk.generate(f"number {n}", seed=n), range(4)))
    said = [message["content"] for message in talk.messages]
    order = [int(text.removeprefix("number ")) for text in said[::2]]
    assert sorted(order) == [0, 1, 2, 3]
    assert said[1::2] == [replies[number].text for number in order]
    one = gemma.converse(max_new_tokens=8, **QUICK)
    again = [one.generate(f"number {number}", seed=number).tokens for number in order]
    assert again == [replies[number].tokens for number in order]


def test_a_turn_at_work_cannot_be_closed(gemma: dg.Gemma) -> None:
    talk = gemma.converse(max_new_tokens=8, **QUICK)
    found: list[InputError] = []

    def rule(readout: dg.Readout) -> torch.Tensor:
        for ask in (talk.stream, talk.generate):
            with pytest.raises(InputError, match="this conversation is busy with a turn") as error:
                ask("and this?")
            found.append(error.value)
        return torch.ones_like(readout.token_BL, dtype=torch.bool)

    reply = talk.generate("hello", seed=1, rule=rule)
    assert found and [message["content"] for message in talk.messages] == ["hello", reply.text]
    with ThreadPoolExecutor(1) as pool:  # between two events, a turn of any thread can be closed
        turn = talk.stream("one", seed=1)
        next(turn)
        assert pool.submit(talk.generate, "two", seed=1).result().stats.new_tokens == 8
        assert list(turn) == []


def test_a_torn_context_is_thrown_away(gemma: dg.Gemma, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C, for real, while the last layer reads a prompt."""
    monkeypatch.setattr(gemma.model, "kernels", "reference")  # or no layer is asked by itself
    talk = gemma.converse(max_new_tokens=8, **QUICK)
    talk.generate("hello", seed=1)
    kept = list(talk.messages)
    last = gemma.model.blocks[-1]
    hook = last.register_forward_pre_hook(lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        talk.generate("go on", seed=2)
    hook.remove()
    assert talk.messages == kept
    asked = [*kept, {"role": "user", "content": "go on"}]
    fresh = gemma.generate(asked, seed=2, max_new_tokens=8, **QUICK)
    assert talk.generate("go on", seed=2).tokens == fresh.tokens
    assert talk.reused > 0  # what was held before is whole


def test_a_turn_with_an_error_is_as_if_it_had_never_been(gemma: dg.Gemma) -> None:
    talk = gemma.converse(max_new_tokens=8, **QUICK)
    with pytest.raises(InputError, match="the prompt has 50"):
        talk.generate("x" * 5000)
    assert talk.messages == []
    with pytest.raises(OptionError, match="a rule must give a bool tensor"):
        talk.generate("hello", rule=lambda readout: None)
    assert talk.messages == []
    assert talk.generate("hello", seed=1).stats.new_tokens == 8


def test_thoughts_and_calls_go_into_the_history(gemma: dg.Gemma) -> None:
    from dataclasses import replace

    from diffusiongemma.dialog.calls import ToolCall
    from diffusiongemma.engine.conversation import _answered

    reply = gemma.generate("hi", seed=1, max_new_tokens=1, max_denoising_steps=1)
    call = ToolCall(name="now", arguments={"zone": "CET"})
    reply = replace(reply, text="", thought="hm", tool_calls=(call,))
    talk = gemma.converse(max_new_tokens=8, **QUICK)
    talk.messages += [{"role": "user", "content": "what time is it?"}, _answered(reply)]
    answer = [{"role": "tool", "name": "now", "content": "noon"}]
    asked = [*talk.messages, *answer]
    fresh = gemma.generate(asked, seed=1, max_new_tokens=8, **QUICK)
    assert talk.generate(answer, seed=1).tokens == fresh.tokens
    assert gemma.chat is not None
    assert "now" in gemma.chat.tokenizer.decode(gemma.chat.render(asked).ids)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cnavas_length": 8}, OptionError, "did you mean 'canvas_length'"),
        ({"seed": 1}, OptionError, "seeds belong to a turn"),
        ({"images": ["x.png"]}, OptionError, "belong to a turn"),
        ({"stop": 5}, OptionError, "stop must be a text or a list of texts, .*got 5"),
        ({"stop": [""]}, OptionError, "stop must be a text or a list"),
    ],
)
def test_options_are_refused_at_once(gemma: dg.Gemma, options, error, message: str) -> None:
    with pytest.raises(error, match=message):
        gemma.converse(**options)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (" ", {}, "the prompt is empty"),
        ([], {}, "a turn must be text or a list of messages, got list"),
        ([{"role": "user", "content": "a"}], {"images": ["x"]}, "belong into them"),
    ],
)
def test_bad_turns_are_refused(gemma: dg.Gemma, prompt, options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        gemma.converse().generate(prompt, **options)


def test_a_checkpoint_without_words_holds_no_conversation(ids_folder: Path) -> None:
    with pytest.raises(InputError, match="a conversation needs words"):
        dg.load(ids_folder).converse()
