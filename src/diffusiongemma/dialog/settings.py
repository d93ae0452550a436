"""How a checkpoint wants its images cut.

Knows the names of Hugging Face's processor files. Does not open images and does not import torch,
so that a chat without images stays light.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusiongemma.core.errors import ConfigError
from diffusiongemma.core.letters import brief
from diffusiongemma.core.reading import find_json, name_unknown

BUDGETS = (70, 140, 280, 560, 1120)
"""The numbers of soft tokens per image that the vision tower was trained with."""

# What the reference processor does and this package always does. A file that asks for something
# else would be honoured only by pretending.
_RESCALE = 1 / 255
_FIXED: dict[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": False,
    "do_convert_rgb": True,
    "resample": 3,
}
# What has no say: means that nothing is divided by, sizes of other processors, ways to compute.
_SKIPPED = frozenset([
    "image_processor_type", "processor_class", "auto_map", "image_mean", "image_std",
    "image_seq_length", "num_soft_tokens", "size", "default_to_square", "crop_size", "pad_size",
    "do_center_crop", "do_pad", "data_format", "input_data_format", "device", "return_tensors",
    "disable_grouping", "return_row_col_info", "feature_extractor_type", "transformers_version",
])  # fmt: skip
_USED = ("patch_size", "pooling_kernel_size", "max_soft_tokens")
# Beside the images' part. The model hears nothing, and frames of a video are cut as images are.
_OTHER_PARTS = frozenset([
    "image_processor", "video_processor", "feature_extractor", "tokenizer", "processor_class",
    "auto_map", "chat_template", "image_seq_length", "audio_seq_length", "audio_ms_per_token",
    "transformers_version",
])  # fmt: skip


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
                raise ConfigError(
                    f"{name} must be a whole number from 1 to 256, got {brief(value)}"
                )
        if self.max_soft_tokens not in BUDGETS:
            raise ConfigError(
                f"max_soft_tokens must be one of {', '.join(map(str, BUDGETS))}, "
                f"got {brief(self.max_soft_tokens)}"
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
        file = Path(path) / "processor_config.json"
        whole = find_json(file) or {}
        data, prefix = whole.get("image_processor"), "image_processor."
        if data:
            name_unknown(file, sorted(whole.keys() - _OTHER_PARTS))
        else:
            file, prefix = Path(path) / "preprocessor_config.json", ""
            data = find_json(file)
        if not data:
            return usual or cls()
        if not isinstance(data, dict):
            raise ConfigError(
                f"the image processor of {path} is not an object; fetch its files again"
            )
        _check(path, data)
        unknown = data.keys() - _FIXED.keys() - _SKIPPED - {*_USED, "rescale_factor"}
        name_unknown(file, [prefix + key for key in sorted(unknown)])
        said = {name: data[name] for name in _USED if data.get(name) is not None}
        return replace(usual or cls(), **said)


def _check(path: Path, data: dict[str, Any]) -> None:
    """Whether an image processor asks for what is done."""
    for name, fixed in _FIXED.items():
        if data.get(name, fixed) not in (fixed, None):
            raise ConfigError(
                f"the image processor of {path} asks for {name}={brief(data[name])}, and only "
                f"{fixed!r} is implemented; is this a Gemma 4 vision checkpoint?"
            )
    factor = data.get("rescale_factor")
    if factor is not None and not _near(factor, _RESCALE):
        raise ConfigError(
            f"the image processor of {path} asks for rescale_factor={brief(factor)}, and only "
            "1/255 is implemented; is this a Gemma 4 vision checkpoint?"
        )


def _near(value: Any, wanted: float) -> bool:
    return isinstance(value, int | float) and abs(value - wanted) < 1e-6 * wanted
