"""What the tensors of a checkpoint are called, there and here. The only file that knows.

A name is translated piece by piece; a test holds that the translation is one to one over a whole
network.
"""

import re

# There, here. Tried in order; the first whose left side matches the whole name wins. `#` is a
# layer number.
_TABLE = [
    ("model.decoder.embed_tokens.weight", "embedding.weight"),
    ("model.decoder.norm.weight", "norm.weight"),
    ("model.decoder.self_conditioning.pre_norm.weight", "self_conditioning.norm.weight"),
    *(
        (
            f"model.decoder.self_conditioning.{part}_proj.weight",
            f"self_conditioning.feed_forward.{part}.weight",
        )
        for part in ("gate", "up", "down")
    ),
    ("model.decoder.layers.#.layer_scalar", "blocks.#.denoise_scalar"),
    ("model.encoder.language_model.layers.#.layer_scalar", "blocks.#.encode_scalar"),
    *(
        (
            f"model.decoder.layers.#.self_attn.{part}_proj.weight",
            f"blocks.#.attention.{part}.weight",
        )
        for part in "qkvo"
    ),
    *(
        (
            f"model.decoder.layers.#.self_attn.{part}_norm.weight",
            f"blocks.#.attention.{part}_norm.weight",
        )
        for part in "qk"
    ),
    *(
        (f"model.decoder.layers.#.mlp.{part}_proj.weight", f"blocks.#.dense.{part}.weight")
        for part in ("gate", "up", "down")
    ),
    ("model.decoder.layers.#.router.proj.weight", "blocks.#.router.weight"),
    ("model.decoder.layers.#.router.scale", "blocks.#.router.scale"),
    ("model.decoder.layers.#.router.per_expert_scale", "blocks.#.router.expert_scale"),
    ("model.decoder.layers.#.experts.gate_up_proj", "blocks.#.experts.gate_up"),
    ("model.decoder.layers.#.experts.down_proj", "blocks.#.experts.down"),
    *(
        (f"model.decoder.layers.#.{there}.weight", f"blocks.#.{here}.weight")
        for there, here in (
            ("input_layernorm", "before_attention"),
            ("post_attention_layernorm", "after_attention"),
            ("pre_feedforward_layernorm", "before_dense"),
            ("post_feedforward_layernorm_1", "after_dense"),
            ("pre_feedforward_layernorm_2", "before_experts"),
            ("post_feedforward_layernorm_2", "after_experts"),
            ("post_feedforward_layernorm", "after_branches"),
        )
    ),
    ("model.encoder.embed_vision.embedding_projection.weight", "vision.project.weight"),
    ("model.encoder.vision_tower.patch_embedder.input_proj.weight", "vision.patches.weight"),
    ("model.encoder.vision_tower.patch_embedder.position_embedding_table", "vision.positions"),
    ("model.encoder.vision_tower.std_bias", "vision.std_bias"),
    ("model.encoder.vision_tower.std_scale", "vision.std_scale"),
    *(
        (
            f"model.encoder.vision_tower.encoder.layers.#.self_attn.{part}_proj.linear.weight",
            f"vision.blocks.#.attention.{part}.weight",
        )
        for part in "qkvo"
    ),
    *(
        (
            f"model.encoder.vision_tower.encoder.layers.#.self_attn.{part}_norm.weight",
            f"vision.blocks.#.attention.{part}_norm.weight",
        )
        for part in "qk"
    ),
    *(
        (
            f"model.encoder.vision_tower.encoder.layers.#.mlp.{part}_proj.linear.weight",
            f"vision.blocks.#.dense.{part}.weight",
        )
        for part in ("gate", "up", "down")
    ),
    *(
        (
            f"model.encoder.vision_tower.encoder.layers.#.{there}.weight",
            f"vision.blocks.#.{here}.weight",
        )
        for there, here in (
            ("input_layernorm", "before_attention"),
            ("post_attention_layernorm", "after_attention"),
            ("pre_feedforward_layernorm", "before_dense"),
            ("post_feedforward_layernorm", "after_dense"),
        )
    ),
]
# What a quantised layer has beside its weight, and experts that are stored one by one: parts of the
# two tensors that we have.
_QUANTISED = [
    *(
        (f"model.decoder.layers.#.{there}_proj.weight_scale", f"blocks.#.{here}.scale")
        for there, here in (
            *((f"self_attn.{part}", f"attention.{part}") for part in "qkvo"),
            *((f"mlp.{part}", f"dense.{part}") for part in ("gate", "up", "down")),
        )
    ),
    *(
        (f"model.decoder.layers.#.experts.{part}_proj_scale", f"blocks.#.experts.{part}_scale")
        for part in ("gate_up", "down")
    ),
    *(
        (
            f"model.decoder.layers.#.experts.#.{part}_proj.{there}",
            f"blocks.#.experts.#.{part}{here}",
        )
        for part in ("gate", "up", "down")
        for there, here in (("weight", ""), ("weight_scale", "_scale"))
    ),
]
# Other names for the scales of experts that are stored as two tensors, which no library's own
# format has a name for.
_OTHERS = [
    (f"model.decoder.layers.#.experts.{part}_proj{there}", f"blocks.#.experts.{part}_scale")
    for part in ("gate_up", "down")
    for there in (".weight_scale", "_weight_scale")
]
_HERE = dict(_TABLE + _QUANTISED + _OTHERS)
_THERE = {here: there for there, here in _TABLE + _QUANTISED}
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")

# Copies that some writers store beside the one table of embeddings, and where that is. Loading
# checks that they are copies, and drops them.
TIED = dict.fromkeys(
    ["lm_head.weight", "model.encoder.language_model.embed_tokens.weight"],
    "model.decoder.embed_tokens.weight",
)
_ENCODER, _DECODER = "model.encoder.language_model.layers.", "model.decoder.layers."


def original(name: str) -> str | None:
    """Of which tensor a checkpoint's tensor is a copy; None if it is none.

    The encoder's layers are the decoder's but for their scalars. Compressed-tensors parts what is
    tied, so transformers stores them once more.
    """
    if name.startswith(_ENCODER) and not name.endswith(".layer_scalar"):
        return _DECODER + name.removeprefix(_ENCODER)
    return TIED.get(name)


def to_here(name: str) -> str | None:
    """Our name of a checkpoint's tensor; None if the architecture has no such tensor."""
    return _translate(name, _HERE)


def to_there(name: str) -> str:
    """The checkpoint's name of one of our tensors.

    Raises:
        KeyError: we have a tensor that the table forgot, which is our mistake.
    """
    there = _translate(name, _THERE)
    if there is None:
        raise KeyError(name)
    return there


def _translate(name: str, table: dict[str, str]) -> str | None:
    pattern = table.get(_NUMBER.sub("#", name))
    if pattern is None:
        return None
    numbers = iter(_NUMBER.findall(name))
    return re.sub("#", lambda _: next(numbers), pattern)
