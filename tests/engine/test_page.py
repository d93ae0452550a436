"""A reply in a notebook: coloured by doubt, escaped, alone."""

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

import diffusiongemma as dg
from diffusiongemma.dialog.calls import ToolCall
from diffusiongemma.engine.page import VEILS, page


class Reader(HTMLParser):
    """What a browser would make of it; every element has to be closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.names: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.open.append(tag)
        self.names.append(tag)
        assert {name for name, _ in attrs} <= {"style", "title"}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_reply_shows_its_text_and_how_it_came_about(speaks_words: dg.Gemma) -> None:
    reply = speaks_words.generate("hello", seed=3, max_new_tokens=40, max_denoising_steps=4)
    assert reply.text == "".join(text for text, _ in reply.pieces)[: len(reply.text)]
    assert len(reply.pieces) <= len(reply.tokens)
    html = reply._repr_html_()
    read = Reader(html)
    assert read.texts[-1] == reply.summary and f"seed {reply.stats.seed}" in reply.summary
    assert set(read.names) == {"div", "span"}
    assert "script" not in html and "http" not in html and "url(" not in html
    seen = {float(found) for found in re.findall(r"rgba\(255,140,0,([0-9.]+)\)", html)}
    assert seen <= {dense for _, dense in VEILS} and len(seen) > 1


def test_doubts_are_those_of_the_last_steps(speaks_words: dg.Gemma) -> None:
    events = list(
        speaks_words.stream("hello", seed=3, max_new_tokens=20, max_denoising_steps=4, think=True)
    )
    steps = {event.canvas: event for event in events if isinstance(event, dg.Refined)}
    doubts = [doubt for number in sorted(steps) for doubt in steps[number].entropy]
    reply = events[-1].reply  # pyright: ignore[reportAttributeAccessIssue]
    assert speaks_words.chat is not None
    control = speaks_words.chat.tokenizer.is_control
    said = [n for n, token in enumerate(reply.tokens) if not control(token)]
    assert reply.thought is None  # or the places would be others
    assert {doubt for _, doubt in reply.pieces} >= {doubts[n] for n in said}


def shown(text: str, pieces: list[tuple[str, float]], **others) -> Reader:
    return Reader(page(text, pieces, **({"thought": None, "calls": [], "note": "n"} | others)))


def test_a_sure_token_has_no_veil_and_an_unsure_one_says_how_much() -> None:
    html = page("ab", [("a", 0.01), ("b", 1.234)], thought=None, calls=[], note="note")
    assert '>a<span style="background:rgba(255,140,0,0.45);border-radius:3px"' in html
    assert 'title="1.23 nats">b</span>' in html
    assert "color:" not in html.replace("background", "")  # letters keep the page's own colour


@given(st.text(), st.text(), st.text(), st.floats(0, 20))
def test_whatever_is_said_stays_text(text: str, thought: str, call: str, doubt: float) -> None:
    read = shown(text, [(text, doubt)], thought=thought, calls=[call])
    assert set(read.names) <= {"div", "span", "details", "summary", "pre"}
    said = "".join(read.texts)
    assert said == unescape(said) or "&" in text + thought + call
    for letter in "<>&\"'":
        assert said.count(letter) == (text + thought + call).count(letter)


def test_pieces_that_do_not_make_the_text_are_left_out() -> None:
    assert shown("oops", [("never", 3.0)]).texts == ["oops", "n"]
    assert shown("ab", [("a", 3.0), ("bSTOP", 3.0)]).texts == ["a", "b", "n"]
    assert shown("", [("STOP", 3.0)]).texts == ["n"]


@pytest.mark.parametrize("letter", ["\r", "\x00", "\x1b"])
def test_control_letters_are_seen(letter: str) -> None:
    assert shown(f"a{letter}b", []).texts == ["a\ufffdb", "n"]


def test_thoughts_and_calls(speaks_words: dg.Gemma) -> None:
    reply = speaks_words.generate("hello", seed=3, max_new_tokens=4, max_denoising_steps=1)
    call = ToolCall(name="now", arguments={"zone": "<Zürich>"})
    html = replace(reply, thought="hm <b>", tool_calls=(call,))._repr_html_()
    read = Reader(html)
    assert "details" in read.names and "hm <b>" in read.texts
    assert '{"name": "now", "arguments": {"zone": "<Zürich>"}}' in read.texts
