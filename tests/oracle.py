"""A whole answer, step by step and as plainly as it can be said: what every engine is held against.

Nothing of `diffusion` or `engine` is in it. Random numbers, temperatures, acceptance, noise, the
stop rule and the ends of an answer are written anew; the network is asked through its doors for one
row: `embed`, `encode`, `denoise` and `readout`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from diffusiongemma.core.patches import Patches
from diffusiongemma.model.model import DiffusionGemma

DRAW, NOISE = 0, 1
CHUNK = 1024  # tokens of a prompt that the network reads in one pass
_WORD = 0xFFFFFFFF


def philox(counter: Sequence[int], seed: int) -> list[int]:
    """Philox 4x32-10 (Salmon et al. 2011, section 4), on Python's whole numbers."""
    first, second, third, fourth = counter
    low, high = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        left, right = 0xD2511F53 * first, 0xCD9E8D57 * third
        first, second = (right >> 32) ^ second ^ low, right & _WORD
        third, fourth = (left >> 32) ^ fourth ^ high, left & _WORD
        low, high = (low + 0x9E3779B9) & _WORD, (high + 0xBB67AE85) & _WORD
    return [first, second, third, fourth]


def uniform(seed: int, canvas: int, step: int, position: int, purpose: int) -> float:
    """A number in [0, 1) with 53 random bits, which only its place decides."""
    high, low, *_ = philox((position, step & _WORD, canvas & _WORD, purpose), seed)
    return ((high >> 5) * 2**26 + (low >> 6)) / 2**53


def accepted(entropies: Sequence[float], bound: float) -> list[bool]:
    """Positions in ascending entropy, while those before each hold at most `bound` together.

    Sums run in float64 and are float32 each time they are looked at, as torch's cumsum has them.
    """
    kept, total = [False] * len(entropies), 0.0
    for position in sorted(range(len(entropies)), key=lambda n: (entropies[n], n)):
        own = np.float32(entropies[position])
        total += float(own)
        kept[position] = bool(np.float32(total) - own <= np.float32(bound))
    return kept


@dataclass(kw_only=True)
class Canvas:
    """A finished canvas.

    Attributes:
        tokens: that join the answer.
        whole: all of its tokens, as the next canvas sees them.
        steps: that it took.
        revisions: how often a most likely token changed from one step to the next.
        before: what each step saw.
        entropies: of the last step, nats.
    """

    tokens: list[int]
    whole: list[int]
    steps: int
    revisions: int
    before: list[list[int]] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)


@dataclass(kw_only=True)
class Answer:
    """All canvases, and why the last one is the last: `stop`, `length` or `context`."""

    canvases: list[Canvas]
    reason: str

    @property
    def tokens(self) -> list[int]:
        """Of the answer."""
        return [token for canvas in self.canvases for token in canvas.tokens]


@torch.no_grad()
def answer(
    model: DiffusionGemma,
    ids: Sequence[int],
    *,
    seed: int,
    sampler: Any,
    images: Sequence[Patches] = (),
    eos: Sequence[int] = (),
    bias_V: torch.Tensor | None = None,
    rule: Callable[[Any], torch.Tensor] | None = None,
) -> Answer:
    """Read a prompt, then refine canvas after canvas.

    Args:
        model: the network.
        ids: the prompt, images spread out.
        seed: of all random numbers.
        sampler: what `SamplerConfig` holds.
        images: of the prompt.
        eos: tokens that end an answer.
        bias_V: added to logits before they become probabilities.
        rule: which positions keep their sample, if not the entropy bound.
    """
    config, context = model.config, model.context()
    for chunk in model.embed(torch.tensor([list(ids)]), images).chunks(CHUNK):
        model.encode(chunk, context)
    length, canvases, made = len(ids), [], 0
    wide = sampler.canvas_length or config.canvas_length
    while True:
        width = min(wide, config.max_position_embeddings - length)
        asked = (model, context, seed, len(canvases), width, sampler, bias_V, rule)
        canvas = _canvas(*asked)
        canvases.append(canvas)
        reason = _end(canvas, eos, sampler.max_new_tokens, made)
        length, made = length + width, made + len(canvas.tokens)
        if reason is None and length >= config.max_position_embeddings:
            reason = "context"
        if reason is not None:
            return Answer(canvases=canvases, reason=reason)
        model.encode(model.embed(torch.tensor([canvas.whole])), context)


def _canvas(
    model: DiffusionGemma, context: Any, seed: int, number: int, width: int, sampler: Any,
    bias_V: torch.Tensor | None, rule: Any,
) -> Canvas:  # fmt: skip
    """From noise to the last step."""

    def noise(step: int) -> list[int]:
        drawn = [uniform(seed, number, step, place, NOISE) for place in range(width)]
        return [int(one * model.config.vocab_size) for one in drawn]

    tokens, expected, best, repeats = noise(0), None, None, 0
    canvas = Canvas(tokens=[], whole=[], steps=0, revisions=0)
    steps = sampler.max_denoising_steps
    for step in range(1, steps + 1):
        canvas.before.append(tokens)
        share = (steps - step + 1) / steps
        heat = sampler.t_min + (sampler.t_max - sampler.t_min) * share
        draws = [uniform(seed, number, step, place, DRAW) for place in range(width)]
        hidden = model.denoise(torch.tensor([tokens]), expected, context)
        read = model.readout(
            hidden, torch.tensor([heat]), torch.tensor([draws], dtype=torch.float64), bias_V
        )
        entropies = read.entropy_BL[0].tolist()
        keeps = accepted(entropies, sampler.entropy_bound)
        if rule is not None:
            keeps = rule(read)[0].tolist()
        sampled, fresh = read.token_BL[0].tolist(), noise(step)
        tokens = [s if kept else n for s, n, kept in zip(sampled, fresh, keeps, strict=True)]
        seen, best = best, read.best_BL[0].tolist()
        if seen is not None:
            canvas.revisions += sum(one != other for one, other in zip(seen, best, strict=True))
        repeats = repeats + 1 if best == seen else 0
        mean = float(torch.tensor(entropies).mean())
        expected, canvas.steps, canvas.whole = read.soft_BLD, step, best
        canvas.entropies = entropies
        if repeats >= sampler.stability_threshold and mean < sampler.confidence_threshold:
            break
    return canvas


def _end(canvas: Canvas, eos: Sequence[int], limit: int | None, made: int) -> str | None:
    """Cut the canvas where the answer ends, and say why it does."""
    canvas.tokens = list(canvas.whole)
    for place, token in enumerate(canvas.whole):
        if limit is not None and made + place == limit:
            break
        if token in eos:
            canvas.tokens = canvas.whole[:place]
            return "stop"
    if limit is not None and made + len(canvas.whole) >= limit:
        canvas.tokens = canvas.whole[: limit - made]
        return "length"
    return None
