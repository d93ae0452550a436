"""The numbers of the architecture, frozen.

This file knows what a DiffusionGemma is made of. It does not know how Hugging Face spells it:
`checkpoint.config` reads and writes that.
"""

from dataclasses import dataclass

from diffusiongemma.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerConfig:
    """One layer's attention.

    Attributes:
        sliding: True sees a window, False the whole context (and has no value weights: V = K).
        head_dim: H, channels of a head.
        num_key_value_heads: K.
    """

    sliding: bool
    head_dim: int
    num_key_value_heads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """The vision tower: patches in, soft tokens out."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    patch_size: int = 16
    pooling_kernel_size: int = 3
    position_embedding_size: int = 10240
    rms_norm_eps: float = 1e-6
    rope_theta: float = 100.0
    standardize: bool = False

    def __post_init__(self) -> None:
        _need(self.num_attention_heads % self.num_key_value_heads == 0, self, "num_attention_heads")
        _need(self.head_dim % 4 == 0, self, "head_dim")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The whole network.

    Attributes:
        layers: one entry a layer, first to last.
        sliding_window: W; a sliding query sees itself and W - 1 tokens before it.
        num_experts: E, of which `top_k_experts` serve a token, beside the dense branch.
        final_logit_softcapping: logits lie between plus and minus this.
        partial_rotary_factor: share of a full layer's channel pairs that turn with position.
        image_spans_see_themselves: soft tokens of one image attend to each other both ways.
        image_token_id: placeholder that a soft token replaces; None without images.
        dtype: of what is stored and computed, by name.
        fp8: some linear layers are stored in e4m3; see `quant`.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: tuple[LayerConfig, ...]
    num_attention_heads: int
    sliding_window: int
    num_experts: int
    top_k_experts: int
    moe_intermediate_size: int
    max_position_embeddings: int
    canvas_length: int = 256
    rms_norm_eps: float = 1e-6
    final_logit_softcapping: float = 30.0
    rope_theta_sliding: float = 1e4
    rope_theta_full: float = 1e6
    partial_rotary_factor: float = 0.25
    image_spans_see_themselves: bool = True
    image_token_id: int | None = None
    boi_token_id: int | None = None
    eoi_token_id: int | None = None
    vision: VisionConfig | None = None
    dtype: str = "bfloat16"
    fp8: bool = False

    def __post_init__(self) -> None:
        _need(self.sliding_window >= 2, self, "sliding_window")
        _need(1 <= self.top_k_experts <= self.num_experts, self, "top_k_experts")
        _need(1 <= self.canvas_length <= self.max_position_embeddings, self, "canvas_length")
        _need(len(self.layers) > 0, self, "layers")
        for layer in self.layers:
            _need(self.num_attention_heads % layer.num_key_value_heads == 0, self, "layers")
            _need(layer.head_dim % 2 == 0, self, "layers")


def _need(holds: bool, config: object, field: str) -> None:
    if not holds:
        raise ConfigError(
            f"{type(config).__name__}.{field} = {getattr(config, field)!r} does not fit the other "
            "numbers of this architecture; check config.json"
        )
