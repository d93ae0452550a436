"""What quantising did to the logits: the same canvases before a network and its quantised twin.

A canvas is an answer of which a share of the tokens was replaced by noise, after its prompt. Each
network reads the prompt itself; both are given the expected embedding that the plain one had after
a first look, as at the second step of a draft. Only hidden states are kept, for the head is the
same in both: so one network at a time needs to be in memory.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusiongemma.diffusion.noise import corrupt
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.model import DiffusionGemma


@dataclass(frozen=True, slots=True)
class Case:
    """One canvas.

    Attributes:
        prompt: token ids.
        canvas_L: the canvas, noise and all.
        level: share of its tokens that were replaced, 0 to 1.
        counted: positions that are compared, from the first on; the rest is end marks, which no
            network gets wrong.
    """

    prompt: tuple[int, ...]
    canvas_L: Int[Tensor, " L"]
    level: float
    counted: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What a network made of a canvas, on the CPU.

    Attributes:
        hidden_LD: hidden states after the final norm.
        soft_LD: the expected embedding that it was given.
    """

    hidden_LD: Float[Tensor, "L D"]
    soft_LD: Float[Tensor, "L D"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """How far the logits of one noise level moved.

    Attributes:
        level: of noise.
        positions: of canvases that were compared.
        mean: mean absolute difference of logits.
        largest: the largest.
        spread: standard deviation of the plain network's logits.
        agree: share of positions whose most likely token is the same.
    """

    level: float
    positions: int
    mean: float
    largest: float
    spread: float
    agree: float


def cases(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    levels: Sequence[float],
    config: ModelConfig,
    end: int,
    seed: int = 0,
) -> list[Case]:
    """Every answer after its prompt, at every level of noise; the same for the same seed.

    Args:
        prompts: token ids.
        answers: the ids of a right answer to each, of which one canvas is taken.
        levels: of noise.
        config: of the network.
        end: the mark that fills a canvas behind its answer; the first is compared too.
        seed: of the noise.
    """
    dice = torch.Generator().manual_seed(seed)
    made, width = [], config.canvas_length
    for prompt, answer in zip(prompts, answers, strict=True):
        clean_L = torch.tensor([*answer, *[end] * width][:width])
        for level in levels:
            canvas_L, _ = corrupt(clean_L, torch.tensor(level), config.vocab_size, dice)
            made.append(Case(tuple(prompt), canvas_L, level, min(width, len(answer) + 1)))
    return made


@torch.no_grad()
def look(
    model: DiffusionGemma, cases: Sequence[Case], before: Sequence[Seen] | None = None
) -> list[Seen]:
    """Have a network look at canvases.

    Args:
        model: the plain network, or the quantised one.
        cases: the canvases.
        before: what the plain network saw, if this is the quantised one.
    """
    seen: list[Seen] = []
    for prompt, group in itertools.groupby(cases, key=lambda case: case.prompt):
        canvas_BL = torch.stack([case.canvas_L for case in group]).to(model.device)
        context = model.context()
        model.encode(model.embed(torch.tensor([prompt], device=model.device)), context)
        context = context.pick([0] * len(canvas_BL))
        if before is None:
            first_BLD = model.denoise(canvas_BL, None, context)
            soft = [model.soften(model.logits(row[None])) for row in first_BLD]
            soft_BLD = torch.cat(soft).to(model.dtype)
        else:
            own = before[len(seen) : len(seen) + len(canvas_BL)]
            soft_BLD = torch.stack([one.soft_LD for one in own]).to(model.device)
        hidden_BLD = model.denoise(canvas_BL, soft_BLD, context)
        seen += map(Seen, hidden_BLD.cpu(), soft_BLD.cpu())
    return seen


@torch.no_grad()
def compare(
    model: DiffusionGemma, cases: Sequence[Case], before: Sequence[Seen], after: Sequence[Seen]
) -> list[Damage]:
    """The damage at each level of noise, least noise first.

    Args:
        model: either network; its head makes logits of what was seen.
        cases: the canvases.
        before: what the plain network saw of each.
        after: what the quantised one saw.
    """
    found = []
    for level in sorted({case.level for case in cases}):
        same = positions = count = 0
        total = largest = first = second = 0.0
        for case, one, two in zip(cases, before, after, strict=True):
            if case.level != level:
                continue
            plain, moved = (
                model.logits(side.hidden_LD[None, : case.counted].to(model.device))[0]
                for side in (one, two)
            )
            error = (moved - plain).abs()
            total += float(error.sum(dtype=torch.float64))
            largest = max(largest, float(error.max()))
            first += float(plain.sum(dtype=torch.float64))
            second += float(plain.double().square().sum())
            same += int((plain.argmax(-1) == moved.argmax(-1)).sum())
            positions, count = positions + len(plain), count + plain.numel()
        found.append(
            Damage(
                level=level,
                positions=positions,
                mean=total / count,
                largest=largest,
                spread=math.sqrt(max(0.0, second / count - (first / count) ** 2)),
                agree=same / positions,
            )
        )
    return found
