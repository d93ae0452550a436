"""Toy checkpoints in FP8-dynamic, made and written by compressed-tensors itself.

The library quantises linear layers. Transformers keeps the experts of this architecture as two
tensors, which the library passes over; whoever releases such checkpoints takes them apart first, so
that each expert is three linear layers. Both ways are made here. A third, two tensors in e4m3 with
their scales, no library writes; `fuse` makes it of the second.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import toys

# As in the released checkpoints.
IGNORED = ["re:.*router.*", "re:.*vision.*", "re:.*self_conditioning.*", "lm_head"]
SINGLE = "model.safetensors"


class Expert(nn.Module):
    """One expert as three linear layers, with the names of released checkpoints."""

    def __init__(self, gate_up: Tensor, down: Tensor) -> None:
        super().__init__()
        gate, up = gate_up.chunk(2)
        for name, weight in (("gate_proj", gate), ("up_proj", up), ("down_proj", down)):
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
            layer.weight.data = weight.detach().clone()
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        gate = nn.functional.gelu(self.gate_proj(x), approximate="tanh")
        return self.down_proj(gate * self.up_proj(x))


class Experts(nn.ModuleList):
    """All experts of a layer, called as transformers calls its own."""

    def forward(self, x: Tensor, chosen: Tensor, share: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for number, expert in enumerate(self):
            token, place = (chosen == number).nonzero(as_tuple=True)
            # The library takes the first two axes for rows and tokens; without the first, it would
            # give all tokens one scale.
            answer = expert(x[token][None])[0]
            out.index_add_(0, token, answer * share[token, place, None].to(x.dtype))
        return out


def write(
    toy: toys.Toy, folder: Path, *, apart: bool = True, dtype: torch.dtype = torch.float32
) -> Any:
    """Have the library quantise a toy and write it.

    Args:
        toy: what to make.
        folder: where to.
        apart: take the experts apart first.
        dtype: of the model, and so of the scales.

    Returns:
        transformers' model, which computes as the library has it: weights as they were rounded,
        and the rows that come to a quantised layer rounded on the way.
    """
    from compressed_tensors.compressors import ModelCompressor, decompress_module
    from compressed_tensors.quantization import (
        QuantizationConfig,
        apply_quantization_config,
        preset_name_to_scheme,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    model = toys.make(toy).to(dtype)
    if apart:
        take_apart(model)
    group = preset_name_to_scheme("FP8_DYNAMIC", ["Linear"])
    config = QuantizationConfig(config_groups={"group_0": group}, ignore=IGNORED)
    apply_quantization_config(model, config)
    for layer in model.modules():
        if getattr(layer, "quantization_scheme", None) is not None:
            low, high = layer.weight.detach().aminmax(dim=1, keepdim=True)
            scale, _ = calculate_qparams(low, high, layer.quantization_scheme.weights)
            layer.weight_scale.data = scale
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))
    compressor.remove_decompression_hook(model)
    for layer in model.modules():
        decompress_module(layer)
    return model


def take_apart(model: Any) -> None:
    """Make each expert of transformers' model three linear layers."""
    both = zip(model.model.encoder.language_model.layers, model.model.decoder.layers, strict=True)
    for encoder, decoder in both:
        old = decoder.experts
        parts = zip(old.gate_up_proj, old.down_proj, strict=True)
        encoder.experts = decoder.experts = Experts(Expert(*part) for part in parts)


def fuse(source: Path, folder: Path, scale: str = "{}_scale") -> None:
    """The same checkpoint with all experts of a layer in two tensors.

    Args:
        source: a folder with experts one by one.
        folder: where to.
        scale: how the scales of `gate_up_proj` and `down_proj` are called.
    """
    folder.mkdir()
    (folder / "config.json").write_text((source / "config.json").read_text())
    tensors = load_file(source / SINGLE)
    one = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)_proj\.(weight|weight_scale)")
    single = {name: found for name in tensors if (found := one.fullmatch(name))}
    parts = {found.groups(): tensors.pop(name) for name, found in single.items()}
    experts = 1 + max(int(number) for _, number, _, _ in parts)
    for path in sorted({path for path, *_ in parts}):
        for kind, suffix in (("weight", "{}"), ("weight_scale", scale)):
            rows = [
                torch.cat([parts[path, str(n), side, kind].float() for side in ("gate", "up")])
                for n in range(experts)
            ]
            down = [parts[path, str(n), "down", kind].float() for n in range(experts)]
            form = parts[path, "0", "down", kind].dtype
            for name, many in (("gate_up_proj", rows), ("down_proj", down)):
                tensors[f"{path}.{suffix.format(name)}"] = torch.stack(many).to(form)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def change_scheme(folder: Path, *path: str, to: Any) -> None:
    """Change one value of quantization_config in config.json."""
    raw = json.loads((folder / "config.json").read_text())
    part = raw["quantization_config"]
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = to
    (folder / "config.json").write_text(json.dumps(raw))
