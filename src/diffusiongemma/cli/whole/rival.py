"""transformers on the same weights: one copy in memory, two networks that read it."""

import importlib
from typing import Any

import torch

from diffusiongemma.checkpoint import names
from diffusiongemma.checkpoint.config import to_hf
from diffusiongemma.cli.benching.theirs import Theirs
from diffusiongemma.cli.whole.clock import Clock
from diffusiongemma.model.model import DiffusionGemma


def sharing(model: DiffusionGemma) -> Theirs:
    """Their network around our weights.

    It is made without memory, then every weight is put in place by name; what is not stored in
    files, such as the frequencies of rotations, is made by its own initialiser.
    """
    hf = importlib.import_module("transformers")
    hf.utils.logging.set_verbosity_error()
    raw = {k: v for k, v in to_hf(model.config).items() if k != "architectures"}
    if raw.get("vision_config") is None:  # some versions fill it with a large tower, some refuse it
        raw["vision_config"] = hf.Gemma4VisionConfig()
    config = hf.DiffusionGemmaConfig(**raw)
    config.vision_config.num_hidden_layers = 1
    if config.image_token_id is None:
        config.image_token_id = -1
    with torch.device("meta"):
        theirs = hf.DiffusionGemmaForBlockDiffusion(config).to(model.dtype)
    _buffers(theirs, model)
    ours = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, slot in _slots(theirs).items():
        here = names.to_here(names.TIED.get(name, name)) or _tied(name)
        if here is not None and here in ours:
            _put(theirs, name, ours[here], slot)
    if getattr(theirs.model.encoder, "vision_tower", None) is not None:
        theirs.model.encoder.vision_tower.to_empty(device=model.device)
        theirs.model.encoder.embed_vision.to_empty(device=model.device)
    lost = [name for name, slot in _slots(theirs).items() if slot.is_meta]
    assert not lost, f"weights of theirs without one of ours: {lost[:5]}"
    return Theirs(theirs.eval())


def step_seconds(theirs: Theirs, rows: int, context: int, steps: int, clock: Clock) -> float:
    """Median seconds of a denoising step as its own loop makes it."""
    dice = torch.Generator().manual_seed(0)
    vocabulary = theirs.model.config.get_text_config().vocab_size
    ids_BT = torch.randint(0, vocabulary, (rows, context), generator=dice)
    theirs.prepare(ids_BT, steps)
    for _ in range(3):
        theirs.step()
    seconds = sorted(clock.once(theirs.step) for _ in range(9))
    return seconds[4]


def compiled(theirs: Theirs) -> Theirs:
    """The same, compiled for fixed shapes, with a cache of fixed size; for time only, as compiled
    numbers may differ.
    """
    theirs.cache = "static"
    theirs.model.model.decoder = torch.compile(theirs.model.model.decoder, dynamic=False)
    return theirs


def _slots(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    named = dict(module.named_parameters(remove_duplicate=False))
    return named | dict(module.named_buffers(remove_duplicate=False))


def _tied(name: str) -> str | None:
    """Their encoder's copies of the decoder's weights, and the head's of the table."""
    if name == "lm_head.weight":
        return "embedding.weight"
    return names.to_here(name.replace("model.encoder.language_model.", "model.decoder."))


def _put(module: Any, name: str, value: torch.Tensor, slot: torch.Tensor) -> None:
    *path, last = name.split(".")
    for part in path:
        module = getattr(module, part)
    if isinstance(slot, torch.nn.Parameter):
        value = torch.nn.Parameter(value, requires_grad=False)
    setattr(module, last, value)


def _buffers(theirs: Any, model: DiffusionGemma) -> None:
    """Memory for what no file holds, and its values."""
    for place, module in theirs.named_modules():
        own = module._non_persistent_buffers_set
        if not own or "vision" in place:
            continue
        for name in own:
            buffer = getattr(module, name)
            if buffer is not None:
                setattr(module, name, torch.empty_like(buffer, device=model.device))
        theirs._init_weights(module)
