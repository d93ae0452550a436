"""One step's losses and gradients, of a batch or of a sheet; on a GPU as one captured graph."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from diffusiongemma.core.log import logger
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.train.balance import Watch
from diffusiongemma.train.config import TrainConfig
from diffusiongemma.train.data import Source, check, pack
from diffusiongemma.train.objective import Losses, losses
from diffusiongemma.train.resume import Run
from diffusiongemma.train.rows import noise, rows_losses
from diffusiongemma.train.sheet import Rows, Sheet

_WARM = 2  # runs before a capture, in which libraries choose


@dataclass(frozen=True, slots=True)
class Learned:
    """What a step found, on the device; the gradients are with the weights.

    Attributes:
        losses: without gradient.
        balance: the loss that keeps experts evenly used.
        shares: of each layer's routed tokens, the share that each expert got.
    """

    losses: Losses
    balance: Tensor
    shares: Float[Tensor, "layers E"]


@runtime_checkable
class Lesson(Protocol):
    """Learns from the step that a run is at; the optimizer comes after it."""

    def __call__(self, run: Run, config: TrainConfig) -> Learned:
        """Put the gradients in place. They are the lesson's, until it is called again."""
        ...


class Examples:
    """From the examples of a source, padded to the longest of a batch.

    Args:
        source: the example of a number.
        eos: fills the last canvas.
        pad: fills what is left.
    """

    def __init__(self, source: Source, eos: int, pad: int) -> None:
        self._source, self._eos, self._pad = source, eos, pad

    def __call__(self, run: Run, config: TrainConfig) -> Learned:
        """The next batch, looked at before it is learned."""
        first = run.step * config.batch
        examples = [self._source(first + n) for n in range(config.batch)]
        batch = pack(examples, config.canvas_length, self._eos, self._pad)
        check(batch, run.model.config)
        batch = batch.to(run.model.device)

        def loss() -> Losses:
            return losses(
                run.model,
                batch,
                run.dice,
                conditioned=config.conditioned,
                encoder_weight=config.encoder_weight,
                prompt_weight=config.prompt_weight,
            )

        weights = list(run.model.parameters())
        return _learn(weights, _gradients(run.model, weights, loss, config))


class Sheets:
    """From one sheet a step, all of one shape.

    Args:
        feed: the sheet of a step.
        width: L, of its canvases.
        capture: replay the step as one graph where the network is on a GPU: a step of a small
            network is some thousand short calls, which take the host longer than the GPU.
    """

    def __init__(self, feed: Callable[[int], Sheet], width: int, *, capture: bool = True) -> None:
        self._feed, self._width, self._capture = feed, width, capture
        self._captured: _Captured | None = None

    def __call__(self, run: Run, config: TrainConfig) -> Learned:
        """The next sheet."""
        model = run.model
        rows = self._feed(run.step).to(model.device)
        noised_BS = noise(rows, model.config.vocab_size, self._width, run.dice)
        weights = list(model.parameters())

        def work(rows: Rows, noised_BS: Tensor) -> tuple[Learned, Sequence[Tensor | None]]:
            def loss() -> Losses:
                return rows_losses(
                    model,
                    rows,
                    noised_BS,
                    conditioned=config.conditioned,
                    encoder_weight=config.encoder_weight,
                )

            return _gradients(model, weights, loss, config)

        if self._capture and self._captured is None and model.device.type == "cuda":
            self._begin(work, rows, noised_BS)
        if self._captured is None:
            return _learn(weights, work(rows, noised_BS))
        learned, gradients = self._captured(rows, noised_BS)
        now = replace(learned, losses=replace(learned.losses, tokens=rows.tokens))
        return _learn(weights, (now, gradients))

    def _begin(self, work: "_Work", rows: Rows, noised_BS: Tensor) -> None:
        try:
            self._captured = _Captured(work, rows, noised_BS)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self._capture = False
            logger.warning("a step cannot be captured (%s); it is run call by call", error)


_Work = Callable[[Rows, Tensor], tuple[Learned, Sequence[Tensor | None]]]


class _Captured:
    """A step's losses and gradients as a graph; what it gives is written over by the next."""

    def __init__(self, work: _Work, rows: Rows, noised_BS: Tensor) -> None:
        self._rows = replace(rows, numbers=rows.numbers.clone(), weight_BS=rows.weight_BS.clone())
        self._noised_BS = noised_BS.clone()
        side, usual = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(usual)
        with torch.cuda.stream(side):
            for _ in range(_WARM):
                work(self._rows, self._noised_BS)
        usual.wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._found = work(self._rows, self._noised_BS)

    def __call__(self, rows: Rows, noised_BS: Tensor) -> tuple[Learned, Sequence[Tensor | None]]:
        self._rows.numbers.copy_(rows.numbers)
        self._rows.weight_BS.copy_(rows.weight_BS)
        self._noised_BS.copy_(noised_BS)
        self._graph.replay()
        return self._found


def _gradients(
    model: DiffusionGemma,
    weights: Sequence[Tensor],
    loss: Callable[[], Losses],
    config: TrainConfig,
) -> tuple[Learned, Sequence[Tensor | None]]:
    """Losses, and the gradient of each weight; None where it has no say."""
    with Watch(model) as watch:
        found = loss()
        balance, shares = watch.balance()
    total = found.total + config.balance * balance
    gradients = torch.autograd.grad(total, weights, allow_unused=True)
    return Learned(replace(found, total=found.total.detach()), balance.detach(), shares), gradients


def _learn(weights: Sequence[Tensor], found: tuple[Learned, Sequence[Tensor | None]]) -> Learned:
    learned, gradients = found
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    return learned
