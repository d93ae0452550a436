"""`config.json` of a Hugging Face folder <-> `ModelConfig`. The only file that knows its spelling.

Every key is used, or skipped by name because it has no say in inference, or required to have one of
the values that this code implements, or unknown. A known key whose value cannot be honoured is an
error, and one error lists them all: a network that is almost the right one is worse than none.
Unknown keys are named in one warning, and a saved copy keeps them: trainers and converters add
their own, and what changes the network's shape shows in its tensors.

Two layouts exist. The released one has `global_head_dim` and `num_global_key_value_heads`; the one
that transformers writes has `per_layer_config`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusiongemma.checkpoint import fp8, stand_in
from diffusiongemma.checkpoint.section import Raw, Section
from diffusiongemma.core.device import DTYPES
from diffusiongemma.core.errors import ConfigError
from diffusiongemma.core.letters import brief
from diffusiongemma.core.reading import name_unknown, read_json
from diffusiongemma.diffusion.config import LONGEST_CANVAS
from diffusiongemma.model.config import LayerConfig, ModelConfig, VisionConfig

# What `layer_types` says too, and more exactly.
_PATTERNS = ("sliding_window_pattern", "_sliding_window_pattern")
_SKIPPED = frozenset([
    "architectures", "transformers_version", "_name_or_path", "initializer_range", "pad_token_id",
    "bos_token_id", "eos_token_id", "attention_dropout", "use_cache", "torch_dtype", "dtype",
    "chunk_size_feed_forward", "id2label", "label2id", "return_dict", "output_hidden_states",
    "output_attentions", "problem_type", "is_encoder_decoder", "vocab_size_per_layer_input",
    "vision_soft_tokens_per_image", "keys_to_ignore_at_inference", "is_causal", "max_length",
    "audio_token_id", "boa_token_id", "eoa_token_id", "eoa_token_index", "video_token_id",
    "dropout", "num_soft_tokens", "default_output_length", "_attn_implementation",
    "experts_implementation", "_experts_implementation", "auto_map", "generation_config",
    "torchscript", "_commit_hash", "processor_class", "tokenizer_class", "is_decoder",
    *_PATTERNS,
    # In the vision tower nothing reads these; the text's are used.
    "global_head_dim", "max_position_embeddings",
])  # fmt: skip
_FIXED: dict[str, tuple[Any, ...]] = {
    "tie_word_embeddings": (True,),
    "attention_bias": (False, None),
    "hidden_activation": ("gelu_pytorch_tanh",),
    "enable_moe_block": (True,),
    "attention_k_eq_v": (True,),
    "use_double_wide_mlp": (False,),
    "num_kv_shared_layers": (0, None),
    "hidden_size_per_layer_input": (0, None),
    "use_clipped_linears": (False,),
    "audio_config": (None,),
    "attn_logit_softcapping": (None,),
    "rope_scaling": (None,),
    "pruned_heads": ({}, None),
}
_LONGEST, _DEEPEST = 2**31 - 1, 1000
_TEXT = [
    "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_experts",
    "top_k_experts", "moe_intermediate_size"
]  # fmt: skip
_TEXT_LONG = ["sliding_window", "max_position_embeddings"]
_VISION = [
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"
]  # fmt: skip
_VISION_USUAL = {"patch_size": 16, "pooling_kernel_size": 3, "position_embedding_size": 10240}
_KINDS = ("sliding_attention", "full_attention")


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What a `config.json` says.

    Attributes:
        config: the network.
        raw: the whole file, parsed.
        kept: what the network does not decide; a copy of the checkpoint must say it too.
        unknown: keys that nobody here knows, as paths.
    """

    config: ModelConfig
    raw: Raw
    kept: dict[str, Any]
    unknown: tuple[str, ...]


def read_config(folder: Path) -> Described:
    """Read a folder's `config.json`, and warn once of keys that nobody here knows.

    Raises:
        CheckpointError: there is no such file, or it is no JSON object.
        ConfigError: it asks for what this code cannot honour.
    """
    path = folder / "config.json"
    found = describe(read_json(path))
    name_unknown(path, found.unknown)
    return found


def from_hf(raw: Raw) -> ModelConfig:
    """The network of a parsed `config.json`.

    Raises:
        ConfigError: it asks for what this code cannot honour.
    """
    return describe(raw).config


def describe(raw: Raw) -> Described:
    """Read the parsed `config.json`.

    Raises:
        ConfigError: another model type, missing keys, or keys that this code cannot honour; all of
            them in one message.
    """
    kind = raw.get("model_type")
    if kind != "diffusion_gemma":
        raise ConfigError(
            f"config.json has model_type {brief(kind)}; this package opens 'diffusion_gemma', such "
            "as google/diffusiongemma-26B-A4B-it"
        )
    top = Section("", raw, [])
    text = top.section("text_config")
    if text is None:
        raise ConfigError("config.json has no section text_config; is it the file of this model?")
    fields = _text_fields(text)
    vision = top.section("vision_config")
    vision_fields = None if vision is None or _stands_in(vision) else _vision_fields(vision)
    fields["canvas_length"] = top.whole("canvas_length", 256, most=LONGEST_CANVAS)
    for name, default in (("image", 258880), ("boi", 255999), ("eoi", 258882)):
        key = f"{name}_token_id"
        given = top.take(key, default)
        fields[key] = None if given is None else top.whole(key, default, least=0)
    fields["dtype"] = _dtype(top, text)
    fields["fp8"], unknown = _quantised(top)
    unknown += top.close(_SKIPPED, _FIXED)
    if top.problems:
        raise ConfigError(
            f"config.json cannot be honoured: {'; '.join(top.problems)}. Compare it with that of "
            "google/diffusiongemma-26B-A4B-it, or update this package"
        )
    fields["vision"] = None if vision_fields is None else VisionConfig(**vision_fields)
    for part in (top, *top.parts.values()):
        part.taken |= {"dtype", "torch_dtype"}  # of the weights, which may be saved in another
    config = ModelConfig(**fields)
    return Described(config=config, raw=raw, kept=top.untaken(), unknown=tuple(unknown))


def _quantised(top: Section) -> tuple[bool, list[str]]:
    """Whether weights are stored in e4m3, and keys there that nobody here knows."""
    asked = top.take("quantization_config", None)
    if asked is None:
        return False, []
    what = fp8.unlike(asked)
    if what is None:
        return True, [f"quantization_config.{key}" for key in fp8.unknown(asked)]
    top.complain("quantization_config", f"{what}; {fp8.BUILT}")
    return True, []


def _dtype(top: Section, text: Section) -> str:
    given = (top.raw.get("dtype"), top.raw.get("torch_dtype"), text.raw.get("dtype"), "bfloat16")
    dtype = next(value for value in given if value is not None)
    name = dtype.removeprefix("torch.") if isinstance(dtype, str) else ""
    if name not in DTYPES:
        top.complain("dtype", f"= {brief(dtype)}, only {' or '.join(DTYPES)} is built")
    return name


def _text_fields(text: Section) -> dict[str, Any]:
    text.one_of("model_type", "diffusion_gemma_text")
    fields: dict[str, Any] = {name: text.whole(name) for name in _TEXT}
    fields |= {name: text.whole(name, most=_LONGEST) for name in _TEXT_LONG}
    fields["rms_norm_eps"] = text.real("rms_norm_eps", 1e-6)
    fields["final_logit_softcapping"] = text.real("final_logit_softcapping", 30.0)
    fields["layers"] = _layers(text, fields["num_attention_heads"])
    spans = text.one_of("use_bidirectional_attention", None, "vision")
    fields["image_spans_see_themselves"] = spans == "vision"
    return fields | _rope(text)


def _layers(text: Section, heads: int) -> tuple[LayerConfig, ...]:
    before = len(text.problems)
    count = text.whole("num_hidden_layers", most=_DEEPEST)
    kinds = text.take("layer_types", None)
    usual = {key: text.whole(key) for key in ("head_dim", "num_key_value_heads")}
    full = {
        "head_dim": text.whole("global_head_dim", 512),
        "num_key_value_heads": usual["num_key_value_heads"],
    }
    if text.take("num_global_key_value_heads", None) is not None:
        full["num_key_value_heads"] = text.whole("num_global_key_value_heads")
    special = text.section("per_layer_config")
    if len(text.problems) > before:
        return ()
    if kinds is None:  # five sliding layers, then a full one; the last is always full
        for key in _PATTERNS:
            text.expect(key, 6, None)
        kinds = [_KINDS[n % 6 == 5 or n == count - 1] for n in range(count)]
    if not isinstance(kinds, list) or len(kinds) != count or any(k not in _KINDS for k in kinds):
        wanted = f"must be {count} entries of {' or '.join(_KINDS)}, one a layer"
        text.complain("layer_types", f"{wanted}, got {brief(kinds)}")
        return ()
    if kinds[-1] != "full_attention":
        text.complain("layer_types", "must end in full_attention; transformers runs it as such")
    if "per_layer_config" in text.raw:
        full = usual  # in this layout only the exceptions are written
    shapes = [dict(usual if kind == "sliding_attention" else full) for kind in kinds]
    if special is not None:
        _change(special, shapes)
    for number, shape in enumerate(shapes):
        if shape not in shapes[:number]:
            _check_heads(text, heads, shape, 2, f" of layer {number}")
    return tuple(
        LayerConfig(sliding=kind == "sliding_attention", **shape)
        for kind, shape in zip(kinds, shapes, strict=True)
    )


def _change(special: Section, shapes: list[dict[str, int]]) -> None:
    """Apply `per_layer_config`. Its keys are numbers, padded with zeros ("05") or not."""
    seen: set[int] = set()
    for key in special.raw:
        text = str(key)
        number = int(text) if text.isdecimal() and len(text) < 10 else len(shapes)
        changes = special.section(key, str(number))
        if number in seen or number >= len(shapes):
            special.complain(key, "names no layer, or one that another key names too")
        elif changes is not None:
            changes.one_of("skip", [])
            for name in sorted(shapes[number].keys() & changes.raw.keys()):
                shapes[number][name] = changes.whole(name)
        seen.add(number)


def _check_heads(part: Section, heads: int, shape: Mapping[str, int], even: int, of: str) -> None:
    if heads % shape["num_key_value_heads"]:
        part.complain(
            "num_attention_heads",
            f"= {heads} is no multiple of num_key_value_heads = {shape['num_key_value_heads']}{of}",
        )
    if shape["head_dim"] % even:
        part.complain("head_dim", f"= {shape['head_dim']}{of} is no multiple of {even}")


def _rope(text: Section) -> dict[str, float]:
    usual = {"rope_theta_sliding": 1e4, "rope_theta_full": 1e6, "partial_rotary_factor": 0.25}
    given = text.section("rope_parameters")
    if given is None:
        return usual
    sliding, full = (given.section(kind) for kind in _KINDS)
    if sliding is None or full is None:
        text.complain("rope_parameters", f"must hold {' and '.join(_KINDS)}")
        return usual
    sliding.one_of("rope_type", "default")
    sliding.one_of("partial_rotary_factor", 1.0)
    full.one_of("rope_type", "proportional")
    for part in (sliding, full):
        part.one_of("factor", 1.0)
    return {
        "rope_theta_sliding": sliding.real("rope_theta"),
        "rope_theta_full": full.real("rope_theta"),
        "partial_rotary_factor": full.real("partial_rotary_factor", 1.0, most=1.0),
    }


def _stands_in(vision: Section) -> bool:
    """Whether the tower is one without layers, which is none."""
    if vision.raw.get("num_hidden_layers") != 0:
        return False
    for key, value in stand_in.CONFIG.items():
        vision.expect(key, value)
    vision.taken |= vision.raw.keys()  # a copy has it anew
    return True


def _vision_fields(vision: Section) -> dict[str, Any]:
    vision.one_of("model_type", "gemma4_vision")
    fields: dict[str, Any] = {name: vision.whole(name) for name in _VISION}
    fields |= {name: vision.whole(name, n, most=100_000) for name, n in _VISION_USUAL.items()}
    fields["num_hidden_layers"] = vision.whole("num_hidden_layers", most=_DEEPEST)
    fields["rms_norm_eps"] = vision.real("rms_norm_eps", 1e-6)
    fields["standardize"] = bool(vision.one_of("standardize", False, True))
    fields["rope_theta"] = vision.real("rope_theta", 100.0)
    rope = vision.section("rope_parameters")
    if rope is not None:
        rope.one_of("rope_type", "axial", "default")
        fields["rope_theta"] = rope.real("rope_theta", fields["rope_theta"])
    _check_heads(vision, fields["num_attention_heads"], fields, 4, "")
    return fields


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of a network, in the layout that transformers writes.

    Raises:
        ConfigError: this layout has no words for the network, such as one that ends in a sliding
            layer.
    """
    usual = next((layer for layer in config.layers if layer.sliding), config.layers[0])
    special = {
        str(n): {"head_dim": x.head_dim, "num_key_value_heads": x.num_key_value_heads}
        for n, x in enumerate(config.layers)
        if (x.head_dim, x.num_key_value_heads) != (usual.head_dim, usual.num_key_value_heads)
    }
    same = [*_TEXT, *_TEXT_LONG, "rms_norm_eps", "final_logit_softcapping"]
    text = {name: getattr(config, name) for name in same} | {
        "model_type": "diffusion_gemma_text",
        "num_hidden_layers": len(config.layers),
        "layer_types": [_KINDS[not layer.sliding] for layer in config.layers],
        "head_dim": usual.head_dim,
        "num_key_value_heads": usual.num_key_value_heads,
        "per_layer_config": special,
        "hidden_activation": "gelu_pytorch_tanh",
        "use_bidirectional_attention": "vision" if config.image_spans_see_themselves else None,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": config.rope_theta_sliding},
            "full_attention": {
                "rope_type": "proportional",
                "rope_theta": config.rope_theta_full,
                "partial_rotary_factor": config.partial_rotary_factor,
            },
        },
        "tie_word_embeddings": True,
    }
    raw = {
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "model_type": "diffusion_gemma",
        "dtype": config.dtype,
        "canvas_length": config.canvas_length,
        "image_token_id": config.image_token_id,
        "boi_token_id": config.boi_token_id,
        "eoi_token_id": config.eoi_token_id,
        "tie_word_embeddings": True,
        "text_config": text,
        "vision_config": stand_in.CONFIG if config.vision is None else _vision_to_hf(config.vision),
    }
    if config.fp8:
        raw["quantization_config"] = fp8.scheme()
    if from_hf(raw) != config:  # what is written must be what is read
        raise ConfigError(f"no config.json can say {config}; this is a mistake in this package")
    return raw


def _vision_to_hf(vision: VisionConfig) -> dict[str, Any]:
    same = [*_VISION, *_VISION_USUAL, "num_hidden_layers", "rms_norm_eps", "standardize"]
    return {name: getattr(vision, name) for name in same} | {
        "model_type": "gemma4_vision",
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_parameters": {"rope_type": "axial", "rope_theta": vision.rope_theta},
    }
