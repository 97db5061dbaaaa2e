"""Labels that flip at the edges of windows: where they are marked, how they are counted and drawn."""

from dataclasses import replace

import numpy as np
import pytest

from gla_jax.analysis.seams import boundary_picture, compare_methods, flip_note, label_flips
from gla_jax.config import BASELINES, MethodConfig, SegmenterConfig, WindowConfig, without_gla
from gla_jax.eval.metrics.boundary import boundary_counts
from gla_jax.pictures.drawing import INK
from gla_jax.predict.model import image_grid
from gla_jax.results.segmentation import Segmentation

WINDOWS = WindowConfig(short_side=48, crop=32, stride=16)
CLASSES = ["sand; gravel", "water"]
IMAGE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


def test_flips_are_marked_on_both_sides_of_the_edges_where_labels_differ():
    windows = WindowConfig(None, 32, 16)
    labels = np.zeros((48, 64), np.int32)
    labels[:10, 32:] = 1  # differs across the edge at column 32 in 10 rows, and nowhere else across an edge
    flips = label_flips(labels, (48, 64), windows)
    expected = np.zeros((48, 64), bool)
    expected[:10, 31:33] = True
    np.testing.assert_array_equal(flips.at_edges, expected)
    # Edges at columns 16, 32, 48 and rows 16, 32.
    assert flips.share == pytest.approx(100 * 10 / (3 * 48 + 2 * 64))


def test_with_a_truth_flips_are_the_boundary_errors_of_eval():
    rng = np.random.default_rng(5)
    windows = WindowConfig(None, 32, 16)
    labels, truth = rng.integers(0, 3, (2, 50, 70))
    flips = label_flips(labels, (48, 64), windows, truth)
    rates = boundary_counts(labels, truth, (48, 64), windows).rates()
    assert flips.share == rates["ber_1"]
    assert flips.control == rates["control_1"]
    assert not label_flips(labels, (48, 64), windows, labels).at_edges.any()
    assert label_flips(labels, (48, 64), windows, np.full((50, 70), 255)).share > 0  # 255 is a value like others


def test_an_image_of_one_window_has_no_flips():
    flips = label_flips(np.eye(32, dtype=np.int32), (32, 32), WindowConfig(None, 32, 16))
    assert np.isnan(flips.share)
    assert flip_note(flips, False) == "one window: there are no edges"


class Named:
    """A segmenter whose results are the settings that they were made with."""

    def __init__(self, config):
        self.config, self.with_config = config, Named

    def __call__(self, *_):
        return self.config


@pytest.mark.parametrize("baseline", [name for name, row in BASELINES.items() if row.gla])
def test_the_boundary_picture_compares_the_baseline_with_gla(baseline):
    own = SegmenterConfig(method=MethodConfig(baseline=baseline), windows=WINDOWS)
    results = compare_methods(Named(own), IMAGE, CLASSES)
    title = BASELINES[baseline].title
    assert results == {title: replace(own, method=without_gla(baseline)), f"{title} + GLA": own}


def test_the_boundary_picture_is_black_where_labels_flip_at_an_edge_and_nowhere_else():
    grid = image_grid((60, 90), WINDOWS)
    picture_of = {}
    for column in (50, 55):  # 40 of 72 resized pixels are an edge: column 50 of 90
        labels = np.zeros((60, 90), np.uint8)
        labels[:, column:] = 1
        result = Segmentation(labels, ("sand", "water"), IMAGE)
        picture_of[column] = np.asarray(boundary_picture({"GLA": result}, grid, WINDOWS))
    rows = [(picture[40:340] == INK).all(-1).any(1).mean() for picture in picture_of.values()]
    assert rows[0] > 0.9
    assert rows[1] == 0
