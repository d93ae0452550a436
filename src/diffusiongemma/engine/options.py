"""The options of every door, for type checkers and editors: a misspelt one is seen as it is typed.

The fields of `SamplerConfig` and `engine.prompt.Asked` own names, types and defaults. What stands
here says the same in the one form that type checkers read; a test compares the two.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from diffusiongemma.diffusion.accept import AcceptRule

if TYPE_CHECKING:
    import numpy
    from PIL.Image import Image
    from torch import Tensor

    from diffusiongemma.core.patches import Patches

    Picture = str | os.PathLike[str] | bytes | Image | numpy.ndarray | Tensor | Patches
    """A file's path, a data: URI, a file's bytes, a picture of PIL, an array, or patches."""
    Pictures = Picture | Sequence[Picture]
else:  # neither library is loaded for a type's sake
    Picture = Pictures = Any


class SamplingOptions(TypedDict, total=False):
    """How a canvas is drafted and when it is done: `diffusion.config.SamplerConfig`."""

    max_denoising_steps: int
    entropy_bound: float
    t_max: float
    t_min: float
    stability_threshold: int
    confidence_threshold: float
    max_new_tokens: int | None
    canvas_length: int | None


class TurnOptions(SamplingOptions, total=False):
    """The same, and how a prompt is read: `engine.prompt.Asked`, without pictures."""

    system: str | None
    think: bool
    tools: Sequence[Mapping[str, Any]] | None
    image_tokens: int | None
    guard: bool


class Options(TurnOptions, total=False):
    """The same with pictures: what `generate`, `stream`, `steps` and `generate_many` take."""

    images: Pictures | None


class ConversationOptions(TurnOptions, total=False):
    """What all turns of a conversation have in common."""

    stop: str | Sequence[str] | None
    rule: AcceptRule | None
