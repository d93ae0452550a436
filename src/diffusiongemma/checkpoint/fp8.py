"""FP8-dynamic, as compressed-tensors writes it: what `config.json` says, and which layers have it.

Weights are e4m3 with one scale an output channel, `X.weight` and `X.weight_scale` of (out, 1);
activations are quantised as they come, row by row, and have nothing stored. Released checkpoints
store experts one by one, as `experts.7.gate_proj` and so on. Two tensors for all experts of a
layer, with scales of (E, 2F, 1) and (E, D, 1), are understood too. The file tells which layers are
quantised: those whose weight is stored in e4m3.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from diffusiongemma.checkpoint import names
from diffusiongemma.core.errors import CheckpointError
from diffusiongemma.core.letters import brief
from diffusiongemma.kernels.quantised import E4M3
from diffusiongemma.model.experts import Experts
from diffusiongemma.model.model import DiffusionGemma
from diffusiongemma.quant.apply import candidates, prepare

STORED = "F8_E4M3"
"""e4m3, as safetensors spells it."""
SCALES = ("BF16", "F16", "F32")
"""What scales may be stored in."""
BUILT = "only FP8-dynamic as compressed-tensors writes it is built"

_WEIGHTS = {
    "num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False,
}  # fmt: skip
_INPUTS = {
    "num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True,
}  # fmt: skip
_FORMAT = "float-quantized"
_PRESET = "FP8_DYNAMIC"
_NOTHING = (None, {}, [], False)
# What a scheme of channels and tokens has no use for; another value would mean another scheme.
_UNSAID = dict.fromkeys(("group_size", "block_structure", "actorder"), _NOTHING)
# What the library writes and reads. The observer looked at activations when scales were chosen.
_KNOWN = frozenset([
    "quant_method", "format", "quantization_status", "config_groups", "ignore", "version",
    "global_compression_ratio", "kv_cache_scheme", "sparsity_config", "transform_config",
    "moe_sparsity_config",
])  # fmt: skip
_IN_GROUPS = frozenset(["targets", "weights", "input_activations", "output_activations", "format"])
_IN_PARTS = frozenset(
    [*_WEIGHTS, *_UNSAID, "scale_dtype", "zp_dtype", "observer", "observer_kwargs"]
)
# Linear layers that stay as they are, in words that hold for the names of transformers and vLLM.
_IGNORED = [
    "lm_head", r"re:.*\.router(\.proj)?$", "re:.*self_conditioning.*", "re:.*vision_tower.*",
    "re:.*embed_vision.*",
]  # fmt: skip


def check(name: str, value: Tensor) -> None:
    """Whether an e4m3 weight or its scale holds numbers that a product can be made of.

    Raises:
        CheckpointError: a scale is not above zero and finite, or a weight's code is no number's.
    """
    if value.dtype is E4M3:
        worst = ((value.view(torch.uint8) & 0x7F) == 0x7F).any()
        said = "codes that are no numbers"
    else:
        worst = ~((value > 0) & value.isfinite()).all()
        said = "scales that are not above zero and finite"
    if bool(worst):
        raise CheckpointError(f"{name} holds {said}: it is damaged; fetch it again")


def scheme() -> dict[str, Any]:
    """`quantization_config` of what `quantise` writes."""
    usual = {"group_size": None, "block_structure": None, "actorder": None}
    return {
        "quant_method": "compressed-tensors",
        "format": _FORMAT,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": _WEIGHTS | usual,
                "input_activations": _INPUTS | usual,
                "output_activations": None,
                "format": _FORMAT,
            }
        },
        "ignore": _IGNORED,
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "transform_config": {},
    }


def unlike(raw: Any) -> str | None:
    """What in a `quantization_config` is not FP8-dynamic, as a phrase; None if nothing."""
    if not isinstance(raw, Mapping):
        return f"must be an object, got {brief(raw)}"
    groups = raw.get("config_groups")
    for key, wanted in (
        ("quant_method", ("compressed-tensors",)),
        ("format", (_FORMAT,)),
        ("quantization_status", ("compressed", None)),
        ("kv_cache_scheme", _NOTHING),
        ("transform_config", _NOTHING),
        ("moe_sparsity_config", _NOTHING),
        ("sparsity_config", (*_NOTHING, {"format": "dense"})),
    ):
        if raw.get(key) not in wanted:
            return f"has {key} = {brief(raw.get(key))}"
    if not isinstance(groups, Mapping) or not groups:
        return f"has config_groups = {brief(groups)}"
    for name, group in groups.items():
        if isinstance(group, list) and str(name).upper() == _PRESET:
            continue
        if not isinstance(group, Mapping):
            return f"has config_groups.{brief(name)} = {brief(group)}"
        for part, wanted in (("weights", _WEIGHTS), ("input_activations", _INPUTS)):
            given = group.get(part)
            given = given if isinstance(given, Mapping) else {}
            for key, values in ({key: (value,) for key, value in wanted.items()} | _UNSAID).items():
                if given.get(key) not in values:
                    return f"has {part}.{key} = {brief(given.get(key))} in {brief(name)}"
        for key, allowed in (("output_activations", _NOTHING), ("format", (_FORMAT, None))):
            if group.get(key) not in allowed:
                return f"has {key} = {brief(group.get(key))} in {brief(name)}"
    return None


def unknown(raw: Mapping[str, Any]) -> list[str]:
    """Keys of a FP8-dynamic `quantization_config` that nobody here knows, as paths."""
    found = sorted(raw.keys() - _KNOWN)
    for name, group in raw["config_groups"].items():
        if not isinstance(group, Mapping):
            continue
        where = f"config_groups.{name}."
        found += [where + key for key in sorted(group.keys() - _IN_GROUPS)]
        for part in ("weights", "input_activations"):
            left = (group.get(part) or {}).keys() - _IN_PARTS
            found += [f"{where}{part}.{key}" for key in sorted(left)]
    return found


def adapt(model: DiffusionGemma, stored: Mapping[str, str]) -> list[str]:
    """Give a network without memory the layers that a checkpoint has.

    Args:
        model: on meta; those of its layers that are stored in e4m3 become quantised ones.
        stored: the format of every tensor of the checkpoint, by its name there.

    Returns:
        the paths of quantised layers.
    """
    found = [path for path, module in candidates(model) if _weights(path, module, stored)]
    prepare(model, found)
    return found


def pieces(here: str, weight: Tensor, scale: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A quantised weight as it is stored: names there, and tensors. Experts come one by one.

    Args:
        here: our name of the weight.
        weight: e4m3.
        scale: of each of its output channels.
    """
    path, _, name = here.rpartition(".")
    if weight.ndim == 2:
        yield names.to_there(here), weight
        yield names.to_there(_beside(here)), scale[:, None]
        return
    parts = ("gate", "up") if name == "gate_up" else (name,)
    rows = weight.shape[1] // len(parts)
    for expert in range(len(weight)):
        for number, part in enumerate(parts):
            own = slice(number * rows, (number + 1) * rows)
            yield from pieces(f"{path}.{expert}.{part}", weight[expert, own], scale[expert, own])


def stored(model: DiffusionGemma) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a network as a checkpoint has it: its name there, and its values."""
    tensors = model.state_dict()
    scales = {here: _beside(here) for here, value in tensors.items() if value.dtype == E4M3}
    for here, value in tensors.items():
        if here in scales:
            yield from pieces(here, value, tensors[scales[here]])
        elif here not in scales.values():
            yield names.to_there(here), value


def _beside(here: str) -> str:
    path, _, name = here.rpartition(".")
    return f"{path}.scale" if name == "weight" else f"{here}_scale"


def one_by_one(path: str, stored: Collection[str]) -> bool:
    """Whether the experts at a path are stored one by one."""
    return names.to_there(f"{path}.0.down") in stored


def _weights(path: str, module: object, stored: Mapping[str, str]) -> bool:
    """Whether any weight of a layer is stored in e4m3."""
    weight = f"{path}.weight"
    if isinstance(module, Experts):
        weight = f"{path}.0.down" if one_by_one(path, stored) else f"{path}.down"
    return stored.get(names.to_there(weight)) == STORED
