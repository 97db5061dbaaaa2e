"""A configuration that contradicts its tensors, or asks for what the towers do not compute, is refused by name."""

import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from gla_jax.checkpoints.model_folder import flatten_params, read_checkpoint
from gla_jax.convert import convert, convert_state
from gla_jax.convert.model_folder import read_model
from gla_jax.convert.verify import verify_conversion
from gla_jax.support.errors import ConversionError
from tests.convert import published
from tests.convert.published import as_numpy, hub_names, openai_names, saved, torchscript
from tests.convert.test_families import OPENAI, open_clip_config

VOCABULARY = 49408


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return saved(published.clip_model(), tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def big_clip(tmp_path_factory):
    """A CLIP with OpenAI's vocabulary, whose tokenizer comes with the converter."""
    return saved(published.clip_model(VOCABULARY), tmp_path_factory.mktemp("clip"))[0]


@pytest.fixture(scope="module", params=["dino", "dinov2"])
def features(request, tmp_path_factory):
    model = published.dino_model() if request.param == "dino" else published.dinov2_model()
    return request.param, *saved(model, tmp_path_factory.mktemp("features"))


def with_field(config: dict, path: str, value) -> dict:
    head, _, rest = path.partition(".")
    return {**config, head: with_field(config[head], rest, value) if rest else value}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("vision_config.num_hidden_layers", 3, "depth 3, where they have 2"),
        ("vision_config.hidden_size", 64, "width 64, where they have 32"),
        ("vision_config.patch_size", 4, "patch_size 4, where they have 8"),
        ("vision_config.image_size", 48, "image_size 48, where they have 24"),
        ("vision_config.intermediate_size", 96, "mlp_width 96, where they have 48"),
        ("vision_config.num_channels", 4, "channels 4, where they have 3"),
        ("text_config.vocab_size", 8, "vocabulary 8, where they have 7"),
        ("text_config.max_position_embeddings", 10, "context 10, where they have 9"),
        ("text_config.num_hidden_layers", 4, "depth 4, where they have 3"),
        ("projection_dim", 32, "embed_dim 32, where they have 16"),
    ],
)
def test_clip_of_transformers(field, value, said, clip):
    state, config = clip
    with pytest.raises(ConversionError, match="contradicts its tensors") as caught:
        convert_state("clip", state, with_field(config, field, value))
    assert said in str(caught.value)
    assert field.rpartition(".")[2] in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_hidden_layers", 3), ("hidden_size", 64), ("patch_size", 4), ("image_size", 48), ("qkv_bias", False)],
)
def test_features_of_transformers(field, value, features):
    family, state, config = features
    with pytest.raises(ConversionError, match=f"contradicts its tensors: {field} makes"):
        convert_state(family, state, {**config, field: value})
    mlp = {"mlp_ratio": 2} if family == "dinov2" else {"intermediate_size": 64}
    with pytest.raises(ConversionError, match="makes mlp_width 64, where they have"):
        convert_state(family, state, {**config, **mlp})
    border = convert_state(family, state, {**config, "image_size": 31}).spec
    assert border.image_size == 24  # a border narrower than a patch is not seen
    with pytest.raises(ConversionError, match="quantised weights"):
        convert_state(family, state, {**config, "quantization_config": {"bits": 8}})


REFUSED = {
    "vision_cfg": {
        "pool_type": ("avg", "none", None),
        "attentional_pool": (True, "parallel"),
        "global_average_pool": (True,),
        "input_patchnorm": (True,),
        "no_ln_pre": (True,),
        "ls_init_value": (1e-5,),
        "act_kwargs": ({"approximate": "tanh"},),
        "norm_kwargs": ({"elementwise_affine": False}, 3),
        "timm_model_name": ("vit_base_patch16_224",),
        "block_type": ("custom",),
        "qk_norm": (True,),
        "scale_fc": (True,),
        "a_field_of_tomorrow": (1,),
    },
    "text_cfg": {
        "pool_type": ("last", "first", "none"),
        "no_causal_mask": (True,),
        "embed_cls": (True,),
        "proj_type": ("none", "mlp"),
        "proj_bias": (True,),
        "hf_model_name": ("roberta-base",),
        "tokenizer_kwargs": ({"clean": "canonicalize"},),
        "ls_init_value": (0.1,),
        "scaled_cosine_attn": (True,),
        "act_kwargs": ({"approximate": "tanh"},),
    },
}


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [(part, field, value) for part, fields in REFUSED.items() for field, values in fields.items() for value in values],
    ids=str,
)
def test_what_open_clip_asks_for_and_the_towers_do_not_compute(part, field, value, clip):
    config = open_clip_config()["model_cfg"]
    with pytest.raises(ConversionError, match=rf"{part}\.{field}"):
        convert_state("clip", as_numpy(openai_names(clip[0])), with_field(config, f"{part}.{field}", value))


def test_what_changes_no_feature_of_open_clip_converts(clip):
    state, config = as_numpy(openai_names(clip[0])), open_clip_config()
    expected = convert_state("clip", state, config).spec
    harmless = {"vision_cfg": {"patch_dropout": 0.5, "output_tokens": True, "pool_type": "tok", "attn_pooler_heads": 4}}
    harmless |= {"text_cfg": {"pad_id": 1, "eos_id": 4, "pool_type": "argmax", "final_ln_after_pool": True}}
    model = config["model_cfg"]
    model = {**model, **{part: {**model[part], **fields} for part, fields in harmless.items()}, "custom_text": True}
    assert convert_state("clip", state, model).spec == expected


def test_pool_type_eos_and_norm_kwargs_of_open_clip(clip):
    state, config = as_numpy(openai_names(clip[0])), open_clip_config()["model_cfg"]
    config = with_field(with_field(config, "text_cfg.pool_type", "eos"), "text_cfg.eos_id", 4)
    spec = convert_state("clip", state, with_field(config, "vision_cfg.norm_kwargs", {"eps": 1e-6})).spec
    assert (spec.text.end_token, spec.image.layer_norm_eps, spec.text.layer_norm_eps) == (4, 1e-6, 1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vision_cfg.layers", 3),
        ("vision_cfg.layers", [3, 4, 6, 3]),
        ("vision_cfg.width", 64),
        ("vision_cfg.width", "32"),
        ("vision_cfg.patch_size", 16),
        ("vision_cfg.image_size", 48),
        ("vision_cfg.image_size", [24, 48]),
        ("vision_cfg.image_size", [[24], [24]]),
        ("vision_cfg.image_size", []),
        ("vision_cfg.mlp_ratio", 4.0),
        ("text_cfg.layers", 2),
        ("text_cfg.context_length", 77),
        ("text_cfg.vocab_size", 8),
        ("embed_dim", 512),
    ],
)
def test_sizes_of_open_clip_that_contradict_the_tensors(field, value, clip):
    with pytest.raises(ConversionError, match=f"contradicts its tensors: {field} makes"):
        convert_state(
            "clip", as_numpy(openai_names(clip[0])), with_field(open_clip_config()["model_cfg"], field, value)
        )


TIMM = {"architecture": "vit_small_patch8_224", "num_features": 32, "pretrained_cfg": {"input_size": [3, 24, 24]}}


def test_timm_configurations(features):
    family, state, _ = features
    hub = as_numpy(hub_names(state))
    spec = convert_state(family, hub, TIMM, num_heads=4).spec
    assert (spec.position_offset, spec.position_resize) == (0.0, "bicubic_antialias")
    assert (
        convert_state(
            family, hub, {**TIMM, "model_args": {"num_heads": 2, "mlp_ratio": spec.mlp_width / 32}}
        ).spec.num_heads
        == 2
    )
    for change, reason in (
        ({"num_features": 64}, "num_features makes width 64"),
        ({"architecture": "vit_small_patch16_224"}, "architecture makes patch_size 16"),
        ({"architecture": "vit_small_patch8_rpn_224"}, "no plain ViT"),
        ({"model_args": {"depth": 12}}, "depth makes depth 12"),
        ({"model_args": {"act_layer": "quick_gelu"}}, "model_args.act_layer = 'quick_gelu'"),
        ({"pretrained_cfg": {"input_size": [3, 48, 48]}}, "input_size makes image_size 48"),
        ({"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}, "use ImageNet's alone"),
    ):
        with pytest.raises(ConversionError, match=reason):
            convert_state(family, hub, {**TIMM, **change}, num_heads=4)


def test_timm_adds_the_class_position_to_the_class_token(tmp_path):
    state, config = saved(published.dinov2_model(registers=4), tmp_path)
    expected = flatten_params(convert_state("dinov2", state, config).params)
    hub = as_numpy(hub_names(state))
    hub["reg_token"] = hub.pop("register_tokens")
    hub["cls_token"], hub["pos_embed"] = hub["cls_token"] + hub["pos_embed"][:, :1], hub["pos_embed"][:, 1:]
    params = flatten_params(convert_state("dinov2", hub, num_heads=4).params)
    assert not params["patch_tokens/class_position"].any()
    token = expected.pop("patch_tokens/class_token") + expected.pop("patch_tokens/class_position")
    np.testing.assert_array_equal(params["patch_tokens/class_token"], token)
    for path, leaf in expected.items():
        np.testing.assert_array_equal(params[path], leaf, err_msg=path)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["visual.proj", "ln_final.bias", "token_embedding.weight"])
def test_numbers_that_are_not_finite_are_named(name, number, clip):
    state = as_numpy(openai_names(clip[0]))
    state[name] = state[name].astype(np.float16)
    state[name].flat[1] = number
    with pytest.raises(ConversionError, match=f"{name} holds NaN or infinity"):
        convert_state("clip", state, **OPENAI)


def test_numbers_that_overflow_float32_and_whole_numbers_are_named(clip):
    state = as_numpy(openai_names(clip[0]))
    with pytest.raises(ConversionError, match=r"visual\.proj holds NaN or infinity"):
        convert_state("clip", state | {"visual.proj": np.full((32, 16), 1e300)}, **OPENAI)
    with pytest.raises(ConversionError, match=r"visual\.proj holds int8 numbers: quantised"):
        convert_state("clip", state | {"visual.proj": np.ones((32, 16), np.int8)}, **OPENAI)
    with pytest.raises(ConversionError, match=r"visual\.proj has shape \[0 16\]: it is empty"):
        convert_state("clip", state | {"visual.proj": np.ones((0, 16), np.float32)}, **OPENAI)


def test_assumptions_are_named_with_their_reasons(features, clip):
    family, state, config = features
    assert convert_state(family, state, config).assumed.keys() == {"pixels"}
    half = {name: x.astype(np.float16) for name, x in as_numpy(hub_names(state)).items()}
    assumed = convert_state(family, half, num_heads=4).assumed
    assert assumed.keys() == {"pixels", "position_offset", "layer_norm_eps", "dtype"}
    assert assumed["position_offset"].startswith("0.1: ")
    assert assumed["dtype"].startswith("float32: the source stores float16")
    wide = {**as_numpy(openai_names(clip[0]))}
    assumed = convert_state("clip", wide, **OPENAI).assumed
    assert {"pixels", "text/end_token", "image/layer_norm_eps", "text/layer_norm_eps"} == assumed.keys()
    assert assumed["text/end_token"] == "6: the last token of the vocabulary"


class Mlp(torch.nn.Module):
    """Holds the activation that an archive's code shows."""

    def __init__(self, approximate: str | None):
        super().__init__()
        self.approximate = approximate or "sigmoid"

    def forward(self, x):
        if self.approximate == "sigmoid":
            return x * torch.sigmoid(1.702 * x)
        return torch.nn.functional.gelu(x, approximate=self.approximate)


@pytest.mark.parametrize(
    ("approximate", "activation"),
    [("bare", "quick_gelu"), (None, "quick_gelu"), ("none", "gelu")],
    ids=["bare", "quick", "erf"],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_activation_of_an_archive(approximate, activation, big_clip, tmp_path):
    inside = {} if approximate == "bare" else {"act": torch.jit.trace(Mlp(approximate), torch.ones(2))}
    torchscript(openai_names(big_clip), {}, inside).save(str(tmp_path / "model.pt"))
    manifest = convert("clip", tmp_path / "model.pt", tmp_path / "out", num_heads=4, text_heads=5)
    assert read_checkpoint(tmp_path / "out").spec.text.activation == activation
    assert ("activation" in manifest["assumed"]) == (approximate == "bare")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["assumed"] == manifest["assumed"]
    assert "tokenizer" in manifest["assumed"]


def test_verifying_says_what_it_could_not_check(big_clip, tmp_path):
    torch.save(openai_names(big_clip), tmp_path / "model.pt")
    model = read_model("clip", tmp_path / "model.pt", tmp_path / "out", **OPENAI)
    result = verify_conversion(model)
    assert result.passed
    assert result.unchecked == model.manifest["assumed"]
    assert {"tokenizer", "pixels"} <= result.unchecked.keys()
    assert "second table" in result.checked
    assert not (tmp_path / "out").exists()  # it is written when write() is called, so a failed check leaves none
    model.params["image"]["norm_post"]["bias"][...] += 1
    assert not verify_conversion(model).passed


def in_dino_checkpoint(hub):
    """As the training of DINO saves: both networks, the optimizer, the arguments, numpy's numbers."""
    student = {f"module.backbone.{name}": torch.zeros_like(x) for name, x in hub.items()}
    teacher = {f"backbone.{name}": x for name, x in hub.items()} | {"head.mlp.0.weight": torch.ones(2)}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    beside = {"optimizer": optimizer.state_dict(), "epoch": np.int64(3), "loss": np.float64(0.5)}
    beside |= {"args": Namespace(arch="vit", lr=np.float32(1)), "rng": np.random.default_rng(0).integers(9, size=9)}
    return {"student": student, "teacher": teacher, **beside}


TRAINERS = {
    "DINO": in_dino_checkpoint,
    "one state dict": lambda hub: {
        "model": {f"teacher.backbone.{k}": x for k, x in hub.items()}
        | {f"student.backbone.{k}": x * 0 for k, x in hub.items()}
    },
    "compiled": lambda hub: {
        "state_dict": {f"_orig_mod.module.{k}": x for k, x in hub.items()},
        "args": Namespace(a=1),
    },
    "compiled blocks": lambda hub: {k.replace("attn", "_orig_mod.attn"): x for k, x in hub.items()},
    "Lightning": lambda hub: {"state_dict": {f"model.{k}": x for k, x in hub.items()}, "callbacks": {Namespace: 1}},
    "student alone": lambda hub: {"state_dict": {f"student.backbone.{k}": x for k, x in hub.items()}},
    "DeepSpeed": lambda hub: {"module": hub, "dtype": torch.float16, "quantised": torch.zeros(2, dtype=torch.uint16)},
}


@pytest.mark.parametrize("wrap", TRAINERS.values(), ids=TRAINERS.keys())
def test_checkpoints_as_their_trainers_save_them(wrap, features, tmp_path):
    family, state, _ = features
    hub = hub_names(state)
    torch.save(wrap(hub), tmp_path / "checkpoint.pth")
    convert(family, tmp_path / "checkpoint.pth", tmp_path / "out", num_heads=4)
    expected = flatten_params(convert_state(family, as_numpy(hub), num_heads=4).params)
    params = flatten_params(read_checkpoint(tmp_path / "out").params)
    for path, leaf in expected.items():
        np.testing.assert_array_equal(params[path], leaf, err_msg=path)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_block_of_a_high_number_is_refused_before_anything_is_built(suffix, features, tmp_path):
    family, state, _ = features
    hub = as_numpy(hub_names(state)) | {"blocks.2000.norm1.weight": np.ones(32, np.float32)}
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(published.as_torch(hub), path)
    else:
        save_file(hub, path)
    with pytest.raises(ConversionError, match="nothing in the source gives blocks_2"):
        convert(family, path, tmp_path / "out", num_heads=4)
    with pytest.raises(ConversionError, match="nothing in the source gives blocks_2"):
        convert_state(
            family, as_numpy(hub_names(state)) | {f"blocks.{'9' * 5000}.norm1.bias": np.ones(32)}, num_heads=4
        )
    many = {
        name.replace("blocks.0.", f"blocks.{i}."): x
        for i in range(300)
        for name, x in hub.items()
        if "2000" not in name
    }
    with pytest.raises(ConversionError, match="300 blocks, more than the 256"):
        convert_state(family, many, num_heads=4)


def test_values_that_would_fill_the_screen_are_cut(clip):
    state, config = clip
    long = "x" * 100_000
    for field, value in (("model_type", long), ("projection_dim", long), ("vision_config.hidden_act", long)):
        with pytest.raises(ConversionError) as caught:
            convert_state("clip", state, with_field(config, field, value))
        assert len(str(caught.value)) < 500, field
    sizes = {"image_size": 24, "patch_size": 8, "width": 32, "layers": 2}
    for part in ({"pool_type": long}, {long: 1}, {"norm_kwargs": long}, {"layers": long}, {"width": 10**4000}):
        with pytest.raises(ConversionError) as caught:
            convert_state("clip", state, {"embed_dim": 16, "vision_cfg": {**sizes, **part}, "text_cfg": {}})
        assert len(str(caught.value)) < 500, part


@pytest.mark.parametrize("value", ["false", "", 2, [True], {}])
def test_quick_gelu_is_true_or_false(value, clip):
    """Whatever Python takes for true would choose another activation without a word."""
    with pytest.raises(ConversionError, match="asks for quick_gelu = "):
        convert_state("clip", clip[0], {"vision_cfg": {}, "text_cfg": {}, "quick_gelu": value})
