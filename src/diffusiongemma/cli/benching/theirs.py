"""The other side of the bench: transformers, driven by its own generation code.

transformers is a rival here and no dependency: it is looked for by name, and without it the bench
measures this package alone. A step is its own `_denoising_step`, prepared as `generate` prepares
it, with the kernels that it chooses by itself.
"""

import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NEVER = 1e-30  # nats; a mean entropy below it would end a canvas


def found() -> bool:
    """Whether transformers is installed."""
    return importlib.util.find_spec("transformers") is not None


def cache_name(model: Any) -> str:
    """What their network calls the cache it is given, and the one it hands back."""
    taken = inspect.signature(model.forward).parameters
    return "cache" if "cache" in taken else "past_key_values"  # renamed in 5.24


class Theirs:
    """Their network and the rows that a step works on."""

    name = "transformers"

    @classmethod
    def opened(cls, folder: Path, dtype: torch.dtype) -> "Theirs":
        """With a network of its own, from a folder."""
        hf = importlib.import_module("transformers")
        hf.utils.logging.set_verbosity_error()
        hf.utils.logging.disable_progress_bar()
        config = hf.DiffusionGemmaConfig.from_pretrained(folder)
        if config.vision_config is not None and not _stored(folder, "vision"):
            # Without one in the checkpoint it makes a random tower of half a billion weights.
            config.vision_config.num_hidden_layers = 1
        if config.image_token_id is None:
            config.image_token_id = -1  # its generate compares ids with it and stumbles over None
        found = hf.DiffusionGemmaForBlockDiffusion.from_pretrained(
            folder, config=config, dtype=dtype
        )
        return cls(found.eval())

    def __init__(self, model: Any) -> None:
        self.model, self.device = model, model.device
        self.cache: str | None = None  # its kind; None is what it takes by itself
        # No answer ends early, or the sides would do different work.
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = None
        self.generation = importlib.import_module(
            "transformers.models.diffusion_gemma.generation_diffusion_gemma"
        )

    @property
    def kernels(self) -> dict[str, str]:
        """What it chose to compute with."""
        text = self.model.config.get_text_config()
        return {
            "attention": str(getattr(text, "_attn_implementation", None)),
            "experts": str(getattr(text, "_experts_implementation", None)),
        }

    @torch.no_grad()
    def prepare(self, ids_BT: Tensor, steps: int) -> None:
        """Encode prompts and begin their first canvases, as the top of `generate` does."""
        model, (rows, tokens) = self.model, ids_BT.shape
        settings, _ = model._prepare_generation_config(self._settings(steps, 1))
        longest = tokens + model.config.canvas_length
        cache = model._prepare_cache_for_generation(settings, rows, longest)
        named = cache_name(model)
        seen = torch.ones(rows, tokens, dtype=torch.bool, device=self.device)
        ids_BT = ids_BT.to(self.device)
        positions = torch.arange(tokens, dtype=torch.int32, device=self.device)[None]
        width = model.config.canvas_length
        sampler = model._prepare_sampler(settings)
        stopping = model._prepare_diffusion_stopping_criteria(settings)
        ids, masks = model._prepare_encoder_inputs(
            ids_BT, seen, positions, cache, True, width, rows
        )
        encoded = model.model.encoder(
            input_ids=ids, attention_mask=masks, position_ids=positions, **{named: cache}
        )
        cache = encoded[named]
        canvas, soft, masks, _ = model._prepare_denoiser_inputs(
            torch.nn.functional.pad(seen, (0, width), value=True),
            cache, sampler, stopping, rows, ids_BT.device, {},
        )  # fmt: skip
        self.state = (canvas, canvas, soft)
        self.fixed = {
            "decoder_forward": model.forward,
            "input_ids": ids_BT,
            "decoder_position_ids": torch.arange(
                tokens, longest, dtype=torch.int32, device=self.device
            )[None],
            "mask_mapping": masks,
            named: cache,
            "cur_step": steps,
            "sampler": sampler,
            "logits_processor": model._prepare_logits_processor(settings),
            "diffusion_stopping_criteria": stopping,
        }

    @torch.no_grad()
    def step(self) -> None:
        """One denoising step of every row."""
        canvas, best, soft = self.state
        *state, _ = self.model._denoising_step(
            current_canvas=canvas,
            argmax_canvas=best,
            self_conditioning_logits=soft,
            finished_denoising=torch.zeros(canvas.shape[0], dtype=torch.bool, device=self.device),
            **self.fixed,
        )
        self.state = tuple(state)

    def generate(self, ids_BT: Tensor, steps: int, canvases: int) -> int:
        """Whole answers at a fixed number of steps.

        Returns:
            denoising steps of a canvas, as they were counted.
        """
        said = self.model.generate(
            ids_BT.to(self.device), generation_config=self._settings(steps, canvases)
        )
        width = self.model.config.canvas_length
        return round(float(width / said.tokens_per_forward.float().mean()))

    def _settings(self, steps: int, canvases: int) -> Any:
        return self.generation.DiffusionGemmaGenerationConfig(
            max_new_tokens=canvases * self.model.config.canvas_length,
            max_denoising_steps=steps,
            sampler_config=self.generation.EntropyBoundSamplerConfig(0.1),
            t_min=0.4,
            t_max=0.8,
            stability_threshold=1,
            confidence_threshold=NEVER,
            cache_implementation=self.cache,
        )


def _stored(folder: Path, part: str) -> bool:
    from safetensors import safe_open

    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            if any(part in name for name in opened.keys()):
                return True
    return False
