"""The page that replays a trace, in a real browser where there is one, and as text everywhere."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from browser import CHROMIUM, DRIVER, Browser
from diffusiongemma.cli import draw
from diffusiongemma.cli.replay import embedded, page
from diffusiongemma.engine.events import Refined
from diffusiongemma.engine.trace import Trace
from diffusiongemma.engine.trace_file import lines
from toy_trace import settle

EVIL = "</script><script>document.title='got in'</script><!-- {{data}} {{script}} \u2028 & <b>"
RIGHT, LEFT, HOME, END, TAB, ESCAPE = "\ue014", "\ue012", "\ue011", "\ue010", "\ue004", "\ue00c"

needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium and chromedriver on this machine"
)


@pytest.fixture(scope="module")
def trace() -> Trace:
    return settle(
        [["The", " sky", "\n", " blue", "."], [" It", " is", " late", "</script>", EVIL]],
        width=12,
        prompt=EVIL,
    )


class _Reader(HTMLParser):
    """The elements of a page, and the text in its scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self._in = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in = tag
        if tag in self.inside:
            self.inside[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in in self.inside:
            self.inside[self._in][-1] += data


def read(text: str) -> _Reader:
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return reader


def test_nothing_is_fetched_and_the_policy_says_so(trace: Trace) -> None:
    reader = read(page(trace))
    asked = {"src", "href", "srcset", "data", "action", "poster"}
    assert [one for one in reader.elements if asked & set(one[1])] == []
    style = "".join(reader.inside["style"])
    assert "url(" not in style and "@import" not in style
    (policy,) = (a["content"] for _, a in reader.elements if "http-equiv" in a)
    assert policy and policy.startswith("default-src 'none'; ")

    def allowed(kind: str, text: str) -> bool:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        return f"{kind}-src 'sha256-{digest}'" in policy

    data, script = reader.inside["script"]
    assert allowed("style", style)
    assert allowed("script", script)
    assert not allowed("script", data)
    assert "unsafe" not in policy


def test_what_the_prompt_spells_stays_text(trace: Trace) -> None:
    text = page(trace)
    reader = read(text)
    assert len(reader.inside["script"]) == 2
    given = json.loads(reader.inside["script"][0])
    assert given["lines"] == json.loads(json.dumps(list(lines(trace))))
    assert given["lines"][0]["prompt"] == EVIL
    title = text.partition("<title>")[2].partition("</title>")[0]
    assert "<" not in title and html.unescape(title).startswith("</script>")


@pytest.mark.parametrize(
    "text", ["</script>", "<!--", "]]>", "\u2028\u2029", "&lt;", "\ud800", "é"]
)
def test_data_in_a_page_is_inert(text: str) -> None:
    made = embedded({"x": text})
    assert not set(made) & set("<>&\u2028\u2029")
    assert made.isascii()
    assert json.loads(made) == {"x": text}


def test_every_placeholder_is_filled(trace: Trace) -> None:
    text = page(settle([["a"]]))
    assert not re.search(r"\{\{\w+\}\}", text)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def address(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("page") / "trace.html"
    file.write_text(page(trace), encoding="utf-8")
    return file.as_uri()


def said(browser: Browser, name: str) -> str:
    return browser.run(f"return document.getElementById('{name}').textContent")


def move(browser: Browser, at: int) -> None:
    browser.run(
        "const s = document.getElementById('slider'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('input'))",
        at,
    )


@needs_chromium
def test_every_step_is_shown_as_it_was(browser: Browser, address: str, trace: Trace) -> None:
    browser.open(address + "#0")
    at = 0
    for steps, commit in trace.canvases():
        at += 1
        for step in steps:
            for view, tokens in (("best", step.best), ("after", step.after)):
                browser.run(f"document.querySelector('[value={view}]').click()")
                move(browser, at)
                assert cells(browser) == [draw.shown(trace.tokens[t]).strip() for t in tokens]
            assert marked(browser, "revised") == list(step.revised)
            assert marked(browser, "loose") == [not one for one in step.accepted]
            at += 1
        move(browser, at)
        assert said(browser, "now").endswith(commit.text)
        at += 1
    assert said(browser, "now") == trace.finished.reply.text
    assert said(browser, "prompt") == EVIL
    assert browser.run("return document.title") != "got in"
    assert browser.run("return document.querySelectorAll('script').length") == 2
    assert browser.complaints() == []


def cells(browser: Browser) -> list[str]:
    return browser.run(
        "return [...document.querySelectorAll('#canvas .cell')].map(c => c.innerText)"
    )


def marked(browser: Browser, kind: str) -> list[bool]:
    found = "[...document.querySelectorAll('#canvas .cell')].map(c => c.classList.contains"
    return browser.run(f"return {found}('{kind}'))")


@needs_chromium
def test_keys_step_and_ask(browser: Browser, address: str, trace: Trace) -> None:
    browser.open(address + "#0")
    steps = len([event for event in trace.events if isinstance(event, Refined)])
    at = "return Number(document.getElementById('slider').value)"
    browser.press(RIGHT, RIGHT, RIGHT, LEFT)
    assert browser.run(at) == 2
    assert said(browser, "told").startswith("Canvas 1 of 2, step 2 of 6. ")
    browser.press(END)
    assert browser.run(at) == steps + 2 * 2 - 1  # noise and commit of both canvases
    browser.press(HOME)
    assert browser.run(at) == 0
    browser.press(TAB)
    focus = "return document.activeElement.getAttribute('aria-label')"
    assert browser.run(focus).startswith("1: ")
    browser.press(RIGHT)
    assert browser.run(focus).startswith("2: ")
    assert browser.run(at) == 0
    assert "position 2, token" in said(browser, "card")
    browser.press(ESCAPE)
    assert browser.run("return document.getElementById('card').hidden")
    assert browser.complaints() == []


@needs_chromium
def test_it_plays_for_those_who_like_motion(browser: Browser, address: str) -> None:
    playing = "return document.getElementById('play').getAttribute('aria-label')"
    browser.open(address, calm=True)
    assert browser.run(playing) == "Play"
    browser.open(address, calm=False, still=True)  # or it may be over before it is looked at
    assert browser.run(playing) == "Pause"
    browser.press(" ")
    assert browser.run(playing) == "Play"
    assert browser.complaints() == []


@needs_chromium
@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_and_follows_the_theme(
    browser: Browser, address: str, width: int, dark: bool
) -> None:
    browser.open(address + "#3", width=width, dark=dark)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    paper = browser.run("return getComputedStyle(document.documentElement).backgroundColor")
    wanted = draw.INKS["dark" if dark else "light"]["paper"]
    assert paper == "rgb({}, {}, {})".format(*bytes.fromhex(wanted[1:]))


@needs_chromium
def test_every_control_has_a_name(browser: Browser, address: str) -> None:
    browser.open(address + "#1")
    nameless = browser.run(
        "return [...document.querySelectorAll('button, input, select, [role=img]')].filter(e =>"
        "!e.getAttribute('aria-label') && !e.closest('label')?.textContent.trim())"
        ".map(e => e.outerHTML)"
    )
    assert nameless == []


@needs_chromium
def test_the_policy_holds(browser: Browser, address: str) -> None:
    browser.open(address + "#0")
    browser.run(
        "document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x.png'}))"
    )
    browser.run("const s = document.createElement('script'); s.textContent = 'window.bad = 1';"
                "document.body.append(s)")  # fmt: skip
    assert browser.run("return window.bad ?? null") is None
    assert any("Content Security Policy" in one for one in browser.complaints())


def test_the_files_of_the_page_hold_no_address() -> None:
    folder = Path(draw.__file__).parent / "page"
    texts = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}
    assert set(texts) == {"replay.html", "replay.css", "replay.js"}
    for name, text in texts.items():
        found = set(re.findall(r"\w+://[^\s\"']+", text))
        assert found <= {"http://www.w3.org/2000/svg"}, name
        assert not re.search(r"\beval\(|innerHTML|document\.write|new Function", text), name
