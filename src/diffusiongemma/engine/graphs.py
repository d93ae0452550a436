"""The whole step as one function of device tensors: embedding, self-conditioning, layers, readout,
acceptance, re-noising, stop rule. On a GPU it is captured once and replayed as a graph.

Lengths, step numbers, temperatures and seeds are read from device tensors, and the host reads one
small tensor a step. A finished canvas is committed by the forward that also makes the first step of
the next one, so that an answer of n canvases takes the commits' forwards for nothing. Every row
gets exactly what `diffusion.loop.answer` gives it alone, which is this file's test.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diffusiongemma.diffusion.loop import Recipe
from diffusiongemma.diffusion.noise import Purpose, seed_words, uniforms
from diffusiongemma.diffusion.step import refine
from diffusiongemma.diffusion.stop import Progress
from diffusiongemma.kernels.fast import attempt, no_triton, triton
from diffusiongemma.kernels.readout import Readout
from diffusiongemma.model import slots as slotted
from diffusiongemma.model.context import Context
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.model.slots import Slots

_WARM = 2  # runs before a capture: kernels are built, libraries choose


class Steps:
    """A canvas of each of B rows, refined together.

    The tensors are the state that a captured step reads and writes, and never move; whoever wants
    to keep one copies it.

    Attributes:
        canvas_BL: what the next step will see.
        before_BL: what the last step saw.
        best_BL: the most likely tokens; what will be committed.
        entropy_BL: nats.
        accepted_BL: where the last step kept its sample.
        revised_BL: where the most likely token changed.
        number_B: of the last step of each row, from 1; 0 before the first.
        index_B: of each row's canvas within its answer.
        revisions_B: how often a most likely token of each row's canvas has changed.
        flags_B: 1 where the canvas is stable and sure, 2 where the predictions are not numbers.
        plain: True runs every step as it is, without a capture; to compare with.
    """

    def __init__(
        self, model: DiffusionGemma, context: Context, recipes: Sequence[Recipe], width: int
    ) -> None:
        """Prepare memory; `begin` comes next.

        Args:
            model: the network.
            context: of fixed capacity, one row for each recipe; it may still be empty.
            recipes: equal but for their seeds.
            width: L.

        Raises:
            ContextError: the context has no fixed memory for such canvases.
        """
        self.model, self.recipe, self.width = model, recipes[0], width
        self.slots = Slots(context, width)
        rows, device = len(recipes), model.device
        shape = (rows, width)
        self.seeds = seed_words([recipe.seed for recipe in recipes], device)
        self.index_B = torch.zeros(rows, dtype=torch.int64, device=device)
        self.number_B, self.repeats_B = self.index_B.clone(), self.index_B.clone()
        self.revisions_B = self.index_B.clone()
        self.flags_B, self.commits_B = self.index_B.clone(), self.index_B.bool()
        self.canvas_BL = torch.zeros(shape, dtype=torch.int64, device=device)
        self.before_BL, self.best_BL = self.canvas_BL.clone(), self.canvas_BL - 1
        self.entropy_BL = torch.zeros(shape, device=device)
        self.accepted_BL, self.revised_BL = self.canvas_BL.bool(), self.canvas_BL.bool()
        self.soft_BLD = torch.zeros(
            *shape, model.config.hidden_size, dtype=model.dtype, device=device
        )
        self._graphs: dict[str, torch.cuda.CUDAGraph] = {}
        self.plain = False

    @property
    def captured(self) -> bool:
        """Whether steps are replayed as graphs: on GPUs, where nothing needs the host."""
        device, config = self.model.device, self.model.config
        whole = device.type == "cuda" and self.model.dtype == torch.bfloat16
        # Without Triton, quantised experts ask the host how many tokens each of them has.
        needs_host = config.fp8 and no_triton(device) is not None
        return whole and not needs_host and not self.plain

    def serves(self, recipes: Sequence[Recipe], least: int, most: int) -> bool:
        """Whether these can be answered without a new capture, in the memory there is.

        Args:
            recipes: equal but for their seeds.
            least: tokens that a row must have room for.
            most: tokens beyond which the memory had better be given back.
        """
        context = self.slots.context
        fits = least <= context.rows[0].room <= most and len(recipes) == len(context.rows)
        fits = fits and recipes[0].canvas_length == self.width
        return fits and _kind(recipes[0]) == _kind(self.recipe)

    def begin(self, recipes: Sequence[Recipe], canvas: int = 0) -> None:
        """Start new canvases over what the context holds now.

        Args:
            recipes: of the kind that this was made for; seeds may be others.
            canvas: index of the canvases within their answers.
        """
        self.seeds.copy_(seed_words([recipe.seed for recipe in recipes], self.model.device))
        self.slots.refresh()
        for one in (self.number_B, self.repeats_B, self.revisions_B, self.soft_BLD):
            one.zero_()
        self.index_B.fill_(canvas)
        self.best_BL.fill_(-1)
        self.canvas_BL.copy_(self._draws()[1])

    def step(self) -> list[int]:
        """One step of every row; gives each row's flags."""
        self._run("refine", self._refine)
        return self.flags_B.tolist()

    def advance(self, rows: Sequence[int]) -> list[int]:
        """Commit these rows' canvases and begin their next; one step of every row.

        Raises:
            ContextError: a row is full.
        """
        self.slots.make_room(list(rows), self.width)
        commits = [number in rows for number in range(len(self.seeds))]
        self.commits_B.copy_(torch.tensor(commits), non_blocking=True)
        self._run("advance", self._advance)
        self.slots.committed(list(rows), self.width)
        return self.flags_B.tolist()

    def _run(self, name: str, work: Callable[[], None]) -> None:
        if self.captured and name not in self._graphs:
            self._warm(work)
            if self.captured:  # still: kernels may have been given up
                self._graphs[name] = self._recorded(work)
        if self.captured:
            self._graphs[name].replay()
            return
        with torch.no_grad():
            work()

    def _warm(self, work: Callable[[], None]) -> None:
        """Run it a few times beside the usual stream, and put the state back."""
        device, kept = self.model.device, [one.clone() for one in self._state()]
        side, usual = torch.cuda.Stream(device), torch.cuda.current_stream(device)
        side.wait_stream(usual)
        with torch.no_grad(), torch.cuda.stream(side):
            self._tried(work, kept)
        usual.wait_stream(side)

    def _tried(self, work: Callable[[], None], kept: Sequence[Tensor]) -> None:
        def plain() -> None:
            self._restore(kept)
            work()

        for _ in range(_WARM):
            attempt(self.model.device, work, plain)
            self._restore(kept)

    def _recorded(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Recording does none of the work."""
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            work()
        return graph

    def _state(self) -> list[Tensor]:
        return [
            *(self.canvas_BL, self.before_BL, self.best_BL, self.entropy_BL, self.accepted_BL),
            *(self.revised_BL, self.number_B, self.repeats_B, self.revisions_B, self.index_B),
            *(self.flags_B, self.soft_BLD, self.slots.length_B),
        ]

    def _restore(self, kept: Sequence[Tensor]) -> None:
        for one, was in zip(self._state(), kept, strict=True):
            one.copy_(was)

    def _refine(self) -> None:
        hidden = slotted.denoise(self.model, self.canvas_BL, self.soft_BLD, self.slots)
        self._take(hidden)

    def _advance(self) -> None:
        """Rows that commit begin their next canvas: everything about the last is forgotten."""
        begun_B1 = self.commits_B[:, None]
        whole_BL = self.best_BL.clone()
        self.index_B += self.commits_B
        self.number_B.masked_fill_(self.commits_B, 0)
        self.repeats_B.masked_fill_(self.commits_B, 0)
        self.revisions_B.masked_fill_(self.commits_B, 0)
        self.best_BL.masked_fill_(begun_B1, -1)
        self.soft_BLD.masked_fill_(begun_B1[..., None], 0.0)
        self.canvas_BL.copy_(torch.where(begun_B1, self._draws()[1], self.canvas_BL))
        hidden = slotted.advance(
            self.model, whole_BL, self.commits_B, self.canvas_BL, self.soft_BLD, self.slots
        )
        self._take(hidden)

    def _take(self, hidden_BLD: Tensor) -> None:
        """Read out, accept, make noise of the rest: `diffusion.loop.Draft.take` without a host."""
        config = self.recipe.config
        self.number_B += 1
        # As Python computes it: in float64, rounded once.
        left_B = (config.max_denoising_steps - self.number_B + 1).double()
        share_B = left_B / config.max_denoising_steps
        heat_B = config.t_min + (config.t_max - config.t_min) * share_B
        uniform_BL, noise_BL = self._draws()
        readout = self.model.readout(hidden_BLD, heat_B.float(), uniform_BL, self.recipe.shaper)
        self.before_BL.copy_(self.canvas_BL)
        done_B = self._refined(readout, noise_BL)
        self.entropy_BL.copy_(readout.entropy_BL)
        self.soft_BLD.copy_(readout.soft_BLD)
        broken_B = ~readout.entropy_BL.isfinite().all(-1)
        self.flags_B.copy_(done_B.long() + 2 * broken_B.long())

    def _refined(self, readout: Readout, noise_BL: Tensor) -> Tensor:
        """Acceptance and the stop rule; the next canvas and what is remembered go to the state."""
        config = self.recipe.config
        best_BL = readout.best_BL
        self.revised_BL.copy_((self.best_BL >= 0) & (best_BL != self.best_BL))
        self.revisions_B += self.revised_BL.sum(-1)
        if triton(best_BL) and self.width <= 1024:
            from diffusiongemma.kernels.triton.refine import refine as quick

            canvas_BL, accepted_BL, repeats_B, done_B = quick(
                readout.token_BL, best_BL, readout.entropy_BL, noise_BL, self.best_BL,
                self.repeats_B, config.entropy_bound, config.stability_threshold,
                config.confidence_threshold,
            )  # fmt: skip
        else:
            progress = Progress(self.best_BL, self.repeats_B)
            step = refine(readout, noise_BL, config, progress)
            canvas_BL, accepted_BL, done_B = step.canvas_BL, step.accepted_BL, step.done_B
            repeats_B = step.progress.repeats_B
        self.canvas_BL.copy_(canvas_BL)
        self.accepted_BL.copy_(accepted_BL)
        self.best_BL.copy_(best_BL)
        self.repeats_B.copy_(repeats_B)
        return done_B

    def _draws(self) -> tuple[Tensor, Tensor]:
        """What decides a step's tokens, and random tokens for every position."""
        place = (self.seeds, self.index_B, self.number_B, self.width)
        if triton(self.canvas_BL):
            from diffusiongemma.kernels.triton.refine import draws

            return draws(*place, self.recipe.vocabulary)
        uniform_BL = uniforms(*place, Purpose.DRAW)
        noise_BL = (uniforms(*place, Purpose.NOISE) * self.recipe.vocabulary).long()
        return uniform_BL, noise_BL


def _kind(recipe: Recipe) -> Recipe:
    """What a capture depends on."""
    config = replace(recipe.config, max_new_tokens=None, canvas_length=None)
    return replace(recipe, config=config, seed=0, canvas_length=0)
