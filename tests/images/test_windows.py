"""Window geometry: a pixel that no window covers, or a window out of place, is a hole in somebody's mask."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gla_jax.config import SegmenterConfig, WindowConfig, without_gla
from gla_jax.images.windows import CLIP_MEAN, axis_starts, bucket, cut_windows, window_grid
from gla_jax.pipeline import SegmenterParams, encode_windows
from gla_jax.towers.clip import ClipImage
from tests import oracle
from tests.small_models import IMAGE, random_params, small_clip


@given(length=st.integers(1, 3000), crop=st.integers(1, 512), stride=st.integers(1, 512))
def test_windows_lie_as_the_rule_says(length, crop, stride):
    stride = min(stride, crop)
    starts = axis_starts(length, crop, stride)
    covered = np.zeros(length, bool)
    for start in starts:
        covered[max(start, 0) : start + crop] = True
    assert covered.all()
    assert list(starts) == sorted(set(starts))
    if length >= crop:
        assert [(start, start + crop) for start in starts] == oracle.axis_windows(length, crop, stride)


@pytest.mark.parametrize(
    ("length", "starts"),
    [(336, (0, 112)), (448, (0, 112, 224)), (497, (0, 112, 224, 273)), (224, (0,)), (200, (-12,)), (201, (-11,))],
)
def test_windows_by_hand(length, starts):
    assert axis_starts(length, 224, 112) == starts


@given(count=st.integers(1, 5000))
def test_buckets_hold_and_waste_little(count):
    padded = bucket(count)
    assert count <= padded <= count * 1.125
    assert bucket(padded) == padded


def test_buckets_are_few():
    assert len({bucket(count) for count in range(1, 1025)}) <= 8 + 8 * 7


def test_a_small_image_is_padded_with_clips_mean_the_smaller_half_first():
    image = np.full((5, 8, 3), 255, np.uint8)
    windows = cut_windows(image, window_grid(5, 8, WindowConfig(None, crop=8, stride=4)))
    assert windows.pixels.shape == (1, 3, 8, 8)
    inside = windows.pixels[0, :, 1:6]
    np.testing.assert_array_equal(inside, np.ones((3, 5, 8), np.float32))
    np.testing.assert_array_equal(windows.pixels[0, :, 0], np.tile(CLIP_MEAN[:, None], 8))
    np.testing.assert_array_equal(windows.pixels[0, :, 6:], np.tile(CLIP_MEAN[:, None, None], (1, 2, 8)))


def test_windows_hold_the_pixels_at_their_origins():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 31, 3), dtype=np.uint8)
    grid = window_grid(20, 31, WindowConfig(None, crop=8, stride=6))
    windows = cut_windows(image, grid, padded=grid.count + 2)
    assert windows.valid.sum() == grid.count == 15
    for pixels, (row, column) in zip(windows.pixels[: grid.count], windows.origins, strict=False):
        expected = image[row : row + 8, column : column + 8].transpose(2, 0, 1) / np.float32(255)
        np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("wrong", [{"stride": 300}, {"crop": 0}, {"short_side": -1}])
def test_impossible_windows_are_refused(wrong):
    with pytest.raises(ValueError, match=r"stride|crop|short_side"):
        WindowConfig(**wrong)


def test_a_clip_sees_pixels_by_its_own_mean_and_outside_the_image_nothing():
    """LAION's L/14 was trained with mean and deviation 0.5; by OpenAI's numbers it sees every colour shifted."""
    mean, deviation = (0.5, 0.25, 0.5), (0.5, 0.5, 0.25)
    spec = replace(IMAGE, pixel_mean=mean, pixel_std=deviation)
    weights = jax.tree.map(jnp.asarray, random_params(small_clip(), 0)["image"])
    image = np.random.default_rng(0).integers(0, 256, (20, 32, 3), np.uint8)
    windows = cut_windows(image, window_grid(20, 32, WindowConfig(None, crop=32, stride=16)), mean=mean)
    seen = np.zeros((1, 3, 32, 32), np.float32)
    seen[0, :, 6:26] = ((image / 255 - mean) / deviation).transpose(2, 0, 1)
    config = SegmenterConfig(method=without_gla("maskclip"))
    found = jax.jit(encode_windows)(SegmenterParams(clip=weights, clip_spec=spec), windows, config).residual
    expected = jax.jit(lambda w, x: ClipImage(spec).apply({"params": w}, x, method="encode").residual)(weights, seen)
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-4, atol=1e-5)
