"""Every field of a configuration that changes a number is followed, or refused by its name."""

from dataclasses import replace
from inspect import signature

import pytest
import transformers

from gla_jax.convert import convert_state, fields
from gla_jax.convert.configs import stated_pixels
from gla_jax.support.errors import ConversionError
from tests.convert import published
from tests.convert.published import saved

REFUSED, SAME = "refused", {}
# {field: (another value, what it does to the spec)}
LAYERS = {
    "hidden_size": (64, REFUSED),
    "num_hidden_layers": (5, REFUSED),
    "num_attention_heads": (1, {"num_heads": 1}),
    "layer_norm_eps": (1e-3, {"layer_norm_eps": 1e-3}),
    "initializer_range": (0.5, SAME),
}
VISION = LAYERS | {"image_size": (48, REFUSED), "patch_size": ([8, 4], REFUSED), "num_channels": (1, REFUSED)}
CLIP_TOWER = {
    "intermediate_size": (64, REFUSED),
    "hidden_act": ("gelu", {"activation": "gelu"}),
    **dict.fromkeys(("attention_dropout", "initializer_factor"), (0.5, SAME)),
    "projection_dim": (3, SAME),  # of both towers: CLIPConfig's counts
}
FEATURES = VISION | {
    "hidden_act": ("gelu_new", REFUSED),
    "qkv_bias": (False, REFUSED),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), (0.5, SAME)),
}
DINOV2 = FEATURES | {
    "mlp_ratio": (2, REFUSED),
    "use_swiglu_ffn": (True, REFUSED),
    **dict.fromkeys(("layerscale_value", "drop_path_rate"), (0.5, SAME)),
    **dict.fromkeys(("apply_layernorm", "reshape_hidden_states"), (False, SAME)),
    **dict.fromkeys(("_out_features", "_out_indices"), (None, SAME)),
}
FIELDS = {
    "CLIPConfig": {
        "projection_dim": (32, REFUSED),
        **dict.fromkeys(("logit_scale_init_value", "initializer_factor"), (0.5, SAME)),
        "vision_config": ({}, REFUSED),  # leaves all to the defaults, which are B/32's
        "text_config": ({}, REFUSED),
    },
    "CLIPVisionConfig": VISION | CLIP_TOWER,
    "CLIPTextConfig": LAYERS
    | CLIP_TOWER
    | {
        "hidden_size": (80, REFUSED),
        "vocab_size": (9, REFUSED),
        "max_position_embeddings": (12, REFUSED),
        "eos_token_id": (5, {"end_token": 5}),
        **dict.fromkeys(("bos_token_id", "pad_token_id"), (3, SAME)),
    },
    "ViTConfig": FEATURES
    | {
        "intermediate_size": (64, REFUSED),
        "encoder_stride": (8, SAME),
        "pooler_output_size": (8, SAME),
        "pooler_act": ("relu", SAME),
    },
    "Dinov2Config": DINOV2 | {"use_mask_token": (False, SAME)},
    "Dinov2WithRegistersConfig": DINOV2 | {"num_register_tokens": (2, REFUSED)},
    "Tipsv2Config": {
        "temperature_init_value": (0.5, SAME),
        "vision_config": ({}, REFUSED),
        "text_config": ({}, REFUSED),
    },
    "Tipsv2VisionConfig": DINOV2 | {"num_register_tokens": (2, REFUSED)},
    "Tipsv2TextConfig": LAYERS
    | {
        "intermediate_size": (64, REFUSED),
        "hidden_act": ("gelu", REFUSED),
        "vocab_size": (9, REFUSED),
        "max_position_embeddings": (12, {"context": 12}),
        "pad_token_id": (3, REFUSED),
        "scale_sqrt_depth": (False, REFUSED),
        "pooling_epsilon": (0.5, REFUSED),
        **dict.fromkeys(("bos_token_id", "eos_token_id"), (3, SAME)),
        "attention_dropout": (0.5, SAME),
    },
    "DINOv3ViTConfig": VISION
    | {
        "image_size": (48, {"image_size": 48}),
        "intermediate_size": (64, REFUSED),
        "hidden_act": ("silu", REFUSED),
        "num_register_tokens": (4, REFUSED),
        "rope_theta": (10.0, {"rope_theta": 10.0}),
        **dict.fromkeys(("query_bias", "value_bias", "proj_bias", "mlp_bias"), (False, REFUSED)),
        **dict.fromkeys(("key_bias", "use_gated_mlp"), (True, REFUSED)),
        **dict.fromkeys(("attention_dropout", "layerscale_value", "drop_path_rate"), (0.5, SAME)),
        **dict.fromkeys(("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"), (1.5, SAME)),
        **dict.fromkeys(("apply_layernorm", "reshape_hidden_states"), (False, SAME)),
        **dict.fromkeys(("_out_features", "_out_indices"), (None, SAME)),
    },
}
FIELDS |= {f"MetaClip2{kind.removeprefix('CLIP')}": fields for kind, fields in FIELDS.items() if "CLIP" in kind}
SIGLIP_TOWER = {name: case for name, case in LAYERS.items() if name != "initializer_range"} | {
    "intermediate_size": (64, REFUSED),
    "hidden_act": ("gelu", {"activation": "gelu"}),
    "attention_dropout": (0.5, SAME),
}
FIELDS |= {
    "SiglipConfig": {
        "initializer_factor": (0.5, SAME),
        "vision_config": ({}, REFUSED),
        "text_config": ({}, REFUSED),
    },
    "SiglipVisionConfig": SIGLIP_TOWER
    | {name: VISION[name] for name in ("image_size", "patch_size", "num_channels")}
    | {"vision_use_head": (False, REFUSED)},
    "SiglipTextConfig": SIGLIP_TOWER
    | {
        "hidden_size": (80, REFUSED),
        "vocab_size": (9, REFUSED),
        "max_position_embeddings": (12, REFUSED),
        "projection_size": (12, REFUSED),
        # The tokenizer's own count: the released configurations have CLIP's ids or none.
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), (3, SAME)),
    },
}
FAMILY = {
    "ViTConfig": "dino",
    "Dinov2Config": "dinov2",
    "Dinov2WithRegistersConfig": "dinov2",
    "DINOv3ViTConfig": "dinov3",
    **dict.fromkeys(("Tipsv2Config", "Tipsv2VisionConfig", "Tipsv2TextConfig"), "tipsv2"),
}


def own_fields(kind: str) -> dict[str, object]:
    common = signature(transformers.PreTrainedConfig).parameters
    own = signature(getattr(transformers, kind)).parameters
    return {name: field.default for name, field in own.items() if name not in common}


@pytest.mark.parametrize("kind", FIELDS)
def test_every_field_of_the_class_stands_in_the_tables(kind):
    """A field of tomorrow's transformers may change a number too."""
    assert own_fields(kind).keys() == FIELDS[kind].keys()
    assert own_fields(kind).keys() <= fields.TRANSFORMERS[getattr(transformers, kind).model_type].keys()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The tensors and the configuration of a small model of each class."""
    made = {"CLIPConfig": published.clip_model(), "ViTConfig": published.dino_model()}
    made |= {"MetaClip2Config": published.metaclip2_model(), "SiglipConfig": published.siglip_model()}
    made |= {"Dinov2Config": published.dinov2_model(), "Dinov2WithRegistersConfig": published.dinov2_model(4)}
    made |= {"DINOv3ViTConfig": published.dinov3_model(), "Tipsv2Config": published.tips_model()}
    return {kind: saved(model, tmp_path_factory.mktemp(kind)) for kind, model in made.items()}


@pytest.mark.parametrize(
    ("kind", "field", "value", "effect"),
    [(kind, field, *case) for kind, cases in FIELDS.items() for field, case in cases.items()],
    ids=str,
)
def test_a_field_is_followed_or_refused(kind, field, value, effect, models):
    part = next((part for name, part in {"Vision": "image", "Text": "text"}.items() if name in kind), None)
    state, config = models[kind if part is None else kind.replace("Vision", "").replace("Text", "")]
    family = FAMILY.get(kind, "siglip" if kind.startswith("Siglip") else "clip")
    before = convert_state(family, state, config).spec
    if part is None:
        config = {**config, field: value}
    else:
        name = f"{'vision' if part == 'image' else 'text'}_config"
        config = {**config, name: {**config[name], field: value}}
    if effect == REFUSED:
        named = {"hidden_act": "activation", "vision_config": "heads|hidden_size"}
        named["text_config"] = "end-of-text token|heads|hidden_size"
        with pytest.raises(ConversionError, match=named.get(field, field)):
            convert_state(family, state, config)
        return
    after = convert_state(family, state, config).spec
    if part is None:
        assert after == replace(before, **effect)
    else:
        assert after == replace(before, **{part: replace(getattr(before, part), **effect)})


def test_a_field_that_no_table_has_is_refused_unless_it_is_the_default(models, monkeypatch):
    """As a class of a later transformers may have it."""
    state, config = models["ViTConfig"]
    table = {name: rule for name, rule in fields.TRANSFORMERS["vit"].items() if name != "encoder_stride"}
    monkeypatch.setitem(fields.TRANSFORMERS, "vit", table)
    convert_state("dino", state, config)
    with pytest.raises(ConversionError, match="asks for encoder_stride = 8, which the towers do not have"):
        convert_state("dino", state, {**config, "encoder_stride": 8})


@pytest.mark.parametrize("field", ["num_hidden_layers", "num_labels"])
def test_counts_that_transformers_would_list_without_end(field, models):
    """Twelve million layers took minutes, as many labels gigabytes."""
    state, config = models["Dinov2Config"]
    with pytest.raises(ConversionError, match=f"has {field} = 12000000, more than any model"):
        convert_state("dinov2", state, {**config, field: 12_000_000})


def test_what_transformers_itself_overrides_is_followed(models):
    """Early configurations repeat a tower as vision_config_dict, which goes first there."""
    state, config = models["CLIPConfig"]
    tower = {**config["vision_config"], "hidden_act": "gelu"}
    spec = convert_state("clip", state, {**config, "vision_config_dict": tower}).spec
    assert (spec.image.activation, spec.text.activation) == ("gelu", "quick_gelu")


@pytest.mark.parametrize("field", [{"do_rescale": False}, {"rescale_factor": 0.5}, {"rescale_factor": "x"}], ids=str)
def test_pixels_that_are_rescaled_otherwise_are_refused(field):
    same = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_rescale": True, "rescale_factor": 0.00392156862745098}
    assert stated_pixels(same).mean == (0.5, 0.5, 0.5)
    with pytest.raises(ConversionError, match="rescale_factor"):
        stated_pixels(same | field)


@pytest.mark.parametrize("name", ["x" * 300, ["clip"], None])
def test_the_name_of_a_tower_inside_its_model_does_not_matter(name, models):
    """transformers knows the class by its place; a damaged name there ended in a traceback."""
    state, config = models["CLIPConfig"]
    tower = {**config["vision_config"], "model_type": name}
    spec = convert_state("clip", state, {**config, "vision_config": tower}).spec
    assert spec == convert_state("clip", state, config).spec
