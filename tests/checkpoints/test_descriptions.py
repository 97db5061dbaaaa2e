"""config.json of a model folder: one that contradicts the parameters, was edited, or describes no model is refused."""

import functools
import json
import shutil

import jax
import pytest

from gla_jax.checkpoints.model_folder import read_checkpoint, read_spec, spec_as_dict, write_checkpoint
from gla_jax.support.errors import ModelError
from gla_jax.tiny_world.vocabulary import tokenizer_files
from gla_jax.towers.dino import DinoSpec, DinoV2Spec
from tests.small_models import random_params, small_clip

DINO = DinoSpec(image_size=32, patch_size=8, width=8, depth=1, num_heads=2, mlp_width=8)
VISION = DinoV2Spec(image_size=32, patch_size=8, width=8, depth=2, num_heads=2, mlp_width=8, registers=1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A CLIP and a DINOv2 model folder."""
    root = tmp_path_factory.mktemp("models")
    for name, spec in (("clip", small_clip()), ("vfm", VISION)):
        write_checkpoint(root / name, spec, random_params(spec, 0), {"source": "random"})
    return root


def changed(folders, target, model, *path, **fields):
    """A copy of a folder as earlier versions wrote it, whose config.json says something else at a path."""
    shutil.copytree(folders / model, target)
    config = json.loads((target / "config.json").read_text())
    del config["folder_sha256"]
    part = functools.reduce(lambda content, name: content[name], path, config)
    part.update(fields)
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("model", "part", "field", "value", "says"),
    [
        ("vfm", (), "depth", 3, "depth 3, the parameters have 2"),
        ("vfm", (), "width", 16, "width 16, the parameters have 8"),
        ("vfm", (), "mlp_width", 4, "mlp_width 4, the parameters have 8"),
        ("vfm", (), "patch_size", 16, "patch_size 16, the parameters have 8"),
        ("vfm", (), "image_size", 64, "grid_side 8, the parameters have 4"),
        ("vfm", (), "registers", 0, "registers 0, the parameters have 1"),
        ("vfm", (), "qkv_bias", False, "qkv_bias False, the parameters have True"),
        ("vfm", (), "activation", "swiglu", "gated True, the parameters have False"),
        ("clip", ("image",), "depth", 2, "image depth 2, the parameters have 1"),
        ("clip", ("image",), "joint_width", 16, "image embed_dim 16, the parameters have 8"),
        ("clip", ("text",), "context", 7, "text context 7, the parameters have "),
        ("clip", ("text",), "vocabulary", 49408, "text vocabulary 49408, the parameters have "),
    ],
)
def test_a_description_that_contradicts_the_parameters_is_refused(folders, tmp_path, model, part, field, value, says):
    """Layers that a description leaves out would be dropped, and positions cut, without a word."""
    folder = changed(folders, tmp_path / "model", model, "spec", *part, **{field: value})
    with pytest.raises(ModelError, match=f"config.json says {says}") as caught:
        read_checkpoint(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "part", "field", "value"),
    [
        ("vfm", ("spec",), "heads", 1),
        ("vfm", ("spec",), "position_offset", 0.1),
        ("clip", ("spec", "image"), "heads", 4),
        ("clip", ("spec", "text"), "activation", "gelu"),
        ("clip", ("spec", "text"), "end_token", 2),
        ("clip", ("spec", "image"), "layer_norm_eps", 1e-6),
        ("clip", ("spec", "image"), "pixel_mean", [0.5, 0.5, 0.5]),
        ("clip", (), "templates", ["{}"]),
        ("clip", (), "params_sha256", "0"),
    ],
)
def test_a_description_edited_to_another_valid_one_is_refused(folders, tmp_path, model, part, field, value):
    """It would load and compute something else without a word: no shape shows these."""
    record = json.loads((folders / model / "config.json").read_text())["folder_sha256"]
    folder = changed(folders, tmp_path / "model", model, *part, **{field: value})
    read_spec(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "folder_sha256": record}))
    with pytest.raises(ModelError, match=r"config.json or the tokenizer.json .* changed .*; convert them again"):
        read_checkpoint(folder)


def test_another_tokenizer_is_refused(tmp_path):
    write_checkpoint(tmp_path / "model", small_clip(), random_params(small_clip(), 0), {}, tokenizer_files())
    read_checkpoint(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer.json beside it was changed"):
        read_checkpoint(tmp_path / "model")


@pytest.mark.parametrize(("model", "family"), [("vfm", "dino"), ("vfm", "clip"), ("clip", "dinov2")])
def test_a_description_of_another_family_is_refused(folders, tmp_path, model, family):
    spec = {"clip": small_clip(), "dino": DINO, "dinov2": VISION}[family]
    folder = changed(folders, tmp_path / "model", model, family=family, spec=spec_as_dict(spec))
    with pytest.raises(ModelError, match=r"another family than the parameters|config.json says"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("depth", 0),
        ("depth", "2"),
        ("heads", 3),
        ("heads", 0),
        ("heads", None),
        ("layer_norm_eps", float("inf")),
        ("layer_norm_eps", 0),
        ("layer_norm_eps", 1),
        ("depth", True),
        ("heads", True),
        ("layer_norm_eps", True),
        ("position_offset", -0.1),
        ("position_offset", 1e30),
        ("qkv_bias", 1),
        ("activation", "relu"),
        ("position_resize", "nearest"),
        ("position_offset", [0.1]),
        ("colour", "red"),
    ],
)
def test_a_field_that_no_model_can_have_is_refused(folders, tmp_path, field, value):
    folder = changed(folders, tmp_path / "model", "vfm", "spec", **{field: value})
    if value == float("inf"):  # JSON itself has no infinity, but it has numbers that large
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.replace("Infinity", "1e999"))
    with pytest.raises(ModelError, match="does not describe a model this version knows"):
        read_spec(folder)


def test_pixels_and_templates_that_no_model_can_have_are_refused(folders, tmp_path):
    for index, std in enumerate(([0.2, 0.2], [0.2, 0.2, 0], [[0.2], 0.2, 0.2], "0.2")):
        folder = changed(folders, tmp_path / str(index), "clip", "spec", "image", pixel_deviation=std)
        with pytest.raises(ModelError, match="pixel_std is"):
            read_spec(folder)
    for index, mean in enumerate(([1.5, 0, 0], [-0.1, 0, 0], [0, 0, 1e300])):
        with pytest.raises(ModelError, match="pixel_mean is"):
            read_spec(changed(folders, tmp_path / f"mean {index}", "clip", "spec", "image", pixel_mean=mean))
    for index, std in enumerate(([1e-300] * 3, [0.2, 0.2, 1e30])):
        with pytest.raises(ModelError, match="pixel_std is"):
            read_spec(changed(folders, tmp_path / f"std {index}", "clip", "spec", "image", pixel_deviation=std))
    with pytest.raises(ModelError, match="templates are not a list"):
        read_spec(changed(folders, tmp_path / "templates", "clip", templates="a photo of {}"))


def test_loading_traces_nothing(folders, monkeypatch):
    """Tracing both towers took two seconds of a load."""
    monkeypatch.setattr(jax, "eval_shape", lambda *_: pytest.fail("a tower was traced"))
    for name in ("clip", "vfm"):
        read_checkpoint(folders / name)
