"""Model folders: what is written loads to the same bits; what is damaged or half-written is never loaded."""

import json

import jax
import numpy as np
import pytest

from gla_jax.checkpoint import digest, folder_written_beside, initial_params, read_checkpoint, write_checkpoint
from gla_jax.errors import ModelError
from gla_jax.towers.dino import DinoSpec

SPEC = DinoSpec(image_size=32, patch_size=8, width=8, depth=1, heads=2, mlp_width=8)


@pytest.fixture
def params():
    return jax.tree.map(np.asarray, initial_params(SPEC, jax.random.key(0)))


@pytest.fixture
def folder(tmp_path, params):
    write_checkpoint(tmp_path / "model", SPEC, params, {"source": "random"})
    return tmp_path / "model"


def test_a_folder_loads_to_the_same_bits(folder, params):
    loaded = read_checkpoint(folder)
    assert (loaded.family, loaded.spec, loaded.sha256) == ("dino", SPEC, digest(params))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    assert json.loads((folder / "manifest.json").read_text()) == {"source": "random"}


def test_half_precision_storage_loads_as_float32(tmp_path, params):
    write_checkpoint(tmp_path / "half", SPEC, params, {}, storage_dtype="bfloat16")
    loaded = read_checkpoint(tmp_path / "half").params
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}
    jax.tree.map(lambda got, wanted: np.testing.assert_allclose(got, wanted, rtol=2**-8), loaded, params)


def test_a_taken_folder_is_left_alone(folder, params):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ModelError, match="exists already"):
        write_checkpoint(folder, SPEC, params, {})
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def write_half():
        with folder_written_beside(tmp_path / "model") as beside:
            (beside / "config.json").write_text("{}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_parameters_of_another_spec_are_refused(tmp_path, params):
    wider = DinoSpec(image_size=32, patch_size=8, width=16, depth=1, heads=2, mlp_width=8)
    with pytest.raises(ValueError, match="do not fit the spec at"):
        write_checkpoint(tmp_path / "model", wider, params, {})
    assert list(tmp_path.iterdir()) == []


def largest_file(folder):
    return max(
        (path for path in (folder / "params").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


@pytest.mark.parametrize("damage", ["cut", "changed", "removed"])
def test_damaged_weights_are_never_loaded(folder, damage):
    path = largest_file(folder)
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        half = len(content) // 2
        path.write_bytes(content[:half] if damage == "cut" else content[:half] + b"\x00\xff" * 8 + content[half + 16 :])
    with pytest.raises(ModelError, match=r"(cannot be read|is damaged).*convert") as caught:
        read_checkpoint(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "has no config.json"),
        ("{", "cannot be read"),
        ('{"model_type": "clip"}', "gla-jax convert"),
        ('{"format": "gla-jax model 1", "family": "sam", "spec": {}}', "does not describe a model"),
        ('{"format": "gla-jax model 1", "family": "dino", "spec": {"width": 3}}', "does not describe a model"),
    ],
)
def test_another_folder_is_one_sentence(tmp_path, config, reason):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=reason):
        read_checkpoint(tmp_path)
