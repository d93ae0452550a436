"""The text of each token alone, for whoever shows tokens apart: a screen, a page.

Knows that a character may lie in several tokens. Does not know what is done with the pieces.
"""

from collections.abc import Sequence

from diffusiongemma.dialog.tokenizer import Tokenizer

_HALF = "\N{REPLACEMENT CHARACTER}"  # how an unfinished character decodes
_LONGEST = 4  # bytes of a character


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """One text for each token; joined, they are what the tokens say together.

    Args:
        tokenizer: the decoder.
        ids: the tokens. Control tokens say nothing: their text is empty.

    Returns:
        The texts. A character that lies in several tokens stands with the first of them, and the
        others are empty. A token that is half a character and stays so is a replacement character.
    """
    anchor = tokenizer.encode("a", special=False)  # decoders trim at the start of a text
    before = len(tokenizer.decode(anchor))
    alone: dict[tuple[int, ...], str] = {}

    def said(some: Sequence[int]) -> str:
        key = tuple(some)
        if key not in alone:
            alone[key] = tokenizer.decode([*anchor, *key])[before:]
        return alone[key]

    texts: list[str] = []
    while len(texts) < len(ids):
        place = len(texts)
        text, count = said(ids[place : place + 1]), 1
        for more in range(2, _LONGEST + 1) if _HALF in text else ():
            whole = said(ids[place : place + more])
            if _HALF not in whole and place + more <= len(ids):
                text, count = whole, more
                break
        texts += [text] + [""] * (count - 1)
    return texts
