"""Control tokens in users' words, kept from acting.

Knows how to mark them before a template is rendered and to find them afterwards. Does not render
or encode. The reference has the same idea under the name `sanitize_control_tokens`.
"""

import re
from collections.abc import Iterable
from typing import Any

# Two code points that Unicode reserves for no character: they cannot mean anything in a text.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"


def mark(value: Any, tokens: Iterable[str]) -> Any:
    """A copy of JSON values in which every control token that a text spells is marked."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return _mark(value, re.compile("|".join(map(re.escape, longest_first)) or "(?!)"))


def _mark(value: Any, pattern: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        clean = value.replace(_OPEN, "").replace(_CLOSE, "")
        return pattern.sub(lambda match: f"{_OPEN}{match[0]}{_CLOSE}", clean)
    if isinstance(value, dict):
        return {_mark(key, pattern): _mark(item, pattern) for key, item in value.items()}
    if isinstance(value, list):
        return [_mark(item, pattern) for item in value]
    return value


def split(rendered: str) -> list[tuple[str, bool]]:
    """Pieces of a rendered text, each with whether control tokens in it may act.

    A template may have cut between a token and its marks; a lone mark is dropped, and still keeps
    the texts on its sides apart.
    """
    parts = re.split(f"{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}|[{_OPEN}{_CLOSE}]", rendered)
    return [(part, index % 2 == 0) for index, part in enumerate(parts) if part]
