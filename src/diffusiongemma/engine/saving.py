"""What was opened -> a checkpoint folder again, or a repository on the hub.

Knows which of its parts a copy is made of. How they are written and sent, `checkpoint` knows.
"""

import os
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from diffusiongemma.checkpoint.card import by_hand, compose
from diffusiongemma.checkpoint.folder import CARD, GENERATION, Kept, destination
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
        kept: what the files said beyond these, when they were opened.
    """

    model: DiffusionGemma
    sampler: SamplerConfig
    eos: Collection[int]
    kept: Kept

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool) -> Path:
        """Write a folder; see `Gemma.save`."""
        target = destination(folder)
        card = by_hand(target) if overwrite else None
        return self._write(target, card or self._card(target.resolve().name), overwrite)

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
            folder = self._write(Path(scratch, "model"), self._card(repo_id), False)
            return push(
                folder, repo_id, private=private, token=token, revision=revision, message=message
            )

    def _write(self, folder: Path, card: bytes, overwrite: bool) -> Path:
        eos = {"eos_token_id": sorted(self.eos)} if self.eos else {}
        said = self.sampler.to_generation_config() | eos
        return save_model(
            self.model,
            folder,
            extra={GENERATION: merged(said, self.kept.generation)},
            keys=self.kept.config,
            files={**self.kept.files, CARD: card},
            overwrite=overwrite,
        )

    def _card(self, place: str) -> bytes:
        """The card that was there, or a new one."""
        if CARD in self.kept.files:
            return self.kept.files[CARD]
        config, base = self.model.config, self.kept.origin
        count = sum(weight.numel() for weight in self.model.parameters())
        source = "" if base is None else f" It comes from `{base}`."
        about = (
            f"A DiffusionGemma with {count:,} parameters: it drafts {config.canvas_length} tokens "
            f"at once, in a context of {config.max_position_embeddings:,}, and reads "
            f"{'no pictures' if config.vision is None else 'pictures'}.{source}"
        )
        return compose(place, config, about=about, base=base).encode()
