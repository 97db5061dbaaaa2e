"""Overlapping tokens as one, from settings to labels: every way through the machine gives the same."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from gla_jax.analysis.encoded import encode_image, label_settings, vocabulary_question
from gla_jax.analysis.explain import attention_stages
from gla_jax.config import METHODS, SegmenterConfig, WindowConfig
from gla_jax.distributed.mesh import make_mesh
from gla_jax.images.windows import token_overlaps, window_grid
from gla_jax.outputs.files import deciding_settings
from gla_jax.predict import cost
from gla_jax.predict import model as module
from gla_jax.predict.model import image_grid
from gla_jax.segmenter import Segmenter
from gla_jax.support.errors import UserError
from gla_jax.text.prompts import parse_classes
from tests.small_models import random_pair

CONFIG = SegmenterConfig(windows=WindowConfig(short_side=None, crop=32, stride=16), tower_batch=2)
CLASSES = ["sand", "water", "a red cloth with dots"]
# Five windows of two sizes: all fall on each other in the first, the last one is shifted by half a token in the other.
IMAGES = [np.random.default_rng(side).integers(0, 256, (32, side, 3), np.uint8) for side in (96, 92)]


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return Segmenter.from_pretrained(random_pair(tmp_path_factory.mktemp("model")), CONFIG)


def merging(method: str = "gla") -> SegmenterConfig:
    return replace(CONFIG, method=replace(METHODS[method], merge_overlaps=True, block_size=30))


def test_tokens_at_a_pixel_by_hand():
    """Two windows of 2 x 2 tokens that share a column, and a third that is shifted by half a token."""
    grid = window_grid(8, 14, WindowConfig(None, crop=8, stride=4))
    assert grid.column_starts == (0, 4, 6)
    overlaps = token_overlaps(grid, 4, 4)
    np.testing.assert_array_equal(overlaps.merged, [[0, 1, 2, 3], [1, 4, 3, 5], [6, 7, 8, 9], [-1] * 4])
    members = [[0, -1], [1, 4], [2, -1], [3, 6], [5, -1], [7, -1], [8, -1], [9, -1], [10, -1], [11, -1]]
    np.testing.assert_array_equal(overlaps.members, members + [[-1, -1]] * 2)  # whole windows
    assert len(token_overlaps(grid, 4, 4, devices=8).members) == 16


@pytest.mark.parametrize("method", ["gla", "gla-clearclip"])
def test_batches_devices_and_steps_give_the_same(segmenter, method, monkeypatch):
    config = merging(method)
    alone = [segmenter.with_config(config)(image, CLASSES, scores=True).scores for image in IMAGES]
    together = segmenter.with_config(config).batch(IMAGES, CLASSES, scores=True)
    split = Segmenter(segmenter.clip, segmenter.vfm, config, mesh=make_mesh(2))
    over_devices = split.batch(IMAGES, CLASSES, scores=True)
    monkeypatch.setattr(module, "MAX_PROGRAM_WINDOWS", 3)
    in_steps = [segmenter.with_config(config)(image, CLASSES, scores=True) for image in IMAGES]
    for found in (together, over_devices, in_steps):
        for one, expected in zip(found, alone, strict=True):
            np.testing.assert_allclose(one.scores, expected, atol=1e-4)


def test_an_image_of_one_window_stays_as_it_is(segmenter):
    image = IMAGES[0][:, :32]
    expected = segmenter(image, CLASSES, scores=True).scores
    np.testing.assert_allclose(
        segmenter.with_config(merging())(image, CLASSES, scores=True).scores, expected, atol=1e-6
    )


def test_a_grid_over_merging_gives_the_labels_of_each(segmenter):
    configs = [segmenter.model.with_config(config).config for config in (CONFIG, merging(), merging("gla-clearclip"))]
    encoded = encode_image(segmenter.model, IMAGES[0], configs)
    scores, question = {}, vocabulary_question(segmenter, parse_classes(CLASSES))
    for index, labels, _, one_key in label_settings(segmenter.model, encoded, configs, question):
        expected = segmenter.with_config(configs[index])(IMAGES[0], CLASSES, scores=True)
        assert (labels == expected.labels).mean() > 0.995
        scores[index] = expected.scores
        own = segmenter.with_config(configs[index]).model
        assert one_key == jax.device_get(own.counted([own.prepare(IMAGES[0])])[0].one_key)
    assert np.abs(scores[0] - scores[1]).max() > 1e-3


def test_what_cannot_be_merged_is_refused(segmenter):
    for changes, reason in (
        ({"stride": 12}, "stride 12 tokens of 8 pixels fall beside each other; choose a multiple of 8"),
        ({"crop": 256, "stride": 16}, "crop 256 at stride 16 has 16; choose a larger stride"),
        ({"method": "proxyclip"}, "merge_overlaps is for methods with a global buffer"),
    ):
        with pytest.raises(UserError, match=reason):
            segmenter.with_settings(**changes, merge_overlaps=True)
    with pytest.raises(UserError, match="leave it out"):
        attention_stages(merging().method)


def test_the_cost_is_that_of_the_tokens_that_are_left(segmenter):
    grid = image_grid((32, 96), CONFIG.windows)
    assert cost.merged_share(grid, segmenter.params, merging()) == 0.6  # 12 x 4 tokens, in whole windows
    assert cost.merged_share(grid, segmenter.params, CONFIG) == 1
    half, plain = (cost.image_flops(segmenter.params, 5, merging(), share) for share in (0.6, 1))
    assert half < plain
    assert "80 tokens" in str(cost.estimate(segmenter.params, merging(), 5, 0.6))


def test_runs_of_before_go_on():
    """A folder of results records its settings: those of a run without merging must be what they were."""
    assert not {"merge_overlaps", "calibration"} & deciding_settings(CONFIG)["method"].keys()
    calibrated = replace(CONFIG, method=replace(CONFIG.method, calibration="centred"))
    assert deciding_settings(calibrated)["method"]["calibration"] == "centred"
    assert deciding_settings(merging())["method"]["merge_overlaps"]
