"""Text that grows: whatever the pushes, the same text."""

import os
import subprocess
import sys
import time
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from diffusiongemma.core.errors import OptionError
from diffusiongemma.dialog.stream import TextStream, stop_strings
from diffusiongemma.dialog.tokenizer import Tokenizer


def fallback_tokenizer() -> Tokenizer:
    """Byte fallback as in the real vocabulary: letters, spaces as blocks, and `<0x..>`."""
    names = ["<bos>", "<turn|>", "a", "b", "▁", "▁é", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={n: i for i, n in enumerate(names)}, merges=[], byte_fallback=True)
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(["<bos>", "<turn|>"])
    return Tokenizer(backend)


FALLBACK = fallback_tokenizer()


def cut(text: str, stop: list[str]) -> tuple[str, str | None]:
    """Before the stop string that is complete first; of two, the longer."""
    found = [(text.find(s) + len(s), -len(s), s) for s in stop if s in text]
    if not found:
        return text, None
    end, _, hit = min(found)
    return text[: end - len(hit)], hit


def run(tokenizer: Tokenizer, ids: list[int], sizes: list[int], stop: list[str]) -> TextStream:
    stream, shown, rest = TextStream(tokenizer, stop), "", ids
    for size in sizes:
        shown += stream.push(rest[:size])
        rest = rest[size:]
    shown += stream.push(rest)
    shown += stream.finish()
    text, hit = cut(tokenizer.decode(ids), stop)
    assert (shown, stream.stopped) == (text, hit)
    assert stream.push([100]) == "" or hit is None
    return stream


STOPS = st.lists(st.text(alphabet="ab <é", min_size=1, max_size=4), max_size=3)
SIZES = st.lists(st.integers(0, 9), max_size=40)
WORDS = [32 + b for b in "ab<é €😀".encode()]


@settings(max_examples=300, deadline=None)
@given(
    ids=st.lists(st.integers(0, 299) | st.sampled_from(WORDS), max_size=150),
    sizes=SIZES,
    stop=STOPS,
)
def test_any_chunking_byte_level(
    tokenizer: Tokenizer, ids: list[int], sizes: list[int], stop: list[str]
) -> None:
    run(tokenizer, ids, sizes, stop)


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet="ab é€😀", max_size=150), sizes=SIZES, stop=STOPS)
def test_any_chunking_of_words(
    tokenizer: Tokenizer, text: str, sizes: list[int], stop: list[str]
) -> None:
    ids = tokenizer.encode(text)
    stream = run(tokenizer, ids, sizes, stop)
    kept, hit = cut(text, stop)
    if hit is not None:
        assert stream.tokens_kept == len(kept.encode())


BYTES = [6 + byte for byte in "€😀é\xff".encode("latin-1", "ignore") + "€😀é".encode()]


@settings(max_examples=300, deadline=None)
@given(
    ids=st.lists(st.sampled_from(BYTES) | st.integers(0, 5), max_size=150), sizes=SIZES, stop=STOPS
)
def test_any_chunking_byte_fallback(ids: list[int], sizes: list[int], stop: list[str]) -> None:
    run(FALLBACK, ids, sizes, stop)


def test_half_a_character_waits(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    first, *rest = tokenizer.encode("€")
    assert stream.push([32 + ord("a"), first]) == "a"
    assert stream.push(rest) == "€"
    assert stream.finish() == "" and stream.tokens_kept == 4


def test_half_a_stop_string_waits(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, ["END"])
    assert stream.push(tokenizer.encode("one EN")) == "one "
    assert stream.push(tokenizer.encode("Zo E")) == "ENZo "
    assert stream.push(tokenizer.encode("ND of it")) == ""
    assert stream.stopped == "END"
    assert stream.tokens_kept == len("one ENZo ")
    assert stream.finish() == ""


def test_control_tokens_can_be_shown(tokenizer: Tokenizer, marks: dict[str, int]) -> None:
    ids = [marks["<|channel>"], 32 + ord("a")]
    assert TextStream(tokenizer).push(ids) == "a"
    assert TextStream(tokenizer, special=True).push(ids) == "<|channel>a"


def test_no_stop_one_or_several() -> None:
    assert stop_strings(None) == stop_strings([]) == ()
    assert stop_strings("END") == stop_strings(("END",)) == ("END",)


@pytest.mark.parametrize("stop", ["", [""], ["a", ""], 5, ["a", 5], b"END", [["a"]], {"a": "b"}])
def test_bad_stop(stop: Any) -> None:
    match = "stop must be a text or a list of texts, none of them empty, got"
    with pytest.raises(OptionError, match=match):
        stop_strings(stop)


def test_a_long_text_one_by_one_costs_no_square(tokenizer: Tokenizer) -> None:
    def seconds(tokens: int) -> float:
        stream = TextStream(tokenizer, ["never"])
        start = time.process_time()
        text = "".join(stream.push([32 + ord("a")]) for _ in range(tokens)) + stream.finish()
        assert text == "a" * tokens
        return time.process_time() - start

    few = min(seconds(2_000) for _ in range(3))
    assert seconds(20_000) < 40 * few  # ten times is straight, a hundred a square


def test_no_torch_in_words() -> None:
    names = ["tokenizer", "chat", "tools", "stream", "reply", "template", "messages"]
    code = "".join(f"import diffusiongemma.dialog.{n}\n" for n in names)
    code += "import sys; assert 'torch' not in sys.modules"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
