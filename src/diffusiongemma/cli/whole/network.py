"""Networks of a size, with random weights that are made where they live and never on the host.

Random routing is even: all experts are hit by a canvas. Real text hits about 84 of 128 a layer
(shared facts of the Technical Report), so weights can be made whose routing is as uneven.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from diffusiongemma.model.config import LayerConfig, ModelConfig
from diffusiongemma.model.experts import Router
from diffusiongemma.model.init import initialise
from diffusiongemma.model.model import DiffusionGemma

_SLIDING = LayerConfig(sliding=True, head_dim=256, num_key_value_heads=8)
_FULL = LayerConfig(sliding=False, head_dim=512, num_key_value_heads=2)
RELEASED = ModelConfig(
    vocab_size=262_144,
    hidden_size=2816,
    intermediate_size=2112,
    layers=(*[_SLIDING] * 5, _FULL) * 5,
    num_attention_heads=16,
    sliding_window=1024,
    num_experts=128,
    top_k_experts=8,
    moe_intermediate_size=704,
    max_position_embeddings=262_144,
    canvas_length=256,
)
"""The released text model, 25,250,986,752 parameters; its vision tower takes no part in steps."""

_SMALL_SLIDING = LayerConfig(sliding=True, head_dim=16, num_key_value_heads=2)
_SMALL_FULL = LayerConfig(sliding=False, head_dim=32, num_key_value_heads=1)
TOY = dataclasses.replace(
    RELEASED,
    vocab_size=2048,
    hidden_size=64,
    intermediate_size=192,
    layers=(_SMALL_SLIDING, _SMALL_SLIDING, _SMALL_FULL),
    num_attention_heads=4,
    sliding_window=48,
    num_experts=16,
    top_k_experts=4,
    moe_intermediate_size=64,
    max_position_embeddings=4096,
    canvas_length=32,
)
"""The same in small, to rehearse."""

SIZES = {"26b": RELEASED, "toy": TOY}
SKEWED = 84 / 128  # share of the experts that a layer's canvas hits on real text
_PROBE = 256  # random tokens that routing is tried on, as many as a canvas has


@torch.no_grad()
def made(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> DiffusionGemma:
    """A network with random weights and even routing, made on the device."""
    with torch.device("meta"):
        model = DiffusionGemma(config).to(dtype)
    model = model.to_empty(device=device)
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            if weight.ndim == 1:
                weight.fill_(1.0)  # `initialise` leaves norms and scales as a module makes them
        for buffer in module.buffers(recurse=False):
            buffer.fill_(1.0)
    return initialise(model, seed=0).eval().requires_grad_(False)


@torch.no_grad()
def skew(model: DiffusionGemma, share: float = SKEWED) -> float:
    """Change routers so that a canvas hits about a share of each layer's experts.

    Some experts speak louder: expert number n of a shuffled row is scaled by exp(-steep * n / E),
    with the steepness that hits the wanted number on random tokens.

    Returns:
        the share that was hit on the random tokens, mean over layers.
    """
    dice = torch.Generator(device=model.device).manual_seed(1)
    config, seen = model.config, []
    place_E = torch.arange(config.num_experts, device=model.device) / config.num_experts
    for router in _routers(model):
        even_ED = router.weight.clone()
        order_E = torch.randperm(config.num_experts, generator=dice, device=model.device)
        low, high = 0.0, 64.0
        for _ in range(12):
            steep = (low + high) / 2
            loudness_E = torch.exp(-steep * place_E)[order_E]
            router.weight.copy_(even_ED * loudness_E[:, None])
            hit = hits(model, router, dice)
            low, high = (steep, high) if hit > share else (low, steep)
        seen.append(hits(model, router, dice))
    return sum(seen) / len(seen)


def _routers(model: DiffusionGemma) -> list[Router]:
    return [module for module in model.modules() if isinstance(module, Router)]


def hits(model: DiffusionGemma, router: torch.nn.Module, dice: torch.Generator) -> float:
    """Share of the experts that random tokens are sent to."""
    tokens = torch.randn(_PROBE, model.config.hidden_size, generator=dice, device=model.device).to(
        model.dtype
    )
    expert_SG, _ = router(tokens, model.ops)
    return expert_SG.unique().numel() / model.config.num_experts


class Watch:
    """Notes which experts each layer sends its tokens to, while it is open. The network then runs
    as it is written: its routers can be watched.
    """

    def __init__(self, model: DiffusionGemma) -> None:
        self.model = model
        self.chosen: list[list[Tensor]] = [[] for _ in model.blocks]

    def __enter__(self) -> "Watch":
        self._usual, self.model.kernels = self.model.kernels, "reference"
        self._hooks = [
            router.register_forward_hook(self._noted(number))
            for number, router in enumerate(_routers(self.model))
        ]
        return self

    def __exit__(self, *_: object) -> None:
        self.model.kernels = self._usual
        for hook in self._hooks:
            hook.remove()

    def _noted(self, number: int) -> Callable[..., None]:
        def note(module: torch.nn.Module, given: tuple, said: tuple[Tensor, Tensor]) -> None:
            self.chosen[number].append(said[0].detach().clone())

        return note

    def distinct(self) -> float:
        """Experts hit in a layer and call, mean."""
        counts = [one.unique().numel() for layer in self.chosen for one in layer]
        return sum(counts) / len(counts)
