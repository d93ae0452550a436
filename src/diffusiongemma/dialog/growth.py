"""How much longer a tokenizer's steps may make a text, and how long they may take for it, told
before any of them runs.

A tokenizer.json names steps that rewrite a text before it is cut into tokens, and tokens before
they are joined. A chain of thirty that each double a letter never ends, nor can it be interrupted;
one that runs on a token of the file hangs as it is read. Knows the steps of the `tokenizers`
library by the keys of their settings, as that library does where a step's type is left out.
"""

import base64
import json
import math
from pathlib import Path
from typing import Any

from diffusiongemma.core.errors import CheckpointError
from diffusiongemma.core.letters import brief
from diffusiongemma.core.reading import TABLES, check_parts
from diffusiongemma.dialog import patterns

WRITTEN = 64
"""Bytes for one byte that the file's own texts may come to; Llama 2's come to 12, Gemma's to 3."""

FOLDED = 1 << 14
"""The same with Unicode's forms, which are small but multiply; ALBERT's steps come to 9,000."""

STEPS = 100
"""Steps of a tokenizer; those of real ones have up to ten, and each goes over all of a text."""

SEARCHED = 16 * patterns.PAGE
"""Ways that patterns may try from one letter of a page; those of real tokenizers have 7 pages."""

WORD = 1000
"""Letters that a WordPiece model may take for one word, which takes their cube; BERT's are 100."""

_TRUST = "do not use this checkpoint unless you trust its source"
_CHAINS = ("normalizers", "pretokenizers", "processors", "decoders")
# The largest growth of any letter. Of the steps with no entry here, `_SAME` keep a text's length.
_FORMS = {"NFC": 3, "NFD": 3, "NFKC": 11, "NFKD": 11, "Lowercase": 1.5, "BertNormalizer": 3}
_SAME = frozenset([
    "Sequence", "Replace", "Prepend", "Precompiled", "TemplateProcessing", "Metaspace",  # by keys
    "Strip", "StripAccents", "Nmt", "BertPreTokenizer", "CharDelimiterSplit", "Digits",
    "FixedLength", "Punctuation", "Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit",
    "BertProcessing", "RobertaProcessing", "ByteFallback", "Fuse", "BPEDecoder", "CTC",
])  # fmt: skip
_OTHER = 4  # a byte becomes two in ByteLevel, a space is added in WordPiece; what others do is open


def check(content: bytes, file: Path) -> float:
    """Refuse a tokenizer whose steps may lengthen a text, or take time, beyond measure.

    Args:
        content: of its tokenizer.json.
        file: where that lies, for messages.

    Returns:
        bytes that one byte of a text may become.

    Raises:
        CheckpointError: they may, or the file is not a JSON object.
    """
    check_parts(content, file, TABLES)
    try:
        # As the library would read it: where a key stands twice, it takes the one, we the other.
        data = json.loads(content.decode("utf-8"), object_pairs_hook=_once)
        parts = [data.get(key) for key in ("normalizer", "pre_tokenizer", "post_processor")]
    except (CheckpointError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{file} is not a tokenizer that can be read ({error}); fetch the file again"
        ) from error
    after = [data.get("decoder")]
    flat = _flat(parts + after)
    if len(flat) > STEPS:
        raise CheckpointError(
            f"{file} has {len(flat):,} steps, and at most {STEPS} are taken; {_TRUST}"
        )
    for steps, text in ((parts, "a text"), (after, "a token")):
        written, folded = _growth(steps)
        if written > WRITTEN or folded > FOLDED:
            raise CheckpointError(
                f"{file} has steps that may make {text} {max(written, folded):.2g} times as long, "
                f"and at most {WRITTEN} times are taken; {_TRUST}"
            )
    _check_time(flat, data.get("model"), file)
    return max(_growth(parts))


def _check_time(steps: list[dict[str, Any]], model: Any, file: Path) -> None:
    """Refuse what may take minutes for a page, in which nothing can interrupt it."""
    word = model.get("max_input_chars_per_word", 0) if isinstance(model, dict) else 0
    if not isinstance(word, int) or word > WORD:
        raise CheckpointError(
            f"{file} takes words of {brief(word)} letters, and at most {WORD} are taken; {_TRUST}"
        )
    searched = 0.0
    for pattern in filter(None, map(_pattern, steps)):
        try:
            searched += patterns.work(pattern)
        except patterns.PatternError as error:
            raise CheckpointError(
                f"{file} has the pattern {brief(pattern)}, which {error}, so that it may search "
                f"without end; {_TRUST}"
            ) from error
    if searched > SEARCHED:
        raise CheckpointError(
            f"{file} has patterns that may try {searched:.2g} ways from each letter of a text, and "
            f"at most {SEARCHED} are taken; {_TRUST}"
        )


def _pattern(step: dict[str, Any]) -> str | None:
    """The regular expression of a step, if it has one."""
    pattern = step.get("pattern")
    found = pattern.get("Regex") if isinstance(pattern, dict) else None
    return found if isinstance(found, str) else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        raise CheckpointError("a key stands twice in one object")
    return data


def _growth(steps: list[Any]) -> tuple[float, float]:
    """Bytes for a byte, at most: by the file's own texts alone, and with Unicode's forms."""
    written = folded = 1.0
    for step in _flat(steps):
        texts = _by_texts(step)
        written *= texts
        folded *= texts * _by_forms(step)
    return written, folded


def _flat(steps: list[Any]) -> list[dict[str, Any]]:
    """All steps of chains within chains."""
    flat: list[dict[str, Any]] = []
    left = [*steps]
    while left:
        step = left.pop()
        if isinstance(step, dict):
            flat.append(step)
            left += [inner for chain in _CHAINS for inner in _list(step.get(chain))]
    return flat


def _by_texts(step: dict[str, Any]) -> float:
    growth = 1.0
    if "pattern" in step and "content" in step:
        pattern, content = step["pattern"], _bytes(step["content"])
        old = _bytes(pattern.get("String")) if isinstance(pattern, dict) else 0
        # A pattern that matches nothing at all does so on both sides of every letter.
        growth *= max(1, content / old) if old else 1 + 2 * content
    for key in ("prepend", "replacement"):
        growth *= 1 + _bytes(step.get(key))
    growth *= max(
        1, sum(isinstance(part, dict) and "Sequence" in part for part in _list(step.get("single")))
    )
    kind = str(step.get("type"))
    known = kind in _SAME or kind in _FORMS or step.get("type") is None
    return growth if known else growth * _OTHER


def _by_forms(step: dict[str, Any]) -> float:
    growth = _FORMS.get(str(step.get("type")), 1)
    table = step.get("precompiled_charsmap")
    return growth * _longest(table) if isinstance(table, str) else growth


def _longest(table: str) -> float:
    """The longest text in SentencePiece's table: an index with its size before it, then texts."""
    try:
        raw = base64.b64decode(table, validate=True)
    except ValueError:
        return math.inf
    texts = raw[4 + int.from_bytes(raw[:4], "little") :]
    return max(1, *map(len, texts.split(b"\0")))


def _bytes(text: Any) -> int:
    return len(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else 0


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
