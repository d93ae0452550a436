"""A network that trains in a second, and examples for it."""

from diffusiongemma.model.config import LayerConfig, ModelConfig
from diffusiongemma.model.init import initialise
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.train.config import TrainConfig
from diffusiongemma.train.data import Example

CONFIG = TrainConfig(
    steps=8, batch=3, canvas_length=4, lr=3e-3, warmup=2, save_every=4, log_every=1, seed=5
)


def toy() -> DiffusionGemma:
    """Two layers of 32 channels."""
    layers = (
        LayerConfig(sliding=True, head_dim=16, num_key_value_heads=2),
        LayerConfig(sliding=False, head_dim=16, num_key_value_heads=2),
    )
    config = ModelConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, layers=layers, num_attention_heads=4,
        sliding_window=8, num_experts=4, top_k_experts=2, moe_intermediate_size=16,
        max_position_embeddings=64, canvas_length=4, dtype="float32",
    )  # fmt: skip
    return initialise(DiffusionGemma(config), seed=2)


def source(number: int) -> Example:
    """Count on from a number."""
    first = 5 + number % 20
    return Example([first, first + 1, 2], [first + 2, first + 3, 3])
