"""Whether a checkpoint would open, told from its small files and headers; no weight is read.

Where loading stops at the first problem, this goes on and collects them all.
"""

from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from diffusiongemma.checkpoint import hub, names, stand_in
from diffusiongemma.checkpoint.config import read_config
from diffusiongemma.checkpoint.load import find_shards, load_model, open_shard
from diffusiongemma.core.device import choose
from diffusiongemma.core.errors import DiffusionGemmaError
from diffusiongemma.core.reading import read_json
from diffusiongemma.dialog.settings import ImageSettings
from diffusiongemma.dialog.template import find_template, special_names
from diffusiongemma.dialog.tokenizer import Tokenizer
from diffusiongemma.diffusion.config import SamplerConfig
from diffusiongemma.engine.open import end_marks, open_chat, read_settings
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.count import parameters

P = ParamSpec("P")
R = TypeVar("R")


class Checkup:
    """One checkpoint, looked at.

    Attributes:
        facts: what was found, as `machine` has them.
        problems: why it would not open; empty if it would.
        weight_bytes: of all weights; 0 if unknown.
        config: the architecture; None if unknown.
    """

    def __init__(self, model: str, revision: str | None = None) -> None:
        self.facts: dict[str, Any] = {}
        self.problems: list[str] = []
        self.weight_bytes = 0
        self.config: ModelConfig | None = None
        folder = self._try(hub.find, model, revision=revision, offline=True, progress=False)
        if folder is None:
            return
        self.facts["folder"] = str(folder)
        raw = self._try(read_json, folder / "config.json")
        described = None if raw is None else self._try(read_config, folder)
        config = None if described is None else described.config
        if config is not None:
            self.facts |= _architecture(config)
            self.config = config
        self._weights(folder, config)
        given = self._try(read_settings, folder)
        if given is not None:
            self._try(SamplerConfig.from_generation_config, given)
        eos = None
        if config is not None:
            eos = self._try(end_marks, given or {}, raw or {}, config.vocab_size)
        self._words(folder, config, eos or ())

    def _try(self, look: Callable[P, R], *args: P.args, **options: P.kwargs) -> R | None:
        try:
            return look(*args, **options)
        except DiffusionGemmaError as error:
            said = str(error)
            if said not in self.problems:
                self.problems.append(said)
            return None

    def _weights(self, folder: Path, config: ModelConfig | None) -> None:
        shards = self._try(find_shards, folder)
        if shards is None:
            return
        counts: Counter[str] = Counter()
        spare: Collection[str] = ()
        if config is not None and config.vision is None:
            spare = stand_in.shapes(config.hidden_size)
        before = len(self.problems)
        for shard in shards:
            counts.update(self._try(_count, shard, spare) or {})
        if len(self.problems) > before:
            return
        self.facts["tensors"] = dict(counts.most_common())
        self.weight_bytes = sum(shard.stat().st_size for shard in shards)
        self.facts["files"] = len(shards)
        self.facts["weight_bytes"] = self.weight_bytes
        place = None if config is None else self._try(choose, "cpu", None, config.dtype)
        if config is not None and place is not None:
            nowhere = torch.device("meta")  # every name and shape is checked, nothing is read
            self._try(load_model, folder, config, device=nowhere, dtype=place.dtype)

    def _words(self, folder: Path, config: ModelConfig | None, eos: tuple[int, ...]) -> None:
        before = len(self.problems)
        tokenizer = self._try(Tokenizer.from_folder, folder)
        if len(self.problems) > before:
            return
        if tokenizer is None:
            self.facts["tokenizer"] = "none: it takes and gives token ids"
            return
        self.facts["tokenizer"] = f"{tokenizer.size:,} tokens"
        if config is not None:
            self._try(open_chat, folder, tokenizer, config, eos)
        before = len(self.problems)
        template = self._try(find_template, folder)
        if template is not None:
            self._try(template.check)
        if len(self.problems) == before:
            self.facts["chat_template"] = "found" if template else "none: one question, as it is"
        self._try(special_names, folder)
        self._try(ImageSettings.from_folder, folder)


def _architecture(config: ModelConfig) -> dict[str, Any]:
    sliding = sum(layer.sliding for layer in config.layers)
    return {
        "parameters": parameters(config),
        "layers": f"{len(config.layers)}: {sliding} sliding over {config.sliding_window}, "
        f"{len(config.layers) - sliding} full; width {config.hidden_size}",
        "experts": f"{config.num_experts}, of which {config.top_k_experts} serve a token",
        "vocabulary": config.vocab_size,
        "context": f"{config.max_position_embeddings:,} tokens, canvas {config.canvas_length}",
        "pictures": config.vision is not None,
    }


def _count(shard: Path, spare: Collection[str]) -> dict[str, int]:
    """Tensors by stored format, from the header of one file, but for copies and spare ones."""
    counts: Counter[str] = Counter()
    with open_shard(shard) as file:
        for name in file.keys():
            if names.original(name) is None and name not in spare:
                counts[file.get_slice(name).get_dtype()] += 1
    return counts
