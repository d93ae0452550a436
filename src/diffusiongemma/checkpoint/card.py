"""The model card of a checkpoint that is written here: README.md, as the hub reads it.

Knows the hub's words for what a checkpoint is. A card that a person wrote, or changed, is never
replaced: the last line of one from here says what it was, so that any change shows.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

from diffusiongemma.checkpoint.folder import BEFORE, CARD, is_own
from diffusiongemma.checkpoint.hub import looks_like_hub_id
from diffusiongemma.core.errors import CheckpointError
from diffusiongemma.core.reading import read_bytes
from diffusiongemma.model.config import ModelConfig

_MARK = re.compile(r"<!-- as diffusiongemma wrote it: ([0-9a-f]{16}) -->\n?\Z")
_PLAIN = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LARGEST = 1 << 20
_TAGS = ("text-diffusion", "diffusion-gemma", "mixture-of-experts")
_GOOGLE = "google/diffusiongemma"
_OPEN = """\
## How to open it

```python
import diffusiongemma as dg

gemma = dg.load("{place}")  # or where you put it
print(gemma.generate("Why is the sky blue?").text)
```

or `diffusiongemma -m {place} "Why is the sky blue?"`.
"""
_OPEN_THERE = """\
With transformers, 5.23 or newer:

```python
from transformers import AutoTokenizer, DiffusionGemmaForBlockDiffusion

model = DiffusionGemmaForBlockDiffusion.from_pretrained("{place}")
tokenizer = AutoTokenizer.from_pretrained("{place}")
```
"""


def compose(
    place: str,
    config: ModelConfig,
    *,
    about: str,
    base: str | None = None,
    relation: str | None = None,
    before: bytes | None = None,
    after: str = "",
) -> str:
    """The text of a card.

    Args:
        place: the folder's name or hub id.
        config: the network.
        about: a paragraph on what it is and where it came from.
        base: the hub id that it was made from; by default what the card before says.
        relation: how it was made, in the hub's word: `quantized`, `finetune`.
        before: the card of what it was made from; its licence and language are carried on.
        after: what follows on how to open it.
    """
    from huggingface_hub import ModelCardData

    told = _told(before)
    base = base or _text(told, "base_model")
    if base is not None and not looks_like_hub_id(base):
        base = None
    usual = "apache-2.0" if base is not None and base.startswith(_GOOGLE) else "unknown"
    carried = {name: told[name] for name in ("license_name", "license_link") if _text(told, name)}
    data = ModelCardData(
        base_model=base,
        base_model_relation=relation if base is not None else None,
        language=_texts(told.get("language")) or None,
        library_name="diffusiongemma",
        license=_text(told, "license") or usual,
        pipeline_tag="text-generation" if config.vision is None else "image-text-to-text",
        tags=[*_TAGS, *(["fp8", "compressed-tensors"] if config.fp8 else [])],
        **carried,
    )
    place = place if _PLAIN.fullmatch(place) else "FOLDER"
    # transformers 5.23 has experts in two tensors, and finds none where each has its own.
    ways = (_OPEN,) if config.fp8 else (_OPEN, _OPEN_THERE)
    opened = [way.format(place=place).rstrip() for way in ways]
    parts = [f"---\n{data.to_yaml()}\n---", f"# {place}", about, *opened, after]
    text = "\n\n".join(part for part in parts if part) + "\n\n"
    return f"{text}<!-- as diffusiongemma wrote it: {_sum(text)} -->\n"


def tell_before(before: bytes | None) -> str:
    """A paragraph on the card of what a copy with other weights was made from, if it had one."""
    if before is None:
        return ""
    return (
        f"\n\nThe card of what it was made from is in `{BEFORE}`; its figures are not this one's."
    )


def lies_in(folder: Path) -> bytes | None:
    """The card of a folder, if it has one that can be read."""
    try:
        return read_bytes(folder / CARD) if is_own(folder, CARD) else None
    except CheckpointError:
        return None


def by_hand(folder: Path) -> bytes | None:
    """The card that lies in a folder, if a person wrote or changed it."""
    content = lies_in(folder)
    return None if content is None or _untouched(content) else content


def _untouched(content: bytes) -> bool:
    text = content.decode("utf-8", errors="replace")
    found = _MARK.search(text)
    return found is not None and found[1] == _sum(text[: found.start()])


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _told(card: bytes | None) -> dict[str, Any]:
    """The metadata of a card; nothing where there is none that can be read."""
    text = (card or b"")[:_LARGEST].decode("utf-8", errors="replace")
    if not text.startswith("---"):
        return {}
    from huggingface_hub import ModelCard

    try:
        return ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # a stranger's YAML, read by a library that checks its types by using them
        return {}


def _texts(value: Any) -> list[str]:
    """One text or several, as a list."""
    several = value if isinstance(value, list) else [value]
    return [one for one in several if isinstance(one, str) and one.isprintable()]


def _text(told: dict[str, Any], name: str) -> str | None:
    return next(iter(_texts(told.get(name))), None)
