"""Every sampling default, once. Names are those of Hugging Face's generation config.

The command line, the docs and `gemma.generate` derive their options from these fields; the text
under each field is its help.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from diffusiongemma.core.errors import OptionError, unknown_name
from diffusiongemma.core.letters import brief
from diffusiongemma.core.numbers import real, whole

HELP = {
    "max_denoising_steps": "steps at most for one canvas; also stretches the temperature schedule",
    "entropy_bound": "nats of joint uncertainty that one step may accept",
    "t_max": "temperature of the first step",
    "t_min": "temperature that the schedule goes down to (the last step is just above it)",
    "stability_threshold": "steps for which the most likely canvas must repeat before stopping",
    "confidence_threshold": "mean entropy in nats, over the canvas, below which a step may stop",
    "max_new_tokens": "tokens at most, exactly; none means on to the end of the context",
    "canvas_length": "positions drafted together; none means what the checkpoint was trained with",
}

LONGEST_CANVAS = 16_384
"""Positions that may be drafted together; the released checkpoint drafts 256. Each attends to all
others, so that this many take minutes even in the smallest network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerConfig:
    """How a canvas is drafted and when it is done. Meanings are in `HELP`.

    Raises:
        OptionError: a value out of range.
    """

    max_denoising_steps: int = 48
    entropy_bound: float = 0.1
    t_max: float = 0.8
    t_min: float = 0.4
    stability_threshold: int = 1
    confidence_threshold: float = 0.005
    max_new_tokens: int | None = None
    canvas_length: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = _checked(field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)  # numbers of numpy become Python's
        if self.t_max < self.t_min:
            raise OptionError(f"t_max must not be below t_min, got {self.t_max} < {self.t_min}")

    def with_options(self, **options: Any) -> "SamplerConfig":
        """A copy with some options changed.

        Raises:
            OptionError: no option has that name, or the value is out of range.
        """
        known = [field.name for field in fields(self)]
        for name in options:
            if name not in known:
                raise OptionError(unknown_name("option", name, known))
        return replace(self, **{name: _checked(name, value) for name, value in options.items()})

    @classmethod
    def from_generation_config(cls, raw: Mapping[str, Any]) -> "SamplerConfig":
        """The defaults of a checkpoint, from its parsed `generation_config.json`; null is ours.

        `max_new_tokens` in that file (256 in the released one) is not taken over: it would cut
        every answer at one canvas.

        Raises:
            OptionError: a value that cannot be honoured.
        """
        sampler = raw.get("sampler_config") or {}
        if not isinstance(sampler, Mapping):
            raise OptionError(f"sampler_config must be an object, got {brief(sampler)}")
        kind = sampler.get("_cls_name", "EntropyBoundSamplerConfig")
        if kind != "EntropyBoundSamplerConfig":
            raise OptionError(
                f"generation_config.json asks for sampler {brief(kind)}; only "
                "EntropyBoundSamplerConfig is built"
            )
        names = ("max_denoising_steps", "t_max", "t_min", "stability_threshold")
        given = {name: raw.get(name) for name in (*names, "confidence_threshold")}
        given["entropy_bound"] = sampler.get("entropy_bound")
        return cls().with_options(**{k: v for k, v in given.items() if v is not None})

    @classmethod
    def unknown(cls, raw: Mapping[str, Any]) -> list[str]:
        """Keys of a parsed `generation_config.json` that nobody here knows, as paths."""
        sampler = raw.get("sampler_config")
        inside = sampler if isinstance(sampler, Mapping) else {}
        known = {field.name for field in fields(cls)} | _IN_FILES
        return [
            *sorted(raw.keys() - known),
            *(f"sampler_config.{key}" for key in sorted(inside.keys() - _IN_SAMPLER)),
        ]

    def to_generation_config(self) -> dict[str, Any]:
        """The sampling part of a `generation_config.json` that transformers reads."""
        return {
            "max_denoising_steps": self.max_denoising_steps,
            "sampler_config": {
                "_cls_name": "EntropyBoundSamplerConfig",
                "entropy_bound": self.entropy_bound,
            },
            "t_max": self.t_max,
            "t_min": self.t_min,
            "stability_threshold": self.stability_threshold,
            "confidence_threshold": self.confidence_threshold,
        }


# What stands in a generation config and has no say here, or has it elsewhere.
_IN_FILES = frozenset([
    "sampler_config", "bos_token_id", "eos_token_id", "pad_token_id", "max_length",
    "return_dict_in_generate", "cache_implementation", "cache_config", "disable_compile",
    "transformers_version", "_commit_hash", "_from_model_config",
])  # fmt: skip
_IN_SAMPLER = frozenset(["_cls_name", "entropy_bound"])
_LEAST = {
    "max_denoising_steps": 1,
    "stability_threshold": 0,
    "max_new_tokens": 1,
    "canvas_length": 1,
}
_OPTIONAL = ("max_new_tokens", "canvas_length")


def _checked(name: str, value: Any) -> int | float | None:
    if value is None and name in _OPTIONAL:
        return None
    if name in _LEAST:
        least, count = _LEAST[name], whole(value)
        if count is None or count < least:
            raise OptionError(
                f"{name} must be a whole number of at least {least}, got {brief(value)}"
            )
        most = LONGEST_CANVAS if name == "canvas_length" else 2**31 - 1
        if count > most:
            raise OptionError(
                f"{name} must be a whole number of at most {most}, got {brief(value)}"
            )
        return count
    number = real(value)
    least = 0.001 if name == "t_max" else 0  # logits of 30 have to stay numbers when divided by it
    # The comparison refuses not-a-number and infinity too.
    if number is None or not least <= number < 1e6:
        raise OptionError(f"{name} must be a number from {least} to 1e6, got {brief(value)}")
    return number
