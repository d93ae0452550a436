"""What was opened -> a checkpoint folder again, or a repository on the hub.

Knows which of its parts a copy is made of. How they are written and sent, `checkpoint` knows.
"""

import os
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from diffusiongemma.checkpoint.card import by_hand, compose, lies_in, tell_before
from diffusiongemma.checkpoint.folder import (
    BEFORE,
    CARD,
    GENERATION,
    Kept,
    destination,
    tell_strays,
)
from diffusiongemma.checkpoint.load import holds
from diffusiongemma.checkpoint.push import push
from diffusiongemma.checkpoint.save import merged, save_model
from diffusiongemma.diffusion.config import SamplerConfig
from diffusiongemma.model.model import DiffusionGemma


@dataclass(frozen=True, slots=True)
class Copy:
    """What a copy is made of.

    Attributes:
        model: the network.
        sampler: the sampling defaults.
        eos: ids that end an answer.
        folder: where it came from.
        kept: what the files said beyond these, when they were opened.
    """

    model: DiffusionGemma
    sampler: SamplerConfig
    eos: Collection[int]
    folder: Path
    kept: Kept

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool) -> Path:
        """Write a folder; see `Gemma.save`."""
        target = destination(folder)
        there = by_hand(target) if overwrite else None
        if there == self.kept.files.get(CARD):  # it is of the source, and not of a copy
            there = None
        return self._write(target, target.resolve().name, overwrite, there)

    def push(
        self,
        repo_id: str,
        *,
        private: bool | None,
        token: str | None,
        revision: str | None,
        message: str | None,
    ) -> str:
        """Write a temporary folder and upload it; see `Gemma.push_to_hub`."""
        with tempfile.TemporaryDirectory(prefix="diffusiongemma-push-") as scratch:
            folder = self._write(Path(scratch, "model"), repo_id, False)
            return push(
                folder, repo_id, private=private, token=token, revision=revision, message=message
            )

    def _write(self, folder: Path, place: str, overwrite: bool, card: bytes | None = None) -> Path:
        tell_strays(self.folder)
        cards = self._cards(place) if card is None else {CARD: card}
        eos = {"eos_token_id": sorted(self.eos)} if self.eos else {}
        said = self.sampler.to_generation_config() | eos
        return save_model(
            self.model,
            folder,
            extra={GENERATION: merged(said, self.kept.generation)},
            keys=self.kept.config,
            files={**self.kept.files, **cards},
            overwrite=overwrite,
        )

    def _cards(self, place: str) -> dict[str, bytes]:
        """The source's card if it speaks of these weights; else a new one, and it beside that."""
        before = self.kept.files.get(CARD)
        if before is not None and self._unchanged(before):
            return {CARD: before}
        config, base = self.model.config, self.kept.origin
        count = sum(weight.numel() for weight in self.model.parameters())
        source = "" if base is None else f" It comes from `{base}`."
        about = (
            f"A DiffusionGemma with {count:,} parameters: it drafts {config.canvas_length} tokens "
            f"at once, in a context of {config.max_position_embeddings:,}, and reads "
            f"{'no pictures' if config.vision is None else 'pictures'}.{source}"
            f"{tell_before(before)}"
        )
        made = {CARD: compose(place, config, about=about, base=base, before=before).encode()}
        return made if before is None else {BEFORE: before, **made}

    def _unchanged(self, card: bytes) -> bool:
        """Whether the weights are still those that a card of the source's folder speaks of."""
        return lies_in(self.folder) == card and holds(self.folder, self.model)
