"""An answer is the reference's own `generate`, fed with the same random numbers.

transformers draws with `torch.multinomial` and `torch.randint`; here these two are replaced by our
counter-based noise, and everything else is its own: temperature, acceptance, re-noising, stopping,
committing, end of sequence, padding. Answers must be equal token by token.

The checkpoints are calm ones: in the loud ones of the other tests a difference of 1e-4 in the first
step's logits grows tenfold a step through self-conditioning, so that after seven steps even
transformers' own two attention kernels write different texts. Runs are short for the same reason:
about one draw in ten thousand lies so near the border of two tokens that 1e-4 decides it.
"""

from typing import Any

import pytest
import torch

import toys
from diffusiongemma.diffusion.commit import Commit
from diffusiongemma.diffusion.config import SamplerConfig
from diffusiongemma.diffusion.loop import Recipe
from diffusiongemma.engine.engine import Engine, Request
from diffusiongemma.kernels.readout import draw
from parity_oracle import Dice, Pair
from places import drawn

# transformers marks CUDA graph steps even on the CPU, which imports a corner of torch that warns.
pytestmark = [
    pytest.mark.usefixtures("either"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
]

CALM = [
    toys.Toy(seed=41, calm=True),
    toys.Toy(seed=42, calm=True, layers="sssssf", canvas=8),
    toys.Toy(seed=43, calm=True, layers="fsf", full_kv=2, full_head_dim=16, canvas=24),
    toys.Toy(seed=44, calm=True, layers="sffsf", window=9, canvas=16),
]


class OurNoise:
    """Stands in for torch's two random functions and counts where the sampler is."""

    def __init__(self, seed: int, vocabulary: int) -> None:
        self.seed, self.vocabulary = seed, vocabulary
        self.canvas, self.step, self.drawn = -1, 0, True

    def randint(self, *, low: int, high: int, size: tuple[int, int], device: Any) -> torch.Tensor:
        if self.drawn:  # a draw came before: this re-noises the same step
            self.drawn = False
        else:
            raise AssertionError("two calls of randint in a row")
        place = (self.seed, self.canvas, self.step, size[1])
        return drawn(*place, self.vocabulary)[1][None]

    def multinomial(self, probability: torch.Tensor, num_samples: int) -> torch.Tensor:
        self.step, self.drawn = self.step + 1, True
        place = (self.seed, self.canvas, self.step, probability.shape[0])
        return draw(probability, drawn(*place, self.vocabulary)[0])[:, None]

    def begin_canvas(self) -> None:
        self.canvas, self.step, self.drawn = self.canvas + 1, 0, True


def _theirs(pair: Pair, ids: torch.Tensor, seed: int, options: dict, eos: list[int], canvases: int):
    from transformers.models.diffusion_gemma import generation_diffusion_gemma as generation

    noise = OurNoise(seed, pair.toy.vocabulary)
    prepare = generation.DiffusionGemmaGenerationMixin._prepare_denoiser_inputs

    def prepare_and_count(self, *args, **kwargs):
        noise.begin_canvas()
        return prepare(self, *args, **kwargs)

    config = generation.DiffusionGemmaGenerationConfig(
        max_new_tokens=canvases * pair.toy.canvas,
        max_denoising_steps=options["max_denoising_steps"],
        sampler_config=generation.EntropyBoundSamplerConfig(options["entropy_bound"]),
        t_min=options["t_min"],
        t_max=options["t_max"],
        stability_threshold=options["stability_threshold"],
        confidence_threshold=options["confidence_threshold"],
        eos_token_id=eos,
        pad_token_id=0,
    )
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "randint", noise.randint)
        patch.setattr(torch, "multinomial", noise.multinomial)
        patch.setattr(
            generation.DiffusionGemmaGenerationMixin, "_prepare_denoiser_inputs", prepare_and_count
        )
        said = pair.sdpa.generate(ids, generation_config=config)
    tokens = said.sequences[0, ids.shape[1] :].tolist()
    end = next((n for n, token in enumerate(tokens) if token in eos), len(tokens))
    return tokens[:end], end < len(tokens), float(said.tokens_per_forward)


def _ours(pair: Pair, ids: torch.Tensor, seed: int, options: dict, eos: list[int], canvases: int):
    recipe = Recipe(
        config=SamplerConfig(**options, max_new_tokens=canvases * pair.toy.canvas),
        seed=seed,
        vocabulary=pair.toy.vocabulary,
        canvas_length=pair.toy.canvas,
        longest=pair.toy.longest,
        eos=frozenset(eos),
    )
    request = Request(ids=tuple(ids[0].tolist()), images=(), recipe=recipe)
    items = Engine(pair.ours).answer([request])
    return [one for _, one in items if isinstance(one, Commit)]


@pytest.mark.parametrize(
    ("stability", "confidence", "bound", "steps"),
    [
        (0, 0.9, 0.1, 12),
        (1, 2.0, 5.0, 10),
        (1, 0.005, 0.1, 7),
        (0, 2.6, 0.5, 48),
        (2, 9.0, 30.0, 9),
    ],
)
@pytest.mark.parametrize("toy", CALM, ids=lambda toy: f"toy{toy.seed}")
def test_answers_equal_the_reference(
    pairs,
    toy: toys.Toy,
    stability: int,
    confidence: float,
    bound: float,
    steps: int,
    record_property,
) -> None:
    pair, dice = pairs(toy), Dice(toy, seed=int(steps))
    options = {
        "max_denoising_steps": steps,
        "entropy_bound": bound,
        "t_min": 0.4,
        "t_max": 0.8,
        "stability_threshold": stability,
        "confidence_threshold": confidence,
    }
    # No image token can come up: its id would be embedded as a placeholder when committed.
    ids, eos = dice.ids(11), [toy.vocabulary - 1, toy.vocabulary - 2, *range(20, 26)]
    theirs, ended, rate = _theirs(pair, ids, 5, options, eos, canvases=3)
    commits = _ours(pair, ids, 5, options, eos, canvases=3)
    ours = [token for commit in commits for token in commit.tokens]
    record_property("generate", (ended, any(c.steps < steps for c in commits), len(commits)))
    assert ours == theirs
    assert (commits[-1].reason == "stop") is ended
    steps_taken = sum(commit.steps for commit in commits)
    # Theirs counts the end mark as a token, and every token that is not the pad id 0.
    counted = sum(token != 0 for token in ours) + ended
    assert rate == pytest.approx(counted / steps_taken)
