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
    whole = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
    starts = {token[:n] for token in longest_first for n in range(1, len(token))}
    return _mark(value, whole, frozenset(starts))


def _mark(value: Any, whole: re.Pattern[str], starts: frozenset[str]) -> Any:
    if isinstance(value, str):
        clean = value.replace(_OPEN, "").replace(_CLOSE, "")
        return _fence(whole.sub(lambda match: f"{_OPEN}{match[0]}{_CLOSE}", clean), starts)
    if isinstance(value, dict):
        return {_mark(k, whole, starts): _mark(v, whole, starts) for k, v in value.items()}
    if isinstance(value, list):
        return [_mark(item, whole, starts) for item in value]
    return value


def _fence(text: str, starts: frozenset[str]) -> str:
    """A lone mark after an end that begins a token, which the next text might complete.

    Before the white space at the end, as templates trim that away.
    """
    bare = text.rstrip()
    longest = max(map(len, starts), default=0)
    if any(bare[-n:] in starts for n in range(1, min(longest, len(bare)) + 1)):
        return bare + _CLOSE + text[len(bare) :]
    return text


def split(rendered: str) -> list[tuple[str, bool]]:
    """Pieces of a rendered text, each with whether control tokens in it may act.

    A template may have cut between a token and its marks; a lone mark is dropped, and still keeps
    the texts on its sides apart.
    """
    parts = re.split(f"{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}|[{_OPEN}{_CLOSE}]", rendered)
    return [(part, index % 2 == 0) for index, part in enumerate(parts) if part]
