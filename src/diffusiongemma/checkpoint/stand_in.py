"""What stands in a checkpoint without vision tower for the tower that transformers always builds.

Told of none, transformers builds one of the usual size: 167 million random weights, a page of
warnings, and a folder 90 times as large when it saves. This one has no layers and a width of one.
No picture can be read with it, and this package takes it for what it is: no tower.
"""

import torch
from torch import Tensor

CONFIG = {
    "model_type": "gemma4_vision",
    "num_hidden_layers": 0,
    "hidden_size": 1,
    "intermediate_size": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "patch_size": 1,
    "pooling_kernel_size": 1,
    "position_embedding_size": 1,
}
"""Its section of `config.json`."""

_TOWER = "model.encoder.vision_tower.patch_embedder"
_PROJECTION = "model.encoder.embed_vision.embedding_projection.weight"


def shapes(width: int) -> dict[str, tuple[int, ...]]:
    """The shapes of its tensors, by name.

    Args:
        width: of the language model.
    """
    return {
        f"{_TOWER}.input_proj.weight": (1, 3),
        f"{_TOWER}.position_embedding_table": (2, 1, 1),
        _PROJECTION: (width, 1),
    }


def tensors(width: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Its tensors, zeros, by name."""
    return {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes(width).items()}
