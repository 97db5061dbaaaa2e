"""Window geometry: a pixel that no window covers, or a window out of place, is a hole in somebody's mask."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gla_jax.config import SegmenterConfig, WindowConfig, without_gla
from gla_jax.images.windows import (
    CLIP_MEAN,
    OPENAI_MEAN,
    PIECES,
    axis_starts,
    bucket,
    cut_canvas,
    cut_windows,
    piece_bytes,
    window_grid,
)
from gla_jax.pipeline import SegmenterParams, encode_windows
from gla_jax.predict.model import image_grid, prepare_image, stack_canvas
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


@pytest.mark.parametrize("kind", [(8, 6), (32, 16), (16, 16)])
@pytest.mark.parametrize("size", [(1, 1), (40, 3), (5, 61), (31, 33), (64, 48), (16, 70)])
def test_windows_cut_on_the_device_are_those_of_the_host_to_the_bit(size, kind):
    """A pixel that differs moves every figure compared with earlier ones."""
    crop, stride = kind
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    mean = (0.5, 0.25, 0.125)
    prepared = prepare_image(image, WindowConfig(None, crop, stride), mean=mean)
    canvas = jax.tree.map(lambda leaf: leaf[0], stack_canvas([prepared]))
    found = jax.jit(cut_canvas, static_argnums=(1, 2))(canvas, crop, mean)
    for ours, theirs in zip(found, prepared.windows, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_every_byte_is_divided_by_255_to_the_bit_in_a_compiled_program():
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    canvas = jax.tree.map(lambda leaf: leaf[0], stack_canvas([prepare_image(image, WindowConfig(None, 16, 8))]))
    found = jax.jit(cut_canvas, static_argnums=(1, 2))(canvas, 16, OPENAI_MEAN).pixels
    np.testing.assert_array_equal(found[0, 1].ravel(), np.arange(256, dtype=np.float32) / np.float32(255))


@given(size=st.tuples(st.integers(1, 3000), st.integers(1, 3000)))
def test_every_image_fits_the_canvas_of_its_number_of_windows(size):
    """The canvas knows that number alone, so sizes of images add no programs."""
    settings = WindowConfig(None, crop=224, stride=112)
    grid = window_grid(*size, settings)
    assert 3 * (size[0] * size[1] + 2 * 224) <= PIECES * piece_bytes(bucket(grid.count), 224, 112)


def test_an_image_goes_up_once_and_not_window_by_window():
    """Bytes of the windows as float32 over those that are sent, of VOC, Cityscapes and Cityscapes at its own size."""
    for short_side, size, times in ((336, (375, 500), 7.5), (560, (1024, 2048), 11), (None, (1024, 2048), 15)):
        settings = WindowConfig(short_side, crop=224, stride=112)
        count = bucket(image_grid(size, settings).count)
        sent = sum(map(np.size, stack_canvas([prepare_image(np.zeros((*size, 3), np.uint8), settings)]).pieces))
        assert count * 3 * 224**2 * 4 > times * sent


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
