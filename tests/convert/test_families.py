"""One model under every name it is published under gives the same parameters."""

from collections.abc import Mapping
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
import transformers

from gla_jax.checkpoints.model_folder import flatten_params
from gla_jax.convert import convert_clip_image, convert_state
from gla_jax.convert.configs import Pixels, stated_pixels
from gla_jax.convert.families import Converted
from gla_jax.images.windows import OPENAI_MEAN, OPENAI_STD
from gla_jax.support.errors import ConversionError
from tests.convert import published
from tests.convert.published import TEXT, as_numpy, hub_names, openai_names, saved

SIZES = {"image_size": 24, "patch_size": 8, "width": 32, "depth": 2, "num_heads": 4, "mlp_width": 48}
OPENAI = {"activation": "quick_gelu", "num_heads": 4, "text_heads": 5}


@pytest.fixture(scope="module")
def clip_saved(tmp_path_factory):
    return saved(published.clip_model(), tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def dino_saved(tmp_path_factory):
    return saved(published.dino_model(), tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="module", params=[(0, False), (4, False), (3, True)], ids=["plain", "registers", "swiglu"])
def dinov2_saved(request, tmp_path_factory):
    return saved(published.dinov2_model(*request.param), tmp_path_factory.mktemp("dinov2"))


def assert_same(found: Converted, expected: Converted) -> None:
    assert found.spec == expected.spec
    assert_equal_params(found.params, expected.params)


def assert_equal_params(found, expected) -> None:
    found, expected = flatten_params(found), flatten_params(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def prefixed(state: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {prefix + name: tensor for name, tensor in state.items()}


def of_custom_text(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """open_clip's CustomTextCLIP keeps the text tower under a name of its own."""
    root = ("visual.", "logit_scale")
    return {name if name.startswith(root) else f"text.{name}": tensor for name, tensor in state.items()}


def test_clip_sizes_come_from_shapes_and_configuration(clip_saved):
    spec = convert_state("clip", *clip_saved).spec
    image = {**SIZES, "embed_dim": 16, "activation": "quick_gelu", "layer_norm_eps": 1e-5}
    assert vars(spec.image) == {**image, "pixel_mean": OPENAI_MEAN, "pixel_std": OPENAI_STD}
    assert (spec.text.width, spec.text.depth, spec.text.num_heads, spec.text.mlp_width) == (40, 3, 5, 56)
    assert (spec.text.vocabulary, spec.text.context, spec.text.end_token, spec.text.embed_dim) == (7, 9, 6, 16)


@pytest.mark.parametrize(
    "rename",
    [
        lambda state: state,
        lambda state: prefixed(state, "module."),
        of_custom_text,
        lambda state: state | {"context_length": np.int64(9), "transformer.resblocks.1.attn_mask": np.zeros((9, 9))},
    ],
    ids=["openai", "training", "custom text", "archive"],
)
def test_clip_names_agree(rename, clip_saved):
    converted = convert_state("clip", rename(as_numpy(openai_names(clip_saved[0]))), **OPENAI)
    assert_same(converted, convert_state("clip", *clip_saved))


def test_older_names_of_hugging_face(clip_saved):
    state, config = clip_saved
    ids = {f"{tower}_model.embeddings.position_ids": np.arange(9)[None] for tower in ("text", "vision")}
    converted = convert_state("clip", state | ids, config)
    assert_same(converted, convert_state("clip", state, config))
    assert {name for name, record in converted.records.items() if "dropped" in record} == {*ids, "logit_scale"}


def test_the_image_tower_alone(clip_saved):
    state = {name: x for name, x in as_numpy(openai_names(clip_saved[0])).items() if name.startswith("visual.")}
    spec, params, records, _ = convert_clip_image(state, activation="quick_gelu", num_heads=4)
    whole = convert_state("clip", *clip_saved)
    assert spec == whole.spec.image
    assert_equal_params(params, whole.params["image"])
    assert records.keys() == state.keys()
    with pytest.raises(ConversionError, match="no rule covers ln_final"):
        convert_clip_image(state | {"ln_final.weight": np.ones(40)}, activation="quick_gelu", num_heads=4)


def open_clip_config(**model) -> dict:
    vision = {"image_size": 24, "layers": 2, "width": 32, "patch_size": 8, "head_width": 8, "mlp_ratio": 1.5}
    text = {"context_length": 9, "vocab_size": 7, "width": 40, "heads": 5, "layers": 3}
    return {"model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, **model}}


@pytest.mark.parametrize(
    ("config", "activation"),
    [(open_clip_config(), "gelu"), (open_clip_config(quick_gelu=True), "quick_gelu")],
    ids=["gelu", "quick gelu"],
)
def test_open_clip_configurations(config, activation, clip_saved):
    state = as_numpy(openai_names(clip_saved[0]))
    spec = convert_state("clip", state, config).spec
    assert (spec.image.num_heads, spec.text.num_heads) == (4, 5)
    assert (spec.image.activation, spec.text.activation) == (activation, activation)
    assert convert_state("clip", state, config["model_cfg"]).spec == spec
    assert convert_state("clip", state, config, activation="gelu", num_heads=2).spec.image.num_heads == 2


HALF = Pixels((0.5, 0.5, 0.5), (0.5, 0.25, 0.5))
IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    "config",
    [
        {**open_clip_config(), "preprocess_cfg": {"mean": list(HALF.mean), "std": list(HALF.std)}},
        {"image_mean": list(HALF.mean), "image_std": list(HALF.std), "do_normalize": True},
        {"image_processor": {"image_mean": list(HALF.mean), "image_std": list(HALF.std)}},
    ],
    ids=["open_clip", "preprocessor", "processor"],
)
def test_pixels_are_normalised_as_the_files_say(config, clip_saved):
    assert stated_pixels(config) == HALF
    state = as_numpy(openai_names(clip_saved[0]))
    said = {} if "model_cfg" in config else {"pixels": stated_pixels(config)}
    spec = convert_state("clip", state, open_clip_config() | config, **said).spec
    assert (spec.image.pixel_mean, spec.image.pixel_std) == HALF


def test_pixels_of_files_that_say_nothing_or_that_they_are_not_normalised():
    assert stated_pixels(None) is stated_pixels({"image_processor": 3}) is stated_pixels(open_clip_config()) is None
    assert stated_pixels({"do_normalize": False, "image_mean": [1]}) == Pixels((0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize(
    "config",
    [
        {"image_mean": [0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
        {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0, 0.5]},
        {"image_mean": [0.5, 0.5, "x"], "image_std": [0.5, 0.5, 0.5]},
        {"image_mean": [0.5, 0.5, 0.5]},
        {"preprocess_cfg": {"mean": [float("nan")] * 3, "std": [1, 1, 1]}},
    ],
    ids=["two", "zero", "text", "no deviation", "nan"],
)
def test_pixels_that_are_no_numbers_are_said(config):
    with pytest.raises(ConversionError, match="not three numbers each"):
        stated_pixels(config)


@pytest.mark.parametrize("family", ["dino", "dinov2"])
def test_pixels_that_are_not_imagenets_are_refused_where_the_tower_has_no_others(family, tmp_path):
    state, config = saved(published.dino_model() if family == "dino" else published.dinov2_model(), tmp_path)
    convert_state(family, state, config, pixels=IMAGENET)
    with pytest.raises(ConversionError, match=r"mean \[0.5, 0.5, 0.5\].*ImageNet's alone"):
        convert_state(family, state, config, pixels=HALF)


@pytest.mark.parametrize(
    ("vision", "reason"),
    [
        ({"width": 32, "timm_model_name": "vit_base"}, "asks for vision_cfg.timm_model_name = 'vit_base'"),
        ("ViT-B-16", "does not describe two towers"),
        ({"width": 32, "head_width": 10}, "3 attention heads do not divide the width 32"),
        ({"width": 32, "head_width": 0}, "give --heads"),
    ],
)
def test_open_clip_configurations_that_do_not_fit(vision, reason, clip_saved):
    config = open_clip_config(vision_cfg=vision)
    with pytest.raises(ConversionError, match=reason):
        convert_state("clip", as_numpy(openai_names(clip_saved[0])), config)


@pytest.mark.parametrize(("stated", "end"), [(2, 6), (6, 6), (5, 5)], ids=["legacy", "last", "other"])
def test_the_end_token_of_early_configurations(stated, end, clip_saved):
    state, config = clip_saved
    config = {**config, "text_config": {**config["text_config"], "eos_token_id": stated}}
    assert convert_state("clip", state, config).spec.text.end_token == end


def test_an_end_token_outside_the_vocabulary(clip_saved):
    state, config = clip_saved
    config = {**config, "text_config": {**config["text_config"], "eos_token_id": 49407}}
    with pytest.raises(ConversionError, match="end-of-text token 49407 is not one of its 7 tokens"):
        convert_state("clip", state, config)


def test_dino_names_agree(dino_saved):
    state, config = dino_saved
    expected = convert_state("dino", state, config)
    own = {"qkv_bias": True, "layer_norm_eps": config["layer_norm_eps"]}
    own |= {"position_offset": 0.0, "position_resize": None}
    assert vars(expected.spec) == {**SIZES, **own}
    hub = as_numpy(hub_names(state))
    converted = convert_state("dino", hub, num_heads=4)
    assert converted.spec.layer_norm_eps == 1e-6
    assert converted.spec.position_offset == 0.1
    assert_equal_params(converted.params, expected.params)
    training = prefixed(hub, "module.backbone.") | {"module.head.mlp.0.weight": np.ones(3)}
    assert_same(convert_state("dino", training, num_heads=4), converted)
    loaded = {name: x.numpy() for name, x in published.dino_model().state_dict().items()}
    assert_same(convert_state("dino", loaded, config), expected)
    classifier = prefixed({name: x for name, x in state.items() if "pooler" not in name}, "vit.")
    assert_same(convert_state("dino", classifier | {"classifier.weight": np.ones((2, 32))}, config), expected)


def test_dino_without_qkv_bias(tmp_path):
    spec, params, *_ = convert_state("dino", *saved(published.dino_model(qkv_bias=False), tmp_path))
    assert not spec.qkv_bias
    assert "bias" not in params["blocks_0"]["attention"]["query"]


def test_dinov2_names_agree(dinov2_saved):
    state, config = dinov2_saved
    expected = convert_state("dinov2", state, config)
    assert expected.spec.registers == config.get("num_register_tokens", 0)
    assert expected.spec.activation == ("swiglu" if config["use_swiglu_ffn"] else "gelu")
    hub = as_numpy(hub_names(state))
    assert expected.spec.position_offset == 0.0
    # Only the code of the models without registers adds to the grid.
    own = replace(expected.spec, position_offset=0.0 if expected.spec.registers else 0.1)
    expected = expected._replace(spec=own)
    assert_same(convert_state("dinov2", hub, num_heads=4), expected)
    chunked = {name.replace("blocks.1.", "blocks.0.1."): tensor for name, tensor in hub.items()}
    assert_same(convert_state("dinov2", chunked, num_heads=4), expected)
    training = prefixed(hub, "backbone.") | {"dino_head.mlp.0.weight": np.ones(3)}
    assert_same(convert_state("dinov2", training, num_heads=4), expected)


def meta_state(config: transformers.PreTrainedConfig, kind: type) -> dict[str, jax.ShapeDtypeStruct]:
    with torch.device("meta"):
        state = kind(config).state_dict()
    return {name: jax.ShapeDtypeStruct(tuple(x.shape), np.float32) for name, x in state.items()}


def hub_shapes(width: int, depth: int, patch: int, places: int) -> dict[str, jax.ShapeDtypeStruct]:
    """torch.hub's DINO by its sizes."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + places, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    linear |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for block in (f"blocks.{i}." for i in range(depth)):
        shapes |= {f"{block}{name}.weight": shape for name, shape in linear.items()}
        shapes |= {f"{block}{name}.bias": shape[:1] for name, shape in linear.items()}
        shapes |= {f"{block}norm{n}.{leaf}": (width,) for n in (1, 2) for leaf in ("weight", "bias")}
    shapes |= {f"norm.{leaf}": (width,) for leaf in ("weight", "bias")}
    return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}


def on_shapes(family: str, shapes: Mapping[str, jax.ShapeDtypeStruct], **options):
    """The spec a conversion arrives at when it is run on shapes alone."""
    specs = []

    def params(state):
        spec, params, *_ = convert_state(family, state, **options)
        specs.append(spec)
        return params

    jax.eval_shape(params, shapes)
    return specs[0]


CLIP_SIZES = {
    "B/32": (224, 32, 768, 12, 3072, 12, 512, 512, 8),
    "L/14-336": (336, 14, 1024, 24, 4096, 16, 768, 768, 12),
    "H/14": (224, 14, 1280, 32, 5120, 16, 1024, 1024, 16),
    "bigG/14": (224, 14, 1664, 48, 8192, 16, 1280, 1280, 20),
}


@pytest.mark.parametrize("name", CLIP_SIZES)
def test_published_clip_sizes_on_shapes(name):
    side, patch, width, depth, mlp, heads, joint, text_width, text_heads = CLIP_SIZES[name]
    vision = {"hidden_size": width, "num_hidden_layers": depth, "intermediate_size": mlp, "num_attention_heads": heads}
    config = transformers.CLIPConfig(
        projection_dim=joint,
        vision_config={**vision, "image_size": side, "patch_size": patch},
        text_config={**TEXT, "hidden_size": text_width, "num_attention_heads": text_heads},
    )
    shapes = meta_state(config, transformers.CLIPModel)
    image, text = vars(on_shapes("clip", shapes, activation="gelu")).values()
    assert (image.image_size, image.patch_size, image.width, image.depth) == (side, patch, width, depth)
    assert (image.mlp_width, image.num_heads, image.embed_dim, text.num_heads) == (mlp, heads, joint, text_heads)


@pytest.mark.parametrize(
    ("family", "width", "depth", "patch", "places", "heads"),
    [("dino", 384, 12, 16, 196, 6), ("dino", 768, 12, 8, 784, 12), ("dino", 384, 12, 8, 784, 6)],
)
def test_published_dino_sizes_on_shapes(family, width, depth, patch, places, heads):
    spec = on_shapes(family, hub_shapes(width, depth, patch, places))
    assert (spec.image_size, spec.patch_size, spec.depth, spec.num_heads) == (224, patch, depth, heads)


@pytest.mark.parametrize(("width", "depth", "heads"), [(384, 12, 6), (768, 12, 12), (1024, 24, 16)])
def test_published_dinov2_sizes_on_shapes(width, depth, heads):
    vector = jax.ShapeDtypeStruct((width,), np.float32)
    scales = {f"blocks.{i}.ls{n}.gamma": vector for i in range(depth) for n in (1, 2)}
    spec = on_shapes("dinov2", hub_shapes(width, depth, 14, 37 * 37) | scales)
    assert (spec.image_size, spec.patch_size, spec.depth, spec.num_heads) == (518, 14, depth, heads)


def changed(state: Mapping[str, np.ndarray], **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {**state, **{name.replace("__", "."): np.ones(shape, np.float32) for name, shape in shapes.items()}}


@pytest.mark.parametrize(
    ("family", "change", "options", "reason"),
    [
        ("clip", {}, {"num_heads": 4, "text_heads": 5}, "choose --activation quick_gelu"),
        ("clip", {}, {**OPENAI, "activation": "relu"}, "'relu' is not one of a CLIP tower"),
        (
            "clip",
            {},
            {**OPENAI, "num_heads": None},
            "width 32 do not say how many attention heads they are: give --heads",
        ),
        ("clip", {}, {**OPENAI, "text_heads": None}, "give --text-heads"),
        ("clip", {}, {**OPENAI, "num_heads": 5}, "5 attention heads do not divide the width 32"),
        ("clip", {"visual__positional_embedding": (9, 32)}, OPENAI, "8 patch positions do not form a square"),
        ("clip", {"visual__conv1__weight": (32, 1, 8, 8)}, OPENAI, "not a square of RGB pixels"),
        ("clip", {"visual__proj": (32,)}, OPENAI, "visual.proj gives image/projection/kernel the wrong number of axes"),
        ("clip", {"visual__attnpool__k_proj": (3, 3)}, OPENAI, "no rule covers visual.attnpool.k_proj"),
        ("clip", {}, {**OPENAI, "num_heads": 0}, "0 attention heads do not divide the width 32"),
        ("dino", {}, {}, "no rule covers"),
        ("dino", {}, {"activation": "gelu"}, "activation cannot be chosen for dino"),
        ("vit", {}, {}, "'vit' is not a family"),
    ],
)
def test_what_cannot_be_converted_is_said(family, change, options, reason, clip_saved):
    state = changed(as_numpy(openai_names(clip_saved[0])), **change)
    with pytest.raises(ConversionError) as caught:
        convert_state(family, state, **options)
    assert reason in str(caught.value)


def test_missing_parts_are_named(clip_saved):
    state, config = clip_saved
    image_only = {name: x for name, x in state.items() if not name.startswith("text")}
    with pytest.raises(ConversionError, match="nothing in the source gives text/token_embedding/embedding"):
        convert_state("clip", image_only, config)
    missing = {name: x for name, x in state.items() if name != "text_model.final_layer_norm.bias"}
    with pytest.raises(ConversionError, match="nothing in the source gives text/norm_final/bias"):
        convert_state("clip", missing, config)


@pytest.mark.parametrize(
    ("family", "config", "reason"),
    [
        ("clip", {"model_type": "siglip"}, "says it is a 'siglip' model"),
        ("clip", {"model_type": ["clip"]}, "says it is a .* model"),
        ("dino", {"model_type": "dinov2"}, r"is a 'dinov2' model, which this family \(vit\) is not"),
        ("dino", {"model_type": "vit", "num_attention_heads": "four"}, "is not one transformers accepts"),
        ("dino", {"model_type": "vit", "num_attention_heads": 5}, "5 attention heads do not divide"),
    ],
)
def test_configurations_that_do_not_fit_are_said(family, config, reason, dino_saved):
    with pytest.raises(ConversionError, match=reason):
        convert_state(family, dino_saved[0], config)


@pytest.mark.parametrize("family", ["dino", "dinov2"])
def test_no_heads_are_refused_and_not_taken_for_unsaid(family, tmp_path):
    model = published.dino_model() if family == "dino" else published.dinov2_model()
    state, config = saved(model, tmp_path)
    assert convert_state(family, state, config, num_heads=2).spec.num_heads == 2
    with pytest.raises(ConversionError, match="0 attention heads do not divide the width 32: give another --heads"):
        convert_state(family, state, config, num_heads=0)
