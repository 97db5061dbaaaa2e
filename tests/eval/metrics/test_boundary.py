"""The boundary error rate must count the pairs its definition names: by hand, and against a pixel-by-pixel count."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gla_jax.config import WindowConfig
from gla_jax.eval.metrics.boundary import WIDTHS, BoundaryCounts, boundary_counts
from gla_jax.images.edges import window_edges
from tests import oracle

WINDOWS = WindowConfig(short_side=336, crop=224, stride=112)


def plain_counts(prediction, label, resized, width, offset, crop, stride):
    """Every pair looked at on its own, both axes."""
    errors = pairs = 0
    for axis in (0, 1):
        p, g = (np.moveaxis(a, axis, 1) for a in (prediction, label))
        length, scale = g.shape[1], g.shape[1] / resized[axis]
        points = {point for window in oracle.axis_windows(resized[axis], crop, stride) for point in window}
        for edge in points - {0, resized[axis]}:
            column = math.ceil((edge + offset) * scale - 0.5)
            for k in range(max(1, round(width * scale))):
                i, j = column - 1 - k, column + k
                if i < 0 or j >= length:
                    continue
                for row in range(g.shape[0]):
                    if g[row, i] == g[row, j] != 255:
                        pairs += 1
                        errors += p[row, i] != p[row, j]
    return errors, pairs


@settings(max_examples=40)
@given(
    size=st.tuples(st.integers(3, 60), st.integers(3, 60)),
    resized=st.tuples(st.integers(20, 70), st.integers(20, 70)),
    crop=st.integers(8, 30),
    seed=st.integers(0, 2**32 - 1),
)
def test_counts_are_those_of_looking_at_every_pair(size, resized, crop, seed):
    generator = np.random.default_rng(seed)
    label = generator.choice(np.array([0, 1, 255], np.uint8), size)
    prediction = generator.integers(0, 3, size, np.uint8)
    stride = max(crop // 2, 1)
    if min(resized) < crop:
        resized = (max(resized[0], crop), max(resized[1], crop))
    counts = boundary_counts(prediction, label, resized, WindowConfig(None, crop, stride))
    expected = [
        plain_counts(prediction, label, resized, width, offset, crop, stride)
        for offset in (0, stride // 2)
        for width in WIDTHS
    ]
    assert list(zip(counts.errors.tolist(), counts.pairs.tolist(), strict=True)) == expected


@pytest.mark.parametrize(
    ("length", "edges"),
    [(336, (112, 224)), (448, (112, 224, 336)), (497, (112, 224, 273, 336, 448)), (224, ()), (200, ())],
)
def test_edges_by_hand(length, edges):
    assert window_edges(length, 224, 112) == edges


def counts_by_name(prediction, label, resized=(336, 448)):
    counts = boundary_counts(prediction, label, resized, WINDOWS)
    names = ("ber_1", "ber_8", "control_1", "control_8")
    return dict(zip(names, zip(counts.errors.tolist(), counts.pairs.tolist(), strict=True), strict=True))


def test_a_jump_on_an_edge_is_an_error_there_and_nowhere_else():
    label = np.zeros((336, 448), np.uint8)
    prediction = label.copy()
    prediction[:, 112:] = 1
    counts = counts_by_name(prediction, label)
    assert counts["ber_1"] == (336, 336 * 3 + 448 * 2)
    assert counts["ber_8"] == (336 * 8, (336 * 3 + 448 * 2) * 8)
    assert counts["control_1"][0] == 0


def test_a_jump_of_the_truth_excuses_the_prediction():
    label = np.zeros((336, 448), np.uint8)
    label[:, 112:] = 1
    assert counts_by_name(label, label)["ber_1"] == (0, 336 * 2 + 448 * 2)


def test_ignored_pixels_form_no_pair():
    label = np.full((336, 448), 255, np.uint8)
    assert counts_by_name(label, label)["ber_1"] == (0, 0)


def test_widths_are_of_the_resized_image():
    label = np.zeros((672, 896), np.uint8)
    prediction = label.copy()
    prediction[:, 224:] = 1
    assert counts_by_name(prediction, label)["ber_1"][0] == 672 * 2  # one resized pixel is two of the label


def test_an_image_of_one_window_adds_nothing():
    label = np.zeros((200, 210), np.uint8)
    counts = boundary_counts(label, label, (200, 210), WINDOWS)
    assert counts.pairs.tolist() == [0, 0, 0, 0]
    assert all(np.isnan(rate) for rate in counts.rates().values())


def test_counts_add_up_and_are_divided_once():
    many, few = BoundaryCounts(np.array([1, 0, 0, 0]), np.array([2, 1, 1, 0])), BoundaryCounts.zeros()
    few = few.merge(BoundaryCounts(np.array([0, 0, 0, 0]), np.array([98, 0, 0, 0])))
    rates = many.merge(few).rates()
    assert rates["ber_1"] == pytest.approx(1.0)
    assert rates["ber_8"] == 0
    assert np.isnan(rates["control_8"])
