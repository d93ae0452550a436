"""config.json: both layouts, the released numbers, and every way to refuse."""

import copy
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import toys
from diffusiongemma.checkpoint.config import describe, from_hf, to_hf
from diffusiongemma.checkpoint.save import merged
from diffusiongemma.core.errors import ConfigError
from diffusiongemma.model.config import LayerConfig, ModelConfig
from diffusiongemma.model.model import DiffusionGemma

SLIDING, FULL = "sliding_attention", "full_attention"

RELEASED: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "released" / "config.json").read_text()
)


def changed(*path: Any, to: Any = ...) -> dict[str, Any]:
    """The released config with one value changed, or removed."""
    raw = copy.deepcopy(RELEASED)
    part = raw
    for key in path[:-1]:
        part = part[key]
    if to is ...:
        del part[path[-1]]
    else:
        part[path[-1]] = to
    return raw


def test_the_released_numbers() -> None:
    config = from_hf(RELEASED)
    assert len(config.layers) == 30
    full = LayerConfig(sliding=False, head_dim=512, num_key_value_heads=2)
    sliding = LayerConfig(sliding=True, head_dim=256, num_key_value_heads=8)
    assert [n for n, layer in enumerate(config.layers) if layer == full] == [5, 11, 17, 23, 29]
    assert sum(layer == sliding for layer in config.layers) == 25
    assert (config.hidden_size, config.intermediate_size, config.vocab_size) == (2816, 2112, 262144)
    assert (config.num_experts, config.top_k_experts, config.moe_intermediate_size) == (128, 8, 704)
    assert (config.sliding_window, config.max_position_embeddings) == (1024, 262144)
    assert (config.canvas_length, config.final_logit_softcapping) == (256, 30.0)
    assert (config.rope_theta_sliding, config.rope_theta_full) == (1e4, 1e6)
    assert (config.partial_rotary_factor, config.rms_norm_eps) == (0.25, 1e-6)
    assert (config.image_token_id, config.boi_token_id, config.eoi_token_id) == (
        258880,
        255999,
        258882,
    )
    assert config.image_spans_see_themselves and config.dtype == "bfloat16"
    vision = config.vision
    assert vision is not None and vision.standardize and vision.rope_theta == 100.0
    assert (vision.hidden_size, vision.num_hidden_layers, vision.head_dim) == (1152, 27, 72)
    assert (vision.patch_size, vision.pooling_kernel_size) == (16, 3)


def test_the_released_network_has_as_many_weights_as_published() -> None:
    with torch.device("meta"):
        model = DiffusionGemma(from_hf(RELEASED))
    sizes = {name: value.numel() for name, value in model.named_parameters()}
    vision = sum(n for name, n in sizes.items() if name.startswith("vision."))
    assert sum(sizes.values()) - vision == 25_250_986_752
    assert 0.565e9 < vision < 0.575e9
    assert len(model.state_dict()) == 1047  # the tensors of the published index


def test_transformers_reads_the_released_layout_alike() -> None:
    from transformers import DiffusionGemmaConfig

    theirs = DiffusionGemmaConfig.from_dict(copy.deepcopy(RELEASED))
    raw = json.loads(theirs.to_json_string(use_diff=False))
    known = from_hf({k: v for k, v in raw.items() if k not in ("audio_config",)})
    assert known == from_hf(RELEASED)


@pytest.mark.parametrize("toy", toys.TWENTY, ids=lambda toy: f"toy{toy.seed}")
def test_both_layouts_agree_and_go_there_and_back(toy: toys.Toy) -> None:
    from transformers import DiffusionGemmaConfig

    theirs = toys.hf_config(toy)
    new = json.loads(theirs.to_json_string(use_diff=True))
    config = from_hf(new)
    old = copy.deepcopy(new)
    del old["text_config"]["per_layer_config"]
    old["text_config"] |= {
        "global_head_dim": toy.full_head_dim,
        "num_global_key_value_heads": toy.full_kv,
    }
    assert from_hf(old) == config
    assert from_hf(to_hf(config)) == config
    assert from_hf(json.loads(json.dumps(to_hf(config)))) == config
    back = DiffusionGemmaConfig.from_dict(to_hf(config)).to_dict()
    assert from_hf(json.loads(json.dumps(back))) == dataclasses.replace(config, dtype="bfloat16")
    if "s" in toy.layers:  # else the usual layer, of which there is none, may be any
        assert _plain(back) == _plain(theirs.to_dict())


def _plain(raw: dict[str, Any]) -> dict[str, Any]:
    """What describes the network, keys as JSON writes them."""
    apart = ["transformers_version", "dtype", "architectures", "_name_or_path"]
    apart.append("final_logit_softcapping")  # written by us, a constant of the class there
    text = json.dumps({key: value for key, value in raw.items() if key not in apart})
    loaded = json.loads(text)
    for part in (loaded["text_config"], loaded["vision_config"]):
        for key in apart:
            part.pop(key, None)
    return loaded


def test_defaults_are_those_of_transformers() -> None:
    text = copy.deepcopy(RELEASED["text_config"])
    for key in ("layer_types", "rope_parameters", "rms_norm_eps", "final_logit_softcapping"):
        del text[key]
    assert from_hf(RELEASED | {"text_config": text}) == from_hf(RELEASED)
    for key in ("canvas_length", "image_token_id", "boi_token_id", "eoi_token_id", "dtype"):
        assert from_hf(changed(key)) == from_hf(RELEASED)
    bare = changed("text_config", "global_head_dim")
    assert from_hf(bare) == from_hf(RELEASED)
    shared = from_hf(changed("text_config", "num_global_key_value_heads"))
    assert shared.layers[5] == LayerConfig(sliding=False, head_dim=512, num_key_value_heads=8)
    whole = from_hf(changed("text_config", "rope_parameters", FULL, "partial_rotary_factor"))
    assert whole.partial_rotary_factor == 1.0
    assert from_hf(changed("vision_config", to=None)).vision is None
    assert from_hf(changed("image_token_id", to=None)).image_token_id is None
    for key in ("torch_dtype", "dtype"):
        older = changed("dtype") | {key: "torch.float32"}
        assert from_hf(older).dtype == "float32"


def test_layers_may_be_padded_with_zeros() -> None:
    raw = changed("text_config", "global_head_dim")
    shape = {"head_dim": 512, "num_key_value_heads": 2}
    raw["text_config"]["per_layer_config"] = {f"{n:02d}": shape for n in range(5, 30, 6)}
    assert from_hf(raw) == from_hf(RELEASED)


TEXT, VISION = "text_config", "vision_config"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["model_type"], "gemma4", "has model_type 'gemma4'; this package opens 'diffusion_gemma'"),
        (["model_type"], ["a"], r"has model_type \['a'\]; this package opens"),
        ([TEXT], None, "has no section text_config"),
        ([TEXT], ..., "has no section text_config"),
        ([VISION], "none", "vision_config must be an object, got 'none'"),
        ([TEXT, "vocab_size"], ..., "text_config.vocab_size is missing"),
        ([TEXT, "hidden_size"], "2816", "hidden_size must be a whole number .* got '2816'"),
        ([TEXT, "hidden_size"], 2816.0, "hidden_size must be a whole number .* got 2816.0"),
        ([TEXT, "hidden_size"], True, "hidden_size must be a whole number .* got True"),
        ([TEXT, "hidden_size"], -1, "hidden_size must be a whole number from 1 .* got -1"),
        ([TEXT, "hidden_size"], 10**30, "hidden_size must be a whole number from 1 to 1000000"),
        ([TEXT, "hidden_size"], None, "hidden_size must be a whole number .* got None"),
        ([TEXT, "rms_norm_eps"], float("nan"), "rms_norm_eps must be a number above 0, got nan"),
        ([TEXT, "rms_norm_eps"], 0, "rms_norm_eps must be a number above 0, got 0"),
        ([TEXT, "final_logit_softcapping"], None, "softcapping must be a number above 0, got None"),
        ([TEXT, "num_hidden_layers"], 10**9, "num_hidden_layers must be a whole number from 1"),
        ([TEXT, "num_hidden_layers"], 31, "layer_types must be 31 entries of .* one a layer, got"),
        ([TEXT, "layer_types"], [FULL], "layer_types must be 30 entries"),
        ([TEXT, "layer_types"], FULL, "layer_types must be 30 entries"),
        ([TEXT, "layer_types"], [[]] * 30, "layer_types must be 30 entries"),
        ([TEXT, "layer_types"], ["linear"] * 30, "layer_types must be 30 entries"),
        ([TEXT, "layer_types"], [SLIDING] * 30, "layer_types must end in full_attention"),
        ([TEXT, "num_key_value_heads"], 5, "16 is no multiple of num_key_value_heads = 5 of layer"),
        ([TEXT, "head_dim"], 255, "head_dim = 255 of layer 0 is no multiple of 2"),
        ([TEXT, "top_k_experts"], 129, "top_k_experts = 129 does not fit"),
        ([TEXT, "sliding_window"], 1, "sliding_window = 1 does not fit"),
        ([TEXT, "use_bidirectional_attention"], "all", "'all', only None or 'vision' is built"),
        ([TEXT, "model_type"], "gemma4_text", "model_type = 'gemma4_text', only 'diffusion_gemma"),
        ([TEXT, "attention_k_eq_v"], False, "attention_k_eq_v = False, only True is built"),
        ([TEXT, "enable_moe_block"], False, "enable_moe_block = False, only True is built"),
        ([TEXT, "hidden_activation"], "silu", "'silu', only 'gelu_pytorch_tanh' is built"),
        ([TEXT, "num_kv_shared_layers"], 4, "num_kv_shared_layers = 4, only 0 or None is built"),
        ([TEXT, "rope_scaling"], {"rope_type": "yarn", "factor": 4.0}, "yarn.*only None is built"),
        ([TEXT, "pruned_heads"], {"0": [1]}, "pruned_heads = {'0': .* only {} or None is built"),
        ([TEXT, "attention_bias"], True, "attention_bias = True, only False or None is built"),
        ([TEXT, "tie_word_embeddings"], False, "text_config.tie_word_embeddings = False, only T"),
        ([TEXT, "rope_parameters"], [], r"rope_parameters must be an object, got \[\]"),
        ([TEXT, "rope_parameters"], {"rope_theta": 1.0}, "must hold sliding_attention and full"),
        ([TEXT, "rope_parameters", FULL], 3, "rope_parameters.full_attention must be an object"),
        ([TEXT, "rope_parameters", FULL, "rope_type"], "yarn", "'yarn', only 'proportional' is"),
        ([TEXT, "rope_parameters", FULL, "rope_theta"], ..., "attention.rope_theta is missing"),
        ([TEXT, "rope_parameters", FULL, "factor"], 8.0, "factor = 8.0, only 1.0 is built"),
        ([TEXT, "rope_parameters", FULL, "partial_rotary_factor"], 2, "0 and at most 1, got 2"),
        ([TEXT, "per_layer_config"], [1], "per_layer_config must be an object"),
        ([TEXT, "per_layer_config"], {"30": {}}, "per_layer_config.30 names no layer"),
        ([TEXT, "per_layer_config"], {"-1": {}}, "per_layer_config.-1 names no layer"),
        ([TEXT, "per_layer_config"], {"9" * 5000: {}}, "names no layer"),
        ([TEXT, "per_layer_config"], {"5": {}, "05": {}}, "05 names no layer, or one that another"),
        ([TEXT, "per_layer_config"], {"5": 3}, "per_layer_config.5 must be an object, got 3"),
        ([TEXT, "per_layer_config"], {"5": {"skip": ["mlp"]}}, "5.skip = .* is built"),
        ([TEXT, "per_layer_config"], {"5": {"head_dim": 0}}, "5.head_dim must be a whole number"),
        ([VISION, "model_type"], "siglip", "model_type = 'siglip', only 'gemma4_vision' is built"),
        ([VISION, "head_dim"], 70, "vision_config.head_dim = 70 is no multiple of 4"),
        ([VISION, "num_key_value_heads"], 7, "16 is no multiple of num_key_value_heads = 7"),
        ([VISION, "standardize"], "yes", "standardize = 'yes', only False or True is built"),
        ([VISION, "use_clipped_linears"], True, "use_clipped_linears = True, only False is built"),
        ([VISION, "rope_parameters"], {"rope_type": "yarn"}, "'yarn', only 'axial' or 'default'"),
        (["canvas_length"], 0, "canvas_length must be a whole number from 1"),
        (["canvas_length"], 2**31 - 1, "canvas_length must be a whole number from 1 to 16384, got"),
        ([TEXT, "max_position_embeddings"], 255, "canvas_length = 256 does not fit"),
        ([TEXT, "max_position_embeddings"], 2**31, "max_position_embeddings must be a whole numb"),
        (["image_token_id"], "x", "image_token_id must be a whole number from 0"),
        (["tie_word_embeddings"], False, "tie_word_embeddings = False, only True is built"),
        (["audio_config"], {}, "audio_config = {}, only None is built"),
        (["quantization_config"], {}, "has quant_method = None; only FP8-dynamic as compr"),
        (["dtype"], "float64", "dtype = 'float64', only bfloat16 or float32 or float16 is built"),
        (["dtype"], ["x"], r"dtype = \['x'\], only bfloat16"),
    ],
)  # fmt: skip
def test_refuses(path: list[str], value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        from_hf(changed(*path, to=value))
    said = str(caught.value)
    assert "\n" not in said and len(said) < 800
    assert (
        "Compare it with" in said
        or "check config.json" in said
        or "this package" in said
        or ("is it the file" in said)
    )  # what to do


def test_everything_wrong_is_in_one_error() -> None:
    raw = changed("text_config", "vocab_size", to="many")
    raw["text_config"]["rope_parameters"][FULL]["rope_type"] = "yarn"
    raw["vision_config"] |= {"head_dim": 7, "colour": 1, "use_clipped_linears": True}
    del raw["text_config"]["num_experts"]
    raw["quantization_config"] = {"a": "b" * 1000}
    with pytest.raises(ConfigError) as caught:
        from_hf(raw)
    wrong = ("vocab_size", "yarn", "head_dim", "clipped", "num_experts", "quantization_config")
    for part in wrong:
        assert part in str(caught.value)
    assert "colour" not in str(caught.value)  # it is only unknown
    assert str(caught.value).count(";") == 5 + 1  # between six problems, and one inside the last


UNKNOWN = [
    (["auto_model"], 1, "auto_model"),
    (["unsloth_fixed"], True, "unsloth_fixed"),
    (["model_name"], "x/y", "model_name"),
    (["a\nkey"], {"deep": [1]}, "a\nkey"),
    ([TEXT, "layer_scale"], 1, "text_config.layer_scale"),
    ([TEXT, "rope_parameters", SLIDING, "beta_fast"], 1,
     f"text_config.rope_parameters.{SLIDING}.beta_fast"),
    ([TEXT, "rope_parameters", "original"], 5, "text_config.rope_parameters.original"),
    ([VISION, "colour"], "green", "vision_config.colour"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "name"), UNKNOWN, ids=[name for *_, name in UNKNOWN])
def test_what_nobody_knows_is_named_and_kept(path: list[str], value: Any, name: str) -> None:
    raw = changed(*path, to=value)
    found = describe(raw)
    assert found.unknown == (name,)
    assert found.config == from_hf(RELEASED)
    kept: Any = found.kept
    for key in path:
        kept = kept[key]
    assert kept == value


def test_what_nobody_knows_of_a_layer_is_kept_under_the_number_that_is_written() -> None:
    raw = to_hf(from_hf(RELEASED))
    special = raw[TEXT]["per_layer_config"]
    special["05"] = special.pop("5") | {"sink": 3}
    found = describe(raw)
    assert found.unknown == ("text_config.per_layer_config.05.sink",)
    assert found.config == from_hf(RELEASED)
    assert found.kept[TEXT]["per_layer_config"] == {"5": {"sink": 3}}


@pytest.mark.parametrize("section", [(), (TEXT,), (VISION,)])
def test_what_is_known_to_have_no_say_is_not_named(section: tuple[str, ...]) -> None:
    marks = {
        "auto_map": {"AutoModel": "there.py"},
        "generation_config": {"do_sample": True},
        "torchscript": False,
        "pruned_heads": {},
        "use_cache": False,
        "transformers_version": "9",
        "_name_or_path": "/home/somebody",
    }
    if section != (VISION,):
        marks |= {"sliding_window_pattern": 6}
    raw = copy.deepcopy(RELEASED)
    part = raw[section[0]] if section else raw
    part |= marks
    found = describe(raw)
    assert found.unknown == () and found.config == from_hf(RELEASED)
    kept = found.kept[section[0]] if section else found.kept
    assert marks.items() <= kept.items()


def test_the_released_file_has_nothing_that_is_not_known() -> None:
    found = describe(RELEASED)
    assert found.unknown == ()
    assert found.kept["eos_token_id"] == [1, 106, 50]
    assert found.kept[VISION]["global_head_dim"] == 72
    assert not {"hidden_size", "dtype"} & found.kept[TEXT].keys()  # the network says those


def test_a_pattern_of_layers_must_agree_with_what_is_built() -> None:
    raw = changed(TEXT, "layer_types")
    for pattern in (6, None):
        raw[TEXT]["sliding_window_pattern"] = pattern
        assert from_hf(raw) == from_hf(RELEASED)
    raw[TEXT]["sliding_window_pattern"] = 3
    with pytest.raises(ConfigError, match="sliding_window_pattern = 3, only 6 or None is built"):
        from_hf(raw)
    raw[TEXT]["layer_types"] = RELEASED[TEXT]["layer_types"]  # these say it more exactly
    assert from_hf(raw) == from_hf(RELEASED)


def test_a_network_without_words_for_it_is_not_written() -> None:
    config = from_hf(RELEASED)
    odd = dataclasses.replace(config, layers=config.layers[:3])
    with pytest.raises(ConfigError, match="must end in full_attention"):
        to_hf(odd)
    uneven = (*config.layers[:5], dataclasses.replace(config.layers[5], head_dim=128))
    assert from_hf(to_hf(dataclasses.replace(config, layers=uneven))).layers == uneven


def _paths(part: Any, path: tuple = ()) -> list[tuple]:
    found = [path] if path else []
    if isinstance(part, dict):
        for key, value in part.items():
            found += _paths(value, (*path, key))
    return found


NEW = to_hf(from_hf(RELEASED))
PLACES = [(RELEASED, path) for path in _paths(RELEASED)] + [(NEW, path) for path in _paths(NEW)]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.integers(-3, 70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["", "5", "05", "sliding_attention", "full_attention", "vision", "float32"])
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["0", "05", "5", "head_dim", "skip", "rope_theta", FULL, SLIDING, "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=6,
)


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(PLACES), JUNK), min_size=1, max_size=3), st.booleans())
def test_junk_anywhere_is_read_or_refused(changes: list, drop: bool) -> None:
    raw = copy.deepcopy(changes[0][0][0])
    for (_, path), junk in changes:
        part: Any = raw
        for key in path[:-1]:
            part = part.get(key) if isinstance(part, dict) else None
        if isinstance(part, dict):
            if drop:
                part.pop(path[-1], None)
            else:
                part[path[-1]] = junk
    start = time.process_time()
    try:
        found = describe(raw)
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(found.config, ModelConfig)
        assert from_hf(to_hf(found.config)) == found.config
        copied = describe(merged(to_hf(found.config), found.kept))
        assert copied.config == found.config
        assert len(copied.unknown) == len(found.unknown)  # "05" of a layer has become "5"
    assert time.process_time() - start < 2


def test_the_folder_of_transformers_is_read(written: Path) -> None:
    raw = json.loads((written / "config.json").read_text())
    assert "per_layer_config" in raw["text_config"]
    config = from_hf(raw)
    assert [layer.sliding for layer in config.layers] == [True, True, False, True, False]
    assert config.layers[2] == LayerConfig(sliding=False, head_dim=32, num_key_value_heads=1)
