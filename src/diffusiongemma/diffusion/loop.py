"""The plain loop: one prompt, one canvas after the other. The oracle of every faster engine.

It takes the network as a `Denoiser` and knows nothing of batches, pages, strings or requests. An
engine that runs many rows together must give each of them exactly what this loop gives it alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusiongemma.core.brief import Brief
from diffusiongemma.core.errors import CheckpointError, InputError
from diffusiongemma.diffusion.accept import AcceptRule
from diffusiongemma.diffusion.config import SamplerConfig
from diffusiongemma.diffusion.noise import INITIAL_STEP, Purpose, random_tokens, uniform
from diffusiongemma.diffusion.step import Step, refine
from diffusiongemma.diffusion.stop import Progress
from diffusiongemma.diffusion.temperature import temperature
from diffusiongemma.kernels.readout import Ask, Readout, Shaper


@runtime_checkable
class Denoiser(Protocol):
    """What the loop needs of the network; `model.DiffusionGemma` has it."""

    device: Any

    def embed(self, ids_BT: Tensor) -> Any:
        """Embed tokens."""
        ...

    def encode(self, inputs: Any, context: Any) -> Tensor:
        """Read tokens causally into the context."""
        ...

    def denoise(self, canvas_BL: Tensor, soft_BLD: Tensor | None, context: Any) -> Tensor:
        """Hidden states of the canvas over the context."""
        ...

    def readout(
        self,
        hidden_BLD: Tensor,
        temperature_B: Tensor,
        uniform_BL: Tensor,
        shaper: Shaper | None = None,
        ask: Ask | None = None,
    ) -> Readout:
        """Read the vocabulary."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides an answer beside the network and the prompt.

    Attributes:
        config: sampling options.
        seed: of all randomness.
        vocabulary: V, from which noise is drawn, all of it.
        canvas_length: L where the context has room for it.
        longest: tokens that a context can hold.
        eos: ids that end an answer.
        shaper: bans and biases on the logits.
        rule: which positions to accept, if not the entropy bound.
        ask: what readouts report beside the usual.
    """

    config: SamplerConfig
    seed: int
    vocabulary: int
    canvas_length: int
    longest: int
    eos: frozenset[int] = frozenset()
    shaper: Shaper | None = None
    rule: AcceptRule | None = None
    ask: Ask | None = None


@dataclass(slots=True, kw_only=True, repr=False)
class DraftStep(Brief):
    """One step of one canvas, as a researcher sees it. Rows: B = 1.

    Attributes:
        canvas: index of the canvas within the answer, from 0.
        number: of the step, from 1.
        temperature: that the logits were divided by.
        before_BL: the canvas that the network saw.
        hidden_BLD: its hidden states after the final norm.
        readout: what they say of the vocabulary.
        step: what the sampler made of it; `step.canvas_BL` is what the next step will see.
        last: whether the canvas is finished with this step.
    """

    canvas: int
    number: int
    temperature: float
    before_BL: Int[Tensor, "B L"]
    hidden_BLD: Float[Tensor, "B L D"]
    readout: Readout
    step: Step
    last: bool
    _draft: "Draft" = field(repr=False)

    def replace(self, canvas_BL: Int[Tensor, "B L"] | Sequence[int]) -> None:
        """Have the next step see another canvas. Without effect after the last step.

        Raises:
            InputError: not L tokens of the vocabulary.
        """
        self._draft.replace(canvas_BL)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Commit(Brief):
    """A finished canvas.

    Attributes:
        canvas: its index, from 0.
        tokens: what joins the answer: up to the end-of-sequence id, without it.
        steps: how many it took.
        revisions: how often a position's most likely token changed from one step to the next.
        reason: why the answer ends here: `stop`, `length`, `context`; None if it goes on.
        whole: the canvas as it would be encoded, L tokens.
        entropy: how unsure the network was of each of `tokens`, in nats.
    """

    canvas: int
    tokens: tuple[int, ...]
    steps: int
    revisions: int
    reason: str | None
    whole: tuple[int, ...]
    entropy: tuple[float, ...]


class Draft:
    """The state of one canvas of one row between two steps. It calls no network."""

    def __init__(self, recipe: Recipe, canvas: int, width: int, device: torch.device) -> None:
        self.recipe, self.canvas, self.width, self.device = recipe, canvas, width, device
        self.number = 1  # of the step to come
        self.revisions = 0
        self.canvas_BL = self._noise(INITIAL_STEP)
        self.soft_BLD: Tensor | None = None
        self.progress = Progress.start(1, width, device)

    @property
    def temperature(self) -> float:
        """Of the step to come."""
        config = self.recipe.config
        return temperature(self.number, config.max_denoising_steps, config.t_min, config.t_max)

    @property
    def uniform_BL(self) -> Float[Tensor, "B L"]:
        """What decides the tokens sampled by the step to come."""
        place = (self.recipe.seed, self.canvas, self.number, self.width)
        return uniform(*place, Purpose.DRAW, self.device)[None]

    def take(self, hidden_BLD: Tensor, readout: Readout) -> DraftStep:
        """Take in what the network said of `canvas_BL`, and move on by one step."""
        config = self.recipe.config
        if not bool(readout.entropy_BL.isfinite().all()):
            raise CheckpointError(
                f"the network's predictions are not numbers at step {self.number} of canvas "
                f"{self.canvas}: its weights are damaged, or {hidden_BLD.dtype} is too narrow for "
                "them; fetch them again, or open with dtype float32"
            )
        noise_BL = self._noise(self.number)
        step = refine(readout, noise_BL, config, self.progress, self.recipe.rule)
        self.revisions += int(step.revised_BL.sum())
        seen = DraftStep(
            canvas=self.canvas,
            number=self.number,
            temperature=self.temperature,
            before_BL=self.canvas_BL,
            hidden_BLD=hidden_BLD,
            readout=readout,
            step=step,
            last=bool(step.done_B) or self.number == config.max_denoising_steps,
            _draft=self,
        )
        self.canvas_BL, self.soft_BLD = step.canvas_BL, readout.soft_BLD
        self.progress, self.number = step.progress, self.number + 1
        return seen

    def replace(self, canvas_BL: Tensor | Sequence[int]) -> None:
        """Put another canvas in place of the one the next step would see."""
        try:
            given = torch.as_tensor(canvas_BL, device=self.device)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise InputError(
                f"a canvas has {self.width} token ids here, got {type(canvas_BL).__name__} "
                f"({error}); give a list or a tensor of whole numbers"
            ) from error
        given = given[None] if given.ndim == 1 else given
        whole = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
        if given.shape != (1, self.width) or not whole:
            raise InputError(
                f"a canvas has {self.width} token ids here, got {tuple(given.shape)} of "
                f"{given.dtype}"
            )
        if int(given.min()) < 0 or int(given.max()) >= self.recipe.vocabulary:
            raise InputError(
                f"canvas tokens must lie in 0 to {self.recipe.vocabulary - 1}, got "
                f"{int(given.min())} to {int(given.max())}"
            )
        self.canvas_BL = given.long()

    def commit(self, last: DraftStep, made: int, room: int) -> Commit:
        """Finish: cut the most likely canvas at the answer's end.

        Args:
            last: the last step.
            made: tokens of the answer before this canvas.
            room: tokens that the context can hold beyond this canvas.
        """
        whole = tuple(last.step.best_BL[0].tolist())
        tokens, reason = cut(whole, self.recipe.eos, self.recipe.config.max_new_tokens, made)
        return Commit(
            canvas=self.canvas,
            tokens=tokens,
            steps=last.number,
            revisions=self.revisions,
            reason=reason or ("context" if room <= 0 else None),
            whole=whole,
            entropy=tuple(last.step.entropy_BL[0, : len(tokens)].tolist()),
        )

    def _noise(self, step: int) -> Tensor:
        recipe = self.recipe
        place = (recipe.seed, self.canvas, step, self.width)
        return random_tokens(*place, recipe.vocabulary, self.device)[None]


def cut(
    whole: Sequence[int], eos: frozenset[int], limit: int | None, made: int
) -> tuple[tuple[int, ...], str | None]:
    """The tokens of a canvas that join the answer, and why it ends with them, if it does.

    Args:
        whole: the canvas.
        eos: ids that end an answer; the first one in the canvas counts, wherever it stands.
        limit: tokens that the whole answer may have.
        made: tokens it had before.
    """
    end = next((n for n, token in enumerate(whole) if token in eos), None)
    left = None if limit is None else limit - made
    if left is not None and (end is None or end > left) and len(whole) >= left:
        return tuple(whole[:left]), "length"
    if end is not None:
        return tuple(whole[:end]), "stop"
    return tuple(whole), None


def width_of_next(recipe: Recipe, length: int) -> int:
    """Positions of the next canvas: L, or what is left of the context."""
    return min(recipe.canvas_length, recipe.longest - length)


def answer(model: Denoiser, context: Any, recipe: Recipe) -> Iterator[DraftStep | Commit]:
    """Draft, commit and go on, until the answer ends.

    Args:
        model: the network.
        context: one row that holds the prompt; canvases that are followed by another one are
            encoded into it, the last one is not.
        recipe: everything else.

    Yields:
        every step, and a `Commit` after the last step of each canvas.
    """
    made, canvas = 0, 0
    while True:
        width = width_of_next(recipe, context.lengths[0])
        draft = Draft(recipe, canvas, width, model.device)
        last = None
        while last is None or not last.last:
            hidden_BLD = model.denoise(draft.canvas_BL, draft.soft_BLD, context)
            heat_B = torch.tensor([draft.temperature], device=model.device)
            readout = model.readout(hidden_BLD, heat_B, draft.uniform_BL, recipe.shaper, recipe.ask)
            last = draft.take(hidden_BLD, readout)
            yield last
        commit = draft.commit(last, made, recipe.longest - context.lengths[0] - width)
        yield commit
        if commit.reason:
            return
        made, canvas = made + len(commit.tokens), canvas + 1
        model.encode(model.embed(torch.tensor([commit.whole], device=model.device)), context)
