"""Tuning: the gradient reaches every number, a fit repairs a spoilt start, and a preset is what segment takes."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gla_jax import tune
from gla_jax.cli import main
from gla_jax.config import METHODS, SegmenterConfig, WindowConfig
from gla_jax.errors import UserError
from gla_jax.eval.datasets import Example
from gla_jax.eval.protocols import protocol
from gla_jax.segmenter import Segmenter
from gla_jax.settings import TUNED_FIELDS, read_preset, settings_from_options
from gla_jax.tiny_world.scenes import render
from gla_jax.windows import window_grid

ROW = protocol("tiny-world")


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.from_pretrained("tiny-world", ROW.config("gla"))


@pytest.fixture(scope="module")
def scenes():
    made = [render(10**9 + seed, 224, 300, split="train") for seed in range(2)]
    return [Example(str(index), scene.image, scene.labels) for index, scene in enumerate(made)]


def test_coordinates_are_undone():
    config = ROW.config("gla")
    found = tune.configured(tune.coordinates(replace(config, threshold=0.3)), config, background=True)
    for name in TUNED_FIELDS:
        assert float(getattr(found.method, name)) == pytest.approx(getattr(config.method, name), rel=1e-5)
    assert float(found.logit_scale) == pytest.approx(40, rel=1e-5)
    assert float(found.threshold) == pytest.approx(0.3, rel=1e-5)


def test_targets_are_the_labels_under_token_centres():
    label = np.arange(8 * 12).reshape(8, 12).astype(np.uint8)
    label[0, 0] = 255
    grid = window_grid(16, 24, WindowConfig(None, crop=16, stride=8))  # twice the label's size
    targets = tune.token_targets(label, grid, windows=3, tokens=4, ignore=255)
    np.testing.assert_array_equal(targets[0], [label[2, 2], label[2, 6], label[6, 2], label[6, 6]])
    np.testing.assert_array_equal(targets[1], [label[2, 6], label[2, 10], label[6, 6], label[6, 10]])
    assert (targets[2] == tune.UNLABELLED).all()
    fine = tune.token_targets(label, grid, windows=2, tokens=64, ignore=255)
    assert fine[0, 0] == tune.UNLABELLED


def test_pixels_below_the_threshold_count_for_the_background():
    logits = jnp.asarray([[[0.0, 0.0, 0.0], [0.0, 9.0, 0.0]]])  # unsure, then sure of class 1
    config = SegmenterConfig(logit_scale=1.0, threshold=0.6)
    found = jnp.exp(tune.class_log_probabilities(logits, jnp.arange(3), config, 3))
    assert found[0, 0, 0] > 0.99
    assert found[1, 0, 1] > 0.99
    off = replace(config, threshold=0.0)
    np.testing.assert_allclose(jnp.exp(tune.class_log_probabilities(logits, jnp.arange(3), off, 3))[:, 0, 0], 1 / 3)


def test_a_spoilt_start_is_repaired(segmenter, scenes):
    """From a shift that lets windows attend to everything, the fit must come back to a lower loss."""
    config = segmenter.config
    spoilt = replace(config, method=replace(config.method, dynamic_shift=0.01, dynamic_scale=0.5), logit_scale=4.0)
    found = tune.fit(segmenter, scenes[:1], ROW, spoilt, background=False, steps=12, learning_rate=0.3)
    assert len(found.losses) == 12
    assert found.losses[-1] < 0.7 * found.losses[0]
    assert found.config.logit_scale > 4.0
    assert -1 < found.config.method.anchor_threshold < 1
    assert found.config.method.mask_temperature is None
    assert {type(leaf) for leaf in jax.tree.leaves(found.config)} == {float}


def test_only_methods_with_all_parts_are_tuned():
    with pytest.raises(UserError, match="only a method with anchors and dynamic normalisation"):
        tune.coordinates(SegmenterConfig(method=METHODS["proxyclip"]))


def report(better):
    figures = ({"miou": 50.0}, {"miou": 60.0 if better else 40.0})
    end = replace(SegmenterConfig(), logit_scale=33.0, threshold=0.2)
    return tune.Report(SegmenterConfig(), end, {"fitted": figures, "held out": figures}, (1.0, 0.5))


def test_a_preset_file_is_what_segment_takes(tmp_path):
    path = tmp_path / "mine.json"
    tune.write_preset(path, report(True), "proxyclip", {"benchmark": "folder"}, keep_start=False)
    config = settings_from_options(preset=str(path), short_side="500")
    assert (config.logit_scale, config.threshold, config.windows.crop) == (33.0, 0.2, 336)
    assert config.windows.short_side == 500
    assert config.method == METHODS["gla"]
    assert settings_from_options(preset=str(path), method="proxyclip").method == METHODS["proxyclip"]
    tune.write_preset(path, report(False), "sclip", {}, keep_start=True)
    assert read_preset(str(path)).logit_scale == 40.0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "is not a preset of this program"),
        (json.dumps({"format": "gla-jax preset 1", "base": "sclip"}), "is damaged"),
    ],
)
def test_an_unusable_preset_is_one_sentence(tmp_path, content, reason):
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=reason):
        settings_from_options(preset=str(path))


def test_the_command_writes_a_preset_and_says_what_it_brought(tmp_path, capsys):
    out = tmp_path / "preset.json"
    assert main(["tune", "--images", "2", "--hold-out", "0.5", "--steps", "1", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "held out mIoU" in said.out
    content = json.loads(out.read_text())
    kept = "keeps the start" in said.err
    before, after = (content["figures"]["held out"][end]["miou"] for end in ("start", "end"))
    assert kept == (after <= before)
    assert read_preset(str(out)).method.mask_temperature is None


def test_mistakes_are_one_sentence(tmp_path, capsys):
    for arguments, reason in (
        (["--out", str(tmp_path / "preset.txt")], "does not end with .json"),
        (["--method", "proxyclip", "--out", str(tmp_path / "a.json")], "only a method with anchors"),
        (["--images", "1", "--hold-out", "0.9", "--out", str(tmp_path / "a.json")], "leave none to fit on"),
    ):
        assert main(["tune", *arguments]) == 2
        assert reason in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
