"""transformers as the oracle: the same script played by it and by us.

A script is a list of acts: encode these tokens (with these images), denoise this canvas (with this
signal from the step before). What comes out is compared, logits by logits.
"""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import toys
from diffusiongemma.checkpoint.config import from_hf
from diffusiongemma.checkpoint.load import load_model, read_json
from diffusiongemma.cli.benching.theirs import cache_name
from diffusiongemma.core.patches import Patches
from diffusiongemma.model.model import DiffusionGemma

HEAT = 0.7  # temperature of the self-conditioning signal in scripts


@dataclass(frozen=True)
class Encode:
    """Tokens for the encoder; `chunks` are how we cut them, transformers takes them whole."""

    ids: Tensor
    images: tuple[Patches, ...] = ()
    chunks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Denoise:
    """A canvas for the denoiser, with the logits of the step before, or none."""

    canvas: Tensor
    before: Tensor | None = None


Script = Sequence[Encode | Denoise]
PLACE = torch.device(os.environ.get("DIFFUSIONGEMMA_TEST_DEVICE", "cpu"))
"""Where both sides compute; on a GPU with the kernels of a GPU, on both sides."""


@dataclass
class Pair:
    """One checkpoint folder, opened by transformers twice and by us."""

    toy: toys.Toy
    folder: Path
    sdpa: Any
    eager: Any
    ours: DiffusionGemma
    worst: float = 0.0
    allowance: float = field(default=1e-4)


def open_pair(toy: toys.Toy, folder: Path, dtype: torch.dtype = torch.float32) -> Pair:
    """Have transformers write a checkpoint, and open it on all sides."""
    from transformers import DiffusionGemmaForBlockDiffusion

    if not (folder / "config.json").exists():
        toys.write(toy, folder)
    opened = {
        kind: DiffusionGemmaForBlockDiffusion.from_pretrained(
            folder, attn_implementation=kind, dtype=dtype
        )
        .eval()
        .to(PLACE)
        for kind in ("sdpa", "eager")
    }
    return Pair(toy, folder, opened["sdpa"], opened["eager"], open_ours(folder, dtype))


def open_ours(folder: Path, dtype: torch.dtype = torch.float32) -> DiffusionGemma:
    """Our own network from the folder."""
    config = from_hf(read_json(folder / "config.json"))
    return load_model(folder, config, device=PLACE, dtype=dtype)


@torch.no_grad()
def play_hf(model: Any, script: Script) -> list[Tensor]:
    """What transformers says to each act: logits in float32."""
    from transformers import DynamicCache

    config = model.config.get_text_config()
    cache = DynamicCache(config=config)
    said, kinds = [], torch.zeros(1, 0, dtype=torch.long, device=PLACE)
    for act in map(_moved, script):
        if isinstance(act, Encode):
            kinds = torch.cat([kinds, (act.ids == model.config.image_token_id).long()], dim=1)
            hidden = _encode_hf(model, act, cache, kinds)
            cap = model.final_logit_softcapping
            logits = torch.tanh(model.lm_head(hidden).float() / cap) * cap
        else:
            before = None if act.before is None else (act.before / HEAT).to(model.dtype)
            logits = model(
                decoder_input_ids=act.canvas,
                self_conditioning_logits=before,
                **{cache_name(model): cache},
            ).logits
        said.append(logits.cpu())
    return said


def _moved(act: Encode | Denoise) -> Encode | Denoise:
    """The act with its tensors in place."""
    if isinstance(act, Encode):
        return replace(act, ids=act.ids.to(PLACE))
    before = None if act.before is None else act.before.to(PLACE)
    return replace(act, canvas=act.canvas.to(PLACE), before=before)


def _encode_hf(model: Any, act: Encode, cache: Any, kinds: Tensor) -> Tensor:
    encoder, given = model.model.encoder, {cache_name(model): cache}
    start = cache.get_seq_length()
    positions = torch.arange(start, start + act.ids.shape[1], device=PLACE)[None]
    # Only this dictionary carries the image overlay; a 2-D mask would be built and thrown away.
    # Its images are looked up by absolute position, so it has to be told of the past ones too.
    masks = encoder.create_masks_for_generate(
        config=model.config,
        inputs_embeds=torch.empty(*act.ids.shape, 0, dtype=model.dtype, device=PLACE),
        attention_mask=None,
        position_ids=positions,
        mm_token_type_ids=kinds if kinds.any() else None,
        **given,
    )
    extra = {}
    if act.images:
        longest = max(len(image.values_PX) for image in act.images)
        padded = [longest - len(image.values_PX) for image in act.images]
        pad = torch.nn.functional.pad
        extra["pixel_values"] = torch.stack(
            [pad(i.values_PX, (0, 0, 0, n)) for i, n in zip(act.images, padded, strict=True)]
        ).to(PLACE)
        extra["image_position_ids"] = torch.stack(
            [
                pad(i.positions_P2, (0, 0, 0, n), value=-1)
                for i, n in zip(act.images, padded, strict=True)
            ]
        ).to(PLACE)
    return encoder(
        input_ids=act.ids,
        attention_mask=masks,
        position_ids=positions,
        **given,
        **extra,
    ).last_hidden_state


@torch.no_grad()
def play_ours(model: DiffusionGemma, script: Script, capacity: int | None = None) -> list[Tensor]:
    """What we say to each act."""
    context = model.context(rows=1, capacity=capacity)
    said = []
    for act in map(_moved, script):
        if isinstance(act, Encode):
            inputs = model.embed(act.ids, act.images)
            borders = [0, *act.chunks, act.ids.shape[1]]
            hidden = [
                model.encode(inputs.cut(a, b), context) for a, b in itertools.pairwise(borders)
            ]
            said.append(model.logits(torch.cat(hidden, dim=1)).cpu())
        else:
            soft = None
            if act.before is not None:
                soft = model.soften(act.before, torch.tensor([HEAT], device=PLACE))
            said.append(model.logits(model.denoise(act.canvas, soft, context)).cpu())
    return said


def furthest(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest absolute difference over all acts."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


class Dice:
    """Random tokens, canvases and images for a toy."""

    def __init__(self, toy: toys.Toy, seed: int) -> None:
        self.toy = toy
        self.generator = torch.Generator().manual_seed(1000 * toy.seed + seed)

    def ids(self, count: int) -> Tensor:
        """Text tokens, no image placeholders among them."""
        return torch.randint(3, self.toy.vocabulary - 3, (1, count), generator=self.generator)

    def canvas(self, width: int | None = None) -> Tensor:
        """Tokens from the whole vocabulary."""
        shape = (1, width or self.toy.canvas)
        return torch.randint(0, self.toy.vocabulary, shape, generator=self.generator)

    def logits(self, width: int | None = None) -> Tensor:
        """What a step before might have said: some positions sure, some not."""
        shape = (1, width or self.toy.canvas, self.toy.vocabulary)
        sure = torch.rand(1, shape[1], 1, generator=self.generator) * 8
        return (torch.randn(shape, generator=self.generator) * sure).clamp(-30, 30)

    def image(self, columns: int, rows: int) -> Patches:
        """An image of columns x rows patches."""
        values = torch.rand(columns * rows, 48, generator=self.generator)
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        return Patches(values, torch.stack([x.flatten(), y.flatten()], dim=-1))

    def with_images(self, *images: Patches) -> Tensor:
        """Text with a run of placeholders for each image."""
        mark = self.toy.vocabulary - 1
        parts = [self.ids(5)]
        for image in images:
            run = torch.full((1, len(image.values_PX) // 4), mark)
            parts += [torch.tensor([[mark - 1]]), run, torch.tensor([[mark - 2]]), self.ids(4)]
        return torch.cat(parts, dim=1)
