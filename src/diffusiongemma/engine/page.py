"""A reply as a piece of HTML, for notebooks.

Knows markup and colours, no replies. The piece stands alone: no script, no sheet of styles, no
address. Everything that was said is escaped. Letters keep the page's own colour, and doubt is a
veil behind them, so that it can be read on light and on dark pages.
"""

import re
from collections.abc import Sequence
from html import escape

# Up to so many nats, a veil so dense. Below the first, none.
VEILS = ((0.05, 0.0), (0.3, 0.15), (1.0, 0.3), (2.5, 0.45), (float("inf"), 0.6))

_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_PROSE = "white-space:pre-wrap;overflow-wrap:anywhere"
_SMALL = "opacity:.7;font-size:85%"


def page(
    text: str,
    pieces: Sequence[tuple[str, float]],
    *,
    thought: str | None,
    calls: Sequence[str],
    note: str,
) -> str:
    """The answer, coloured by doubt where its pieces are known, with a line below it.

    Args:
        text: the answer.
        pieces: its tokens, each with its doubt in nats.
        thought: what was thought before; folded away.
        calls: calls of tools, a line each.
        note: the line.
    """
    parts = []
    if thought:
        folded = f'<div style="{_PROSE};{_SMALL}">{_shown(thought)}</div>'
        parts.append(f"<details><summary>thought</summary>{folded}</details>")
    parts.append(f'<div style="{_PROSE}">{_coloured(text, pieces)}</div>')
    parts += [f'<pre style="{_PROSE}">{_shown(call)}</pre>' for call in calls]
    parts.append(f'<div style="{_SMALL}">{_shown(note)}</div>')
    return f"<div>{''.join(parts)}</div>"


def _coloured(text: str, pieces: Sequence[tuple[str, float]]) -> str:
    said = "".join(piece for piece, _ in pieces)
    if not said.startswith(text):  # not what the tokens say alone: a call that was none, perhaps
        return _shown(text)
    spans, left = [], len(text)
    for piece, doubt in pieces:
        piece = piece[:left]  # a stop string may begin inside a token
        left -= len(piece)
        veil = next(dense for most, dense in VEILS if doubt <= most)
        if piece and veil:
            style = f"background:rgba(255,140,0,{veil:g});border-radius:3px"
            spans.append(f'<span style="{style}" title="{doubt:.2f} nats">{_shown(piece)}</span>')
        else:
            spans.append(_shown(piece))
    return "".join(spans)


def _shown(text: str) -> str:
    # A carriage return or a null would not survive the parser, and an override of direction would
    # turn what follows it; as marks they are at least seen.
    return escape(_UNSAFE.sub("\ufffd", text))
