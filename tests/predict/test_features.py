"""Features without classes: the stitched map against float64, its places, and text against it."""

import jax
import numpy as np
import pytest

from gla_jax.config import SegmenterConfig, WindowConfig
from gla_jax.distributed.mesh import make_mesh
from gla_jax.segmenter import Segmenter
from gla_jax.support.errors import UserError
from gla_jax.text.prompts import parse_classes
from tests import oracle
from tests.small_models import random_pair

CONFIG = SegmenterConfig(windows=WindowConfig(short_side=48, crop=32, stride=16))
CLASSES = ["sand; gravel", "water", "a red cloth with dots"]
IMAGE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)  # 48 x 72 when resized


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return Segmenter.from_pretrained(random_pair(tmp_path_factory.mktemp("model")), CONFIG)


@pytest.fixture(scope="module")
def found(segmenter):
    return segmenter.features(IMAGE)


def test_the_map_is_stitched_as_logits_are_and_its_rows_have_length_one(segmenter, found):
    tokens = oracle.l2(np.asarray(segmenter.window_features(IMAGE)[0], np.float64))
    total, count = np.zeros((48, 72, tokens.shape[-1])), np.zeros((48, 72, 1))
    up = oracle.bilinear_matrix(4, 32)
    places = [(y, x) for y, _ in oracle.axis_windows(48, 32, 16) for x, _ in oracle.axis_windows(72, 32, 16)]
    for (y, x), own in zip(places, tokens, strict=False):  # padded windows come last
        total[y : y + 32, x : x + 32] += np.einsum("yi,xj,ije->yxe", up, up, own.reshape(4, 4, -1))
        count[y : y + 32, x : x + 32] += 1
    rows, columns = oracle.bilinear_matrix(48, 6), oracle.bilinear_matrix(72, 9)
    expected = oracle.l2(np.einsum("yi,xj,ije->yxe", rows, columns, total / count))
    np.testing.assert_allclose(found.features, expected, atol=2e-6)


def test_positions_are_the_centres_of_the_cells_in_the_image_as_it_was_read(found):
    assert found.positions.shape == (6, 9, 2)
    np.testing.assert_allclose(found.positions[0, 0], [5, 5])
    np.testing.assert_allclose(found.positions[-1, -2], [55, 75])


def test_text_against_the_map_takes_the_cosines_of_its_cells_to_the_pixels(segmenter, found):
    text_embeddings = segmenter.text_embeddings(parse_classes(CLASSES))
    logits = found.features.astype(np.float64) @ np.asarray(text_embeddings, np.float64).T
    rows, columns = oracle.bilinear_matrix(6, 60), oracle.bilinear_matrix(9, 90)
    prompts = oracle.softmax(40 * np.einsum("yi,xj,ijq->yxq", rows, columns, logits))
    expected = np.stack([prompts[..., :2].max(-1), prompts[..., 2], prompts[..., 3]])
    result = segmenter.segment_features(found, CLASSES, scores=True)
    np.testing.assert_allclose(result.scores, expected, atol=1e-5)
    np.testing.assert_array_equal(result.labels, result.scores.argmax(0))
    assert result.classes == segmenter(IMAGE, CLASSES).classes


def test_a_mesh_gives_the_same_map(segmenter, found):
    split = Segmenter(segmenter.clip, segmenter.vfm, CONFIG, mesh=make_mesh(1, jax.devices()[:2])).features(IMAGE)
    np.testing.assert_allclose(split.features, found.features, atol=1e-5)


def test_features_of_another_clip_are_refused(segmenter, found):
    narrow = type(found)(found.features[..., :3], found.image)
    with pytest.raises(UserError, match="the features have 3 numbers a cell, text 8"):
        segmenter.segment_features(narrow, CLASSES)
