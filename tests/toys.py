"""Small random checkpoints that transformers itself writes: loud, and with nothing left at 1.0.

Fresh weights hide mistakes: norms and scales are all ones, logits are near zero and the router is
undecided. Here every norm, scale and scalar is perturbed, the encoder's and the decoder's scalars
differ, logits go beyond plus and minus 15, and the router's first choice has over 0.4 on average.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Toy:
    """The dials of one small checkpoint."""

    seed: int = 0
    hidden: int = 64
    layers: str = "ssf"
    heads: int = 4
    kv: int = 2
    head_dim: int = 16
    full_kv: int = 1
    full_head_dim: int = 32
    window: int = 16
    canvas: int = 16
    vocabulary: int = 320
    experts: int = 8
    top: int = 2
    vision: bool = True
    standardize: bool = True
    partial: float = 0.25
    longest: int = 512
    calm: bool = False  # small errors do not grow from step to step; see test_generate.py


TWENTY = [
    Toy(seed=1),
    Toy(seed=2, layers="sssssf", canvas=8),
    Toy(seed=3, layers="sf", heads=8, kv=4, window=8, canvas=32),
    Toy(seed=4, layers="sfsf", kv=1, window=24, experts=16, top=4),
    Toy(seed=5, layers="fsf", full_kv=2, full_head_dim=16, canvas=24),
    Toy(seed=6, hidden=48, heads=6, kv=3, full_kv=3, head_dim=8, standardize=False),
    Toy(seed=7, partial=0.5, window=12, canvas=64),
    Toy(seed=8, experts=4, top=1, partial=1.0),
    Toy(seed=9, experts=12, top=12, hidden=96),
    Toy(seed=10, layers="ssf", full_head_dim=64, full_kv=2, canvas=128, longest=2048),
    Toy(seed=11, layers="sssf", window=5, canvas=9),
    Toy(seed=12, heads=2, kv=2, full_kv=2, vocabulary=1000),
    Toy(seed=13, layers="ssssf", window=32, canvas=16),
    Toy(seed=14, hidden=80, head_dim=24, full_head_dim=40, partial=0.2),
    Toy(seed=15, layers="f", canvas=16),
    Toy(seed=16, layers="ssf", canvas=256, longest=2048),
    Toy(seed=17, layers="sffsf", window=9, standardize=False),
    Toy(seed=18, heads=8, kv=1, full_kv=4, experts=6, top=3),
    Toy(seed=79, layers="ssf", window=2, canvas=12),
    Toy(seed=20, layers="sssssfsssssf", hidden=32, heads=2, kv=1, canvas=16),
]


def hf_config(toy: Toy):
    """The transformers configuration of a toy."""
    from transformers import DiffusionGemmaConfig, DiffusionGemmaTextConfig, Gemma4VisionConfig

    kinds = {"s": "sliding_attention", "f": "full_attention"}
    text = DiffusionGemmaTextConfig(
        vocab_size=toy.vocabulary,
        hidden_size=toy.hidden,
        intermediate_size=96,
        num_hidden_layers=len(toy.layers),
        num_attention_heads=toy.heads,
        num_key_value_heads=toy.kv,
        head_dim=toy.head_dim,
        global_head_dim=toy.full_head_dim,
        num_global_key_value_heads=toy.full_kv,
        layer_types=[kinds[letter] for letter in toy.layers],
        sliding_window=toy.window,
        num_experts=toy.experts,
        top_k_experts=toy.top,
        moe_intermediate_size=32,
        use_bidirectional_attention="vision",
        max_position_embeddings=toy.longest,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": toy.partial,
                "rope_theta": 1_000_000.0,
            },
        },
    )
    vision = Gemma4VisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        patch_size=4,
        pooling_kernel_size=2,
        position_embedding_size=64,
        standardize=toy.standardize,
    )
    return DiffusionGemmaConfig(
        text_config=text,
        vision_config=vision,
        canvas_length=toy.canvas,
        image_token_id=toy.vocabulary - 1,
        boi_token_id=toy.vocabulary - 2,
        eoi_token_id=toy.vocabulary - 3,
    )


def make(toy: Toy):
    """A loud random model of transformers' own class, in float32."""
    return loud(hf_config(toy), toy.seed, calm=toy.calm)


def loud(config: Any, seed: int, *, calm: bool = False):
    """The same of a configuration of theirs."""
    from transformers import DiffusionGemmaForBlockDiffusion

    torch.manual_seed(seed)
    model = DiffusionGemmaForBlockDiffusion(config).float().eval()
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            _shout(name, value)
            if calm and "down_proj" in name:
                value.mul_(0.02 if "self_conditioning" in name else 0.1)
    return model


def _shout(name: str, value: torch.Tensor) -> None:
    if name.endswith("inv_freq") or name.endswith("embed_scale"):
        return
    if "std_bias" in name:
        value.normal_(0.0, 0.5)
    elif "layer_scalar" in name:
        value.uniform_(0.5, 1.3)
    elif "norm" in name or name.endswith("scale"):
        value.uniform_(0.6, 1.6)
    elif "embed_tokens" in name:
        value.normal_(0.0, 0.9)
    elif "router.proj" in name:
        value.normal_(0.0, 2.0)
    elif "position_embedding_table" in name:
        value.normal_(0.0, 0.5)
    else:
        value.normal_(0.0, value.shape[-1] ** -0.5)


def write(toy: Toy, folder: Path):
    """Make a toy, have transformers save it, and return transformers' model."""
    model = make(toy)
    model.save_pretrained(folder)
    return model
