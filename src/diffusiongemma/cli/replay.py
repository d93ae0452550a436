"""One HTML file that replays a trace: nothing is fetched, and its policy forbids it to try.

Knows how page, style, script and data become one file, and how data in it stays data. What the
page does is in the folder `page`.
"""

import base64
import hashlib
import html
import json
import re
from importlib import resources

from diffusiongemma.cli import draw
from diffusiongemma.core.letters import visible
from diffusiongemma.engine.trace import Trace
from diffusiongemma.engine.trace_file import lines


def page(trace: Trace) -> str:
    """The file's text."""
    style = f":root{{{draw.variables('light')}}}"
    style += f"@media(prefers-color-scheme:dark){{:root{{{draw.variables('dark')}}}}}"
    style += f"\n{_part('replay.css')}"
    script = _part("replay.js")
    most = draw.top(trace)
    scale = {"levels": draw.LEVELS, "knee": draw.KNEE, "top": most, "ticks": draw.ticks(most)}
    policy = "; ".join((
        "default-src 'none'",
        f"style-src {_hash(style)}",
        f"script-src {_hash(script)}",
        "base-uri 'none'",
        "form-action 'none'",
    ))  # fmt: skip
    prompt = visible(" ".join(trace.about.prompt.split()))
    parts = {
        "policy": html.escape(policy, quote=True),
        "title": html.escape(f"{prompt[:60]} | DiffusionGemma"),
        "style": style,
        "data": embedded({"lines": list(lines(trace)), "scale": scale}),
        "script": script,
    }
    # In one pass: a prompt that spells one of the names is no name.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _part("replay.html"))


def embedded(value: object) -> str:
    """JSON that is safe inside a script element: nothing in it can end that or begin another."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _part(name: str) -> str:
    folder = resources.files("diffusiongemma.cli") / "page"
    return (folder / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
