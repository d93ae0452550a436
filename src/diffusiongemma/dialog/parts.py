"""Lists of text parts, for chat templates that know nothing but texts.

Every chat client sends `[{"type": "text", "text": ...}]` for a text. Templates that know parts are
given them as they are, as transformers does; one that does not would print the list itself.
Whether a template knows parts is found by trying, role by role: its source may hide that behind
any number of macros. Does not know how a template is rendered.
"""

from collections.abc import Callable
from typing import Any

from diffusiongemma.core.errors import InputError

Turn = dict[str, Any]
Write = Callable[[list[Turn]], str]

_WORD, _KEY = "xqwordqx", "xqkeyqx"
_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}
_BEFORE: dict[str, list[Turn]] = {
    "assistant": [{"role": "user", "content": "a"}],
    "tool": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    ],
}
_AFTER: list[Turn] = [{"role": "user", "content": "b"}]


class Parts:
    """What one template knows of parts.

    Args:
        write: renders a conversation with it.
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self._known: dict[str, bool] = {}

    def fit(self, turns: list[Turn]) -> list[Turn]:
        """These turns, with lists of nothing but texts joined where the template takes none."""
        return [self._fit(turn) for turn in turns]

    def _fit(self, turn: Turn) -> Turn:
        content = turn["content"]
        if not isinstance(content, list) or any(part["type"] != "text" for part in content):
            return turn
        if self._knows(turn["role"]):
            return turn
        return {**turn, "content": "".join(part["text"] for part in content)}

    def _knows(self, role: str) -> bool:
        if role not in self._known:
            as_text = self._tried(role, _WORD)
            # A template that prints the whole list prints this key, too, which it cannot know.
            as_parts = self._tried(role, [{"type": "text", "text": _WORD, "key": _KEY}])
            refused = as_text is None  # whatever the content, so it stays as it is
            self._known[role] = refused or (
                as_parts is not None
                and _KEY not in as_parts
                and (_WORD in as_parts or _WORD not in (as_text or ""))
            )
        return self._known[role]

    def _tried(self, role: str, content: Any) -> str | None:
        """What becomes of this content; None if the template refuses it, or fails."""
        turn = {"role": role, "content": content, "name": "f", "tool_call_id": "1"}
        turns = [*_BEFORE.get(role, ()), turn, *(_AFTER if role in ("system", "assistant") else ())]
        try:
            return self._write(turns)
        except InputError:
            return None
