"""The three figures must be mmsegmentation's: checked by hand and against counting pixel by pixel."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gla_jax.eval.metrics.areas import IGNORE, Areas, image_areas


def pixel_by_pixel(prediction, label, classes):
    """The same figures from a confusion matrix counted in plain Python: rows are labels, columns predictions."""
    kept = [(int(p), int(g)) for p, g in zip(prediction.ravel(), label.ravel(), strict=True) if g != IGNORE]
    confusion = Counter(kept)
    iou, accuracy = [], []
    for c in range(classes):
        right = confusion[c, c]
        predicted = sum(1 for p, _ in kept if p == c)
        labelled = sum(1 for _, g in kept if g == c)
        if predicted + labelled - right:
            iou.append(100 * right / (predicted + labelled - right))
        if labelled:
            accuracy.append(100 * right / labelled)
    labelled = sum(1 for _, g in kept if g < classes)
    right = sum(confusion[c, c] for c in range(classes))
    return tuple(
        sum(values) / len(values) if values else float("nan")
        for values in (iou, accuracy, [100 * right / labelled] if labelled else [])
    )


@st.composite
def image_pairs(draw):
    classes = draw(st.integers(1, 5))
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    values = st.sampled_from([*range(classes), classes, 254, IGNORE])
    dtype = draw(st.sampled_from([np.uint8, np.uint16, np.int32]))
    predictions = st.sampled_from([*range(classes), classes, 200])
    return draw(arrays(dtype, shape, elements=predictions)), draw(arrays(np.uint8, shape, elements=values)), classes


@given(image_pairs())
def test_figures_are_those_of_counting_pixel_by_pixel(pair):
    prediction, label, classes = pair
    scores = image_areas(prediction, label, classes).scores()
    np.testing.assert_allclose(
        (scores.miou, scores.macc, scores.aacc), pixel_by_pixel(prediction, label, classes), rtol=1e-12
    )


@given(image_pairs(), st.integers(0, 6))
def test_parts_merge_to_the_whole(pair, cut):
    prediction, label, classes = pair
    parts = [image_areas(prediction[rows], label[rows], classes) for rows in (slice(None, cut), slice(cut, None))]
    merged = Areas.zeros(classes).merge(parts[0]).merge(parts[1])
    for ours, whole in zip(merged, image_areas(prediction, label, classes), strict=True):
        np.testing.assert_array_equal(ours, whole)
        assert ours.dtype == np.int64


@given(image_pairs())
def test_ignored_pixels_count_nowhere(pair):
    prediction, label, classes = pair
    changed = np.where(label == IGNORE, 0, prediction).astype(prediction.dtype)
    for ours, other in zip(image_areas(prediction, label, classes), image_areas(changed, label, classes), strict=True):
        np.testing.assert_array_equal(ours, other)


def test_a_table_by_hand():
    """Class 0 hits 3 of 4, class 1 hits 1 of 2, class 2 is predicted but never labelled, class 3 does not occur."""
    label = np.array([[0, 0, 0, 0], [1, 1, 255, 255]], np.uint8)
    prediction = np.array([[0, 0, 0, 1], [1, 2, 0, 3]], np.uint8)
    areas = image_areas(prediction, label, 4)
    np.testing.assert_array_equal(areas.intersection, [3, 1, 0, 0])
    np.testing.assert_array_equal(areas.prediction, [3, 2, 1, 0])
    np.testing.assert_array_equal(areas.label, [4, 2, 0, 0])
    scores = areas.scores()
    np.testing.assert_allclose(scores.iou, [75, 100 / 3, 0, np.nan])
    np.testing.assert_allclose(scores.accuracy, [75, 50, np.nan, np.nan])
    assert scores.miou == pytest.approx((75 + 100 / 3 + 0) / 3)
    assert scores.macc == pytest.approx(62.5)
    assert scores.aacc == pytest.approx(100 * 4 / 6)


def test_areas_do_not_lose_pixels_where_float32_would():
    one = Areas(*(np.array([2**24 + 1], np.int64) for _ in range(3)))
    assert one.merge(one).label[0] == 2**25 + 2


def test_more_classes_than_a_byte_holds():
    label = np.array([[300, 999, 65535]], np.uint16)
    areas = image_areas(np.array([[300, 5, 7]], np.uint16), label, 1000, ignore=65535)
    assert areas.intersection[300] == 1
    assert areas.label.sum() == 2
    assert areas.prediction[[5, 7]].tolist() == [1, 0]


def test_nothing_labelled_has_no_figures():
    scores = image_areas(np.zeros((2, 2), np.uint8), np.full((2, 2), IGNORE, np.uint8), 3).scores()
    assert np.isnan([scores.miou, scores.macc, scores.aacc]).all()


def test_what_cannot_be_counted_is_refused():
    labels = np.zeros((2, 2), np.int32)
    with pytest.raises(ValueError, match="negative"):
        image_areas(labels - 1, labels, 3)
    with pytest.raises(ValueError, match="one of the 300 classes"):
        image_areas(labels, labels, 300)
