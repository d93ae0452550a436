"""One side of the bench: this package, driven as its engine drives it.

A step is what the engine does between two canvases: uniforms and noise, the denoiser, the readout,
the refinement, and the look at whether to stop.
"""

import torch
from torch import Tensor

from diffusiongemma.diffusion.commit import Commit
from diffusiongemma.diffusion.config import SamplerConfig
from diffusiongemma.diffusion.drafts import Drafts
from diffusiongemma.diffusion.loop import Recipe
from diffusiongemma.diffusion.step import take
from diffusiongemma.engine.engine import Engine, Request
from diffusiongemma.model.model import DiffusionGemma


class Ours:
    """The network and the rows that a step works on."""

    name = "ours"

    def __init__(self, model: DiffusionGemma) -> None:
        self.model = model

    @torch.no_grad()
    def prepare(self, ids_BT: Tensor, steps: int) -> None:
        """Encode prompts and begin their first canvases."""
        self.recipe = self._recipe(steps, 1)
        rows, width = ids_BT.shape[0], self.model.config.canvas_length
        self.context = self.model.context(rows=rows)
        self.model.encode(self.model.embed(ids_BT), self.context)
        self.drafts = Drafts.of(self.model, rows, width)
        self.drafts.open([self.recipe.config] * rows, range(rows))

    @torch.no_grad()
    def step(self) -> None:
        """One denoising step of every row; on to the next canvas's noise after the last."""
        drafts = self.drafts
        expected_BLD = drafts.expected_BLD if int(drafts.step_B.max()) else None
        hidden_BLD = self.model.denoise(drafts.canvas_BL, expected_BLD, self.context)
        take(self.model, hidden_BLD, drafts)
        done_B = (drafts.flags_B > 0) | (drafts.step_B == drafts.most_B)
        if any(done_B.tolist()):
            drafts.begin(done_B)

    @torch.no_grad()
    def generate(self, ids_BT: Tensor, steps: int, canvases: int) -> int:
        """Whole answers at a fixed number of steps.

        Returns:
            denoising steps of a canvas, as they were counted.
        """
        recipe, model = self._recipe(steps, canvases), self.model
        requests = [Request(ids=tuple(ids), images=(), recipe=recipe) for ids in ids_BT.tolist()]
        items = Engine(model).answer(requests)
        taken = [item.steps for _, item in items if isinstance(item, Commit)]
        return sum(taken) // len(taken)

    def _recipe(self, steps: int, canvases: int) -> Recipe:
        config = self.model.config
        sampler = SamplerConfig(
            max_denoising_steps=steps,
            confidence_threshold=0.0,  # a mean entropy is never below it: no step is saved
            max_new_tokens=canvases * config.canvas_length,
        )
        return Recipe(
            config=sampler,
            seed=0,
            vocabulary=config.vocab_size,
            canvas_length=config.canvas_length,
            longest=config.max_position_embeddings,
        )
