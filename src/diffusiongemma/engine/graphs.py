"""The whole step as one function of device tensors: embedding, self-conditioning, layers, readout,
acceptance, re-noising, stop rule. On a GPU it is captured once and replayed as a graph.

Lengths, step numbers, temperatures and seeds are read from device tensors, and the host reads one
small tensor a step. A finished canvas is committed by the forward that also makes the first step of
the next one, so that an answer of n canvases takes the commits' forwards for nothing. Every row
gets exactly what `engine.runner` gives it, which is this file's test.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffusiongemma.diffusion.drafts import Drafts
from diffusiongemma.diffusion.loop import Recipe
from diffusiongemma.diffusion.step import take
from diffusiongemma.kernels.ops import attempt
from diffusiongemma.model import slots as slotted
from diffusiongemma.model.context import Context
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.model.slots import Slots

_WARM = 2  # runs before a capture: kernels are built, libraries choose


class Steps:
    """A canvas of each of B rows, refined together.

    Attributes:
        drafts: the state that a captured step reads and writes; its tensors never move, and whoever
            wants to keep one copies it.
        slots: the context as the device knows it.
        plain: True runs every step as it is, without a capture; to compare with.
    """

    def __init__(
        self, model: DiffusionGemma, context: Context, bias_V: Tensor | None, width: int
    ) -> None:
        """Prepare memory; `begin` comes next.

        Args:
            model: the network.
            context: of fixed capacity; it may still be empty.
            bias_V: added to the logits: bans and biases of all rows.
            width: L.

        Raises:
            ContextError: the context has no fixed memory for such canvases.
        """
        self.model, self.bias_V, self.width = model, bias_V, width
        self.slots = Slots(context, width)
        self.drafts = Drafts.of(model, len(context.rows), width)
        self.commits_B = torch.zeros(len(context.rows), dtype=torch.bool, device=model.device)
        self._graphs: dict[str, torch.cuda.CUDAGraph] = {}
        self.plain = False

    @property
    def captured(self) -> bool:
        """Whether steps are replayed as graphs: on GPUs, where nothing needs the host."""
        return self.model.ops.captured and not self.plain

    def serves(self, recipes: Sequence[Recipe], least: int, most: int) -> bool:
        """Whether these can be answered without a new capture, in the memory there is.

        Args:
            recipes: with canvases of one length and one bias.
            least: tokens that a row must have room for.
            most: tokens beyond which the memory had better be given back.
        """
        context, first = self.slots.context, recipes[0]
        fits = least <= context.rows[0].room <= most and len(recipes) == len(context.rows)
        return fits and first.canvas_length == self.width and first.bias_V is self.bias_V

    def begin(self, recipes: Sequence[Recipe], canvas: int = 0) -> None:
        """Start new canvases over what the context holds now.

        Args:
            recipes: of each row; seeds and options may be any.
            canvas: index of the canvases within their answers.
        """
        self.slots.refresh()
        self.drafts.open([one.config for one in recipes], [one.seed for one in recipes], canvas)

    def step(self) -> list[int]:
        """One step of every row; gives each row's flags."""
        self._run("refine", self._refine)
        return self.drafts.flags_B.tolist()

    def advance(self, rows: Sequence[int]) -> list[int]:
        """Commit these rows' canvases and begin their next; one step of every row.

        Raises:
            ContextError: a row is full.
        """
        self.slots.make_room(list(rows), self.width)
        commits = [number in rows for number in range(len(self.commits_B))]
        self.commits_B.copy_(torch.tensor(commits), non_blocking=True)
        self._run("advance", self._advance)
        self.slots.committed(list(rows), self.width)
        return self.drafts.flags_B.tolist()

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
        return [*self.drafts.state(), self.slots.length_B]

    def _restore(self, kept: Sequence[Tensor]) -> None:
        for one, was in zip(self._state(), kept, strict=True):
            one.copy_(was)

    def _refine(self) -> None:
        drafts = self.drafts
        self._take(slotted.denoise(self.model, drafts.canvas_BL, drafts.expected_BLD, self.slots))

    def _advance(self) -> None:
        """Rows that commit begin their next canvas."""
        drafts, whole_BL = self.drafts, self.drafts.best_BL.clone()
        drafts.begin(self.commits_B)
        self._take(
            slotted.advance(
                self.model, whole_BL, self.commits_B, drafts.canvas_BL, drafts.expected_BLD,
                self.slots,
            )
        )  # fmt: skip

    def _take(self, hidden_BLD: Tensor) -> None:
        take(self.model, hidden_BLD, self.drafts, bias_V=self.bias_V)
