"""How a checkpoint wants its images cut, and the small JSON files of its folder.

Knows the names of Hugging Face's processor files. Does not open images and does not import torch,
so that a chat without images stays light.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusiongemma.core.errors import CheckpointError, ConfigError

BUDGETS = (70, 140, 280, 560, 1120)
"""The numbers of soft tokens per image that the vision tower was trained with."""

# What the reference processor does and this package always does. A file that asks for something
# else would be honoured only by pretending.
_FIXED: dict[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": False,
    "do_convert_rgb": True,
    "resample": 3,
}


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """Numbers of the image processor, under Hugging Face's names.

    Attributes:
        patch_size: pixels along one side of a patch.
        pooling_kernel_size: patches along one side of the square that becomes one soft token.
        max_soft_tokens: budget of one image; one of 70, 140, 280, 560, 1120.
    """

    patch_size: int = 16
    pooling_kernel_size: int = 3
    max_soft_tokens: int = 280

    def __post_init__(self) -> None:
        for name in ("patch_size", "pooling_kernel_size"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= 256:
                raise ConfigError(f"{name} must be a whole number from 1 to 256, got {value!r}")
        if self.max_soft_tokens not in BUDGETS:
            raise ConfigError(
                f"max_soft_tokens must be one of {', '.join(map(str, BUDGETS))}, "
                f"got {self.max_soft_tokens!r}"
            )

    @classmethod
    def from_folder(cls, path: Path, usual: "ImageSettings | None" = None) -> "ImageSettings":
        """Settings from `processor_config.json` or `preprocessor_config.json`.

        Args:
            path: the checkpoint's folder.
            usual: what holds where the files say nothing.

        Raises:
            CheckpointError: a file is not JSON.
            ConfigError: a file asks for processing that this package does not do.
        """
        data = read_json(Path(path) / "processor_config.json") or {}
        data = data.get("image_processor") or read_json(Path(path) / "preprocessor_config.json")
        if not data:
            return usual or cls()
        if not isinstance(data, dict):
            raise ConfigError(
                f"the image processor of {path} is not an object; fetch its files again"
            )
        for name, fixed in _FIXED.items():
            if data.get(name, fixed) not in (fixed, None):
                raise ConfigError(
                    f"the image processor of {path} asks for {name}={data[name]!r}, and only "
                    f"{fixed!r} is implemented; is this a Gemma 4 vision checkpoint?"
                )
        names = ("patch_size", "pooling_kernel_size", "max_soft_tokens")
        said = {name: data[name] for name in names if data.get(name) is not None}
        return replace(usual or cls(), **said)


def read_json(file: Path) -> dict[str, Any] | None:
    """An object from a JSON file; None where there is no file.

    Raises:
        CheckpointError: the file is not a JSON object.
    """
    if not file.is_file():
        return None
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON ({error}); fetch the file again") from error
    if not isinstance(data, dict):
        raise CheckpointError(
            f"{file} holds {type(data).__name__} and not an object; fetch the file again"
        )
    return data
