"""`config.json` of a Hugging Face folder <-> `ModelConfig`. The only file that knows its spelling.

Every key is either used, or skipped by name because it has no say in inference, or required to
have the one value that this code implements. Anything else is an error that lists the keys: a
network that is almost the right one is worse than none.

Two layouts exist. The released one has `global_head_dim` and `num_global_key_value_heads`; the one
that transformers writes has `per_layer_config`.
"""

from collections.abc import Mapping
from typing import Any

from diffusiongemma.core.errors import ConfigError
from diffusiongemma.model.config import LayerConfig, ModelConfig, VisionConfig

Raw = Mapping[str, Any]

_SKIPPED = set(
    [
        "architectures",
        "transformers_version",
        "_name_or_path",
        "initializer_range",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "attention_dropout",
        "use_cache",
        "torch_dtype",
        "dtype",
        "chunk_size_feed_forward",
        "id2label",
        "label2id",
        "return_dict",
        "output_hidden_states",
        "output_attentions",
        "problem_type",
        "is_encoder_decoder",
        "vocab_size_per_layer_input",
        "vision_soft_tokens_per_image",
        "keys_to_ignore_at_inference",
        "is_causal",
        "max_length",
        "audio_token_id",
        "boa_token_id",
        "eoa_token_id",
        "eoa_token_index",
        "video_token_id",
        "dropout",
        "num_soft_tokens",
        "default_output_length",
        "_attn_implementation",
        "experts_implementation",
    ]
)
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
    "quantization_config": (None,),
}


def from_hf(raw: Raw) -> ModelConfig:
    """Read the parsed `config.json`.

    Raises:
        ConfigError: another model type, missing keys, or keys that this code cannot honour; all of
            them in one message.
    """
    kind = raw.get("model_type")
    if kind != "diffusion_gemma":
        raise ConfigError(
            f"config.json has model_type '{kind}'; this package opens 'diffusion_gemma'"
        )
    top = _Section("", raw)
    text = _Section("text_config.", top.section("text_config"))
    vision_raw = top.take("vision_config", None)
    vision = None if vision_raw is None else _Section("vision_config.", vision_raw)
    fields = _text_fields(text)
    fields["canvas_length"] = top.take("canvas_length", 256)
    for name, default in (("image", 258880), ("boi", 255999), ("eoi", 258882)):
        fields[f"{name}_token_id"] = top.take(f"{name}_token_id", default)
    fields["vision"] = None if vision is None else _vision(vision)
    dtype = raw.get("dtype") or raw.get("torch_dtype") or text.raw.get("dtype")
    fields["dtype"] = str(dtype or "bfloat16").removeprefix("torch.")
    complaints = [c for part in (top, text, vision) if part for c in part.complaints()]
    if complaints:
        raise ConfigError("config.json cannot be honoured: " + "; ".join(complaints))
    try:
        return ModelConfig(**fields)
    except TypeError as error:  # a number that is a string, say
        raise ConfigError(f"config.json has a value of the wrong type: {error}") from error


class _Section:
    """One dictionary of the file, which remembers what was taken from it."""

    def __init__(self, prefix: str, raw: Raw) -> None:
        self.prefix, self.raw = prefix, raw
        self.taken = {"model_type"}
        self.problems: list[str] = []

    def take(self, key: str, *default: Any) -> Any:
        """The value of a key; without a default, its absence is a problem."""
        self.taken.add(key)
        if key in self.raw and (self.raw[key] is not None or not default):
            return self.raw[key]
        if default:
            return default[0]
        self.problems.append(f"{self.prefix}{key} is missing")
        return None

    def number(self, key: str, *default: Any) -> Any:
        """A number that is above zero; anything else is a problem, and reads as 1."""
        value = self.take(key, *default)
        if value is None and default:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            if value is not None:
                self.problems.append(f"{self.prefix}{key} must be above 0, got {value!r}")
            return 1
        return value

    def section(self, key: str) -> Raw:
        value = self.take(key)
        if isinstance(value, Mapping):
            return value
        raise ConfigError(f"config.json has no section '{self.prefix}{key}'")

    def complaints(self) -> list[str]:
        """Everything in this section that cannot be honoured."""
        found = list(self.problems)
        for key in sorted(set(self.raw) - self.taken):
            if key in _FIXED:
                if self.raw[key] not in _FIXED[key]:
                    wanted = " or ".join(repr(value) for value in _FIXED[key])
                    found.append(f"{self.prefix}{key} = {self.raw[key]!r}, only {wanted} is built")
            elif key not in _SKIPPED:
                found.append(f"{self.prefix}{key} is a key that this version does not know")
        return found


def _text_fields(text: _Section) -> dict[str, Any]:
    names = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "sliding_window",
        "num_experts",
        "top_k_experts",
        "moe_intermediate_size",
        "max_position_embeddings",
    ]
    fields: dict[str, Any] = {name: text.number(name) for name in names}
    fields["rms_norm_eps"] = text.number("rms_norm_eps", 1e-6)
    fields["final_logit_softcapping"] = text.number("final_logit_softcapping", 30.0)
    fields["layers"] = _layers(text)
    bidirectional = text.take("use_bidirectional_attention", None)
    if bidirectional not in ("vision", None):
        text.problems.append(
            f"text_config.use_bidirectional_attention = {bidirectional!r}, only 'vision' or None "
            "is built"
        )
    fields["image_spans_see_themselves"] = bidirectional == "vision"
    return fields | _rope(text)


def _layers(text: _Section) -> tuple[LayerConfig, ...]:
    count = int(text.number("num_hidden_layers"))
    kinds = text.take("layer_types", None)
    if kinds is None:  # five sliding layers, then a full one; the last is always full
        kinds = ["full_attention" if n % 6 == 5 else "sliding_attention" for n in range(count)]
        kinds[-1] = "full_attention"
    known = {"sliding_attention", "full_attention"}
    if len(kinds) != count or not set(kinds) <= known:
        text.problems.append(
            f"text_config.layer_types must be {count} entries of {' or '.join(sorted(known))}, "
            f"got {len(kinds)} of {sorted(set(map(str, kinds)))}"
        )
        return ()
    usual = {
        "head_dim": text.number("head_dim"),
        "num_key_value_heads": text.number("num_key_value_heads"),
    }
    full = {
        "head_dim": text.number("global_head_dim", 512),
        "num_key_value_heads": text.number("num_global_key_value_heads", None)
        or usual["num_key_value_heads"],
    }
    special = text.take("per_layer_config", None)
    if special is not None:
        full = usual  # in this layout only the exceptions are written
    layers = [dict(usual if kind == "sliding_attention" else full) for kind in kinds]
    for key, changes in (special or {}).items():
        _change(text, layers, key, changes)
    return tuple(
        LayerConfig(sliding=kind == "sliding_attention", **shape)
        for kind, shape in zip(kinds, layers, strict=True)
    )


def _change(text: _Section, layers: list[dict[str, Any]], key: str, changes: Raw) -> None:
    """Apply one entry of `per_layer_config`. Keys are numbers, padded with zeros ("05") or not."""
    number = int(key) if str(key).isdecimal() else -1
    if not 0 <= number < len(layers):
        text.problems.append(f"text_config.per_layer_config['{key}'] names no layer")
        return
    for name, value in changes.items():
        if name in layers[number]:
            layers[number][name] = value
        elif (name, value) != ("skip", []):
            text.problems.append(
                f"text_config.per_layer_config['{key}'].{name} is a key that this version does "
                "not know"
            )


def _rope(text: _Section) -> dict[str, Any]:
    given = text.take("rope_parameters", None) or {}
    sliding = given.get("sliding_attention") or {}
    full = given.get("full_attention") or {}
    _rope_known(text, "sliding_attention", sliding, "default")
    _rope_known(text, "full_attention", full, "proportional")
    return {
        "rope_theta_sliding": float(sliding.get("rope_theta", 1e4)),
        "rope_theta_full": float(full.get("rope_theta", 1e6)),
        "partial_rotary_factor": float(
            full.get("partial_rotary_factor", 0.25 if not full else 1.0)
        ),
    }


def _rope_known(text: _Section, kind: str, given: Raw, rope_type: str) -> None:
    allowed = {"rope_type": (rope_type,), "factor": (1.0,)}
    if kind == "sliding_attention":
        allowed["partial_rotary_factor"] = (1.0,)
    for key, value in given.items():
        free = key == "rope_theta" or (key == "partial_rotary_factor" and key not in allowed)
        if not free and value not in allowed.get(key, ()):
            text.problems.append(
                f"text_config.rope_parameters.{kind}.{key} = {value!r} is not built"
            )


def _vision(vision: _Section) -> VisionConfig:
    kind = vision.raw.get("model_type", "gemma4_vision")
    if kind != "gemma4_vision":
        vision.problems.append(
            f"vision_config.model_type = '{kind}', only 'gemma4_vision' is built"
        )
    names = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    ]
    fields: dict[str, Any] = {name: vision.number(name) for name in names}
    usual = {
        "patch_size": 16,
        "pooling_kernel_size": 3,
        "position_embedding_size": 10240,
        "rms_norm_eps": 1e-6,
    }
    fields |= {name: vision.number(name, value) for name, value in usual.items()}
    fields["standardize"] = bool(vision.take("standardize", False))
    vision.take("max_position_embeddings", None)
    rope = dict(vision.take("rope_parameters", None) or {})
    theta = vision.take("rope_theta", None)
    fields["rope_theta"] = float(rope.pop("rope_theta", theta or 100.0))
    if rope.pop("rope_type", "axial") not in ("axial", "default") or rope:
        vision.problems.append("vision_config.rope_parameters: only axial rotation is built")
    return VisionConfig(**fields)


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of a network, in the layout that transformers writes."""
    sliding = next((layer for layer in config.layers if layer.sliding), config.layers[0])
    special = {
        str(n): {"head_dim": x.head_dim, "num_key_value_heads": x.num_key_value_heads}
        for n, x in enumerate(config.layers)
        if (x.head_dim, x.num_key_value_heads) != (sliding.head_dim, sliding.num_key_value_heads)
    }
    same = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "sliding_window",
        "num_experts",
        "top_k_experts",
        "moe_intermediate_size",
        "max_position_embeddings",
        "rms_norm_eps",
        "final_logit_softcapping",
    ]
    text = {name: getattr(config, name) for name in same}
    text |= {
        "model_type": "diffusion_gemma_text",
        "num_hidden_layers": len(config.layers),
        "layer_types": [
            "sliding_attention" if x.sliding else "full_attention" for x in config.layers
        ],
        "head_dim": sliding.head_dim,
        "num_key_value_heads": sliding.num_key_value_heads,
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
    return {
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "model_type": "diffusion_gemma",
        "dtype": config.dtype,
        "canvas_length": config.canvas_length,
        "image_token_id": config.image_token_id,
        "boi_token_id": config.boi_token_id,
        "eoi_token_id": config.eoi_token_id,
        "tie_word_embeddings": True,
        "text_config": text,
        "vision_config": None if config.vision is None else _vision_to_hf(config.vision),
    }


def _vision_to_hf(vision: VisionConfig) -> dict[str, Any]:
    names = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "patch_size",
        "pooling_kernel_size",
        "position_embedding_size",
        "rms_norm_eps",
        "standardize",
    ]
    return {name: getattr(vision, name) for name in names} | {
        "model_type": "gemma4_vision",
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_parameters": {"rope_type": "axial", "rope_theta": vision.rope_theta},
    }
