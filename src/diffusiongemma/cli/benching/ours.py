"""One side of the bench: this package, driven as its engine drives it.

A step is what the engine does between two canvases: uniforms and noise, the denoiser, the readout,
the refinement, and the look at whether to stop.
"""

import torch
from torch import Tensor

from diffusiongemma.diffusion.config import SamplerConfig
from diffusiongemma.diffusion.loop import Commit, Draft, Recipe
from diffusiongemma.engine.many import answer_many
from diffusiongemma.engine.quick import Quick
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
        self.drafts = [Draft(self.recipe, row, width, self.model.device) for row in range(rows)]

    @torch.no_grad()
    def step(self) -> None:
        """One denoising step of every row."""
        drafts, first = self.drafts, self.drafts[0]
        soft = [draft.soft_BLD for draft in drafts if draft.soft_BLD is not None]
        canvas_BL = torch.cat([draft.canvas_BL for draft in drafts])
        hidden_BLD = self.model.denoise(canvas_BL, torch.cat(soft) if soft else None, self.context)
        heat_B = torch.full((len(drafts),), first.temperature)
        uniform_BL = torch.cat([draft.uniform_BL for draft in drafts])
        readout = self.model.readout(hidden_BLD, heat_B, uniform_BL)
        for row, draft in enumerate(drafts):
            last = draft.take(hidden_BLD[row : row + 1], readout.row(row)).last
            if last:  # on to other noise, as the noise of the last places is remembered
                draft.number, draft.canvas = 1, draft.canvas + len(drafts)

    @torch.no_grad()
    def generate(self, ids_BT: Tensor, steps: int, canvases: int) -> int:
        """Whole answers at a fixed number of steps.

        Returns:
            denoising steps of a canvas, as they were counted.
        """
        recipe, model = self._recipe(steps, canvases), self.model
        prompts = [model.embed(row[None]) for row in ids_BT]
        taken = [
            item.steps
            for _, item in answer_many(Quick(model), prompts, [recipe] * len(prompts), 1024)
            if isinstance(item, Commit)
        ]
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
