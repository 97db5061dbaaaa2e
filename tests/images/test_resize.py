"""The resize must be OpenCV's to the bit: a differing pixel moves every figure compared with published ones."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gla_jax.images.resize import rescale_size, resize_uint8

cv2 = pytest.importorskip("cv2")
SIDES = st.integers(1, 90)


def opencv(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


@given(source=st.tuples(SIDES, SIDES), target=st.tuples(SIDES, SIDES), seed=st.integers(0, 2**32 - 1))
def test_random_images_are_opencvs(source, target, seed):
    image = np.random.default_rng(seed).integers(0, 256, (*source, 3), np.uint8)
    np.testing.assert_array_equal(resize_uint8(image, target), opencv(image, target))


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((128, 192), (64, 96)),  # exactly half, where OpenCV takes another path
        ((64, 96), (128, 192)),
        ((375, 500), (336, 448)),
        ((240, 320), (336, 448)),
        ((512, 1024), (280, 560)),
        ((1, 500), (1, 448)),
        ((375, 1), (336, 1)),
        ((1, 1), (7, 5)),
        ((40, 60), (1, 1)),
        ((37, 41), (37, 41)),
    ],
)
def test_sizes_that_take_their_own_path(source, target):
    image = np.random.default_rng(0).integers(0, 256, (*source, 3), np.uint8)
    np.testing.assert_array_equal(resize_uint8(image, target), opencv(image, target))


def test_photographs_are_opencvs():
    samples = os.environ.get("GLA_JAX_SAMPLES")
    if not samples:
        pytest.skip("GLA_JAX_SAMPLES names no folder of sample images")
    from PIL import Image

    paths = sorted(Path(samples).rglob("images/**/*.jpg")) + sorted(Path(samples).rglob("JPEGImages/*"))
    assert paths
    for path in paths:
        with Image.open(path) as picture:
            image = np.asarray(picture.convert("RGB"))
        for short_side in (336, 560):
            size = rescale_size(*image.shape[:2], short_side)
            np.testing.assert_array_equal(resize_uint8(image, size), opencv(image, size), err_msg=str(path))


def test_a_view_of_an_image_is_read_as_it_looks():
    image = np.random.default_rng(1).integers(0, 256, (50, 80, 3), np.uint8)
    flipped = image[:, ::-1, ::-1]
    np.testing.assert_array_equal(resize_uint8(flipped, (33, 44)), opencv(np.ascontiguousarray(flipped), (33, 44)))


def test_the_same_size_gives_a_copy():
    image = np.zeros((4, 5, 3), np.uint8)
    resized = resize_uint8(image, (4, 5))
    resized[:] = 1
    assert not image.any()


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((480, 640), 336, (336, 448)),
        ((375, 500), 336, (336, 448)),
        ((338, 500), 336, (336, 497)),
        ((427, 640), 336, (336, 504)),
        ((425, 640), 336, (336, 506)),
        ((1024, 2048), 560, (560, 1120)),
        ((240, 320), 336, (336, 448)),
        ((640, 427), 336, (504, 336)),
        ((100, 4000), 336, (51, 2048)),  # the long side caps above 2048 / 336
        ((1, 10000), 336, (1, 2048)),
    ],
)
def test_sizes_by_hand(size, short_side, expected):
    assert rescale_size(*size, short_side) == expected


@pytest.mark.parametrize(
    ("image", "size"),
    [
        (np.zeros((4, 4, 3), np.float32), (2, 2)),
        (np.zeros((4, 4), np.uint8), (2, 2)),
        (np.zeros((4, 4, 4), np.uint8), (2, 2)),
        (np.zeros((0, 4, 3), np.uint8), (2, 2)),
        (np.zeros((4, 4, 3), np.uint8), (0, 2)),
    ],
)
def test_what_is_no_image_is_refused(image, size):
    with pytest.raises(ValueError, match="cannot resize"):
        resize_uint8(image, size)


def test_an_empty_image_has_no_size():
    with pytest.raises(ValueError, match="no size"):
        rescale_size(0, 10, 336)
