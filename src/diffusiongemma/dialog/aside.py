"""Which tokens of a reply are spoken, and which are an aside: a thought, a call of a tool, a mark.

The same marks as in `reply.py`, told token by token, for streams that cannot wait for the end.
"""

from diffusiongemma.dialog.tokenizer import Tokenizer


class Aside:
    """Follows a reply from its first token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._opens = {tokenizer.id("<|channel>"), tokenizer.id("<|tool_call>")} - {None}
        self._closes = {tokenizer.id("<channel|>"), tokenizer.id("<tool_call|>")} - {None}
        self._inside = False

    def speaks(self, token: int) -> bool:
        """Take the next token; True if it belongs to the answer that a reader sees."""
        if token in self._opens:
            self._inside = True
            return False
        if token in self._closes:
            self._inside = False
            return False
        return not self._inside
