"""An image brought to its working size and cut into windows: what the host does before the towers."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gla_jax.config import WindowConfig
from gla_jax.images.pixels import OPENAI_MEAN, Channels
from gla_jax.images.resize import rescale_size, resize_uint8
from gla_jax.images.windows import WindowGrid, Windows, bucket, cut_windows, window_grid
from gla_jax.support.shapes import UInt8


class Prepared(NamedTuple):
    """An image cut into windows, padded; the grid they lie on; its own size (h, w) in pixels."""

    windows: Windows
    grid: WindowGrid
    size: tuple[int, int]

    @property
    def count(self) -> int:
        """The padded number of windows: images with the same one share a program."""
        return len(self.windows.valid)


@lru_cache(maxsize=64)
def image_grid(size: tuple[int, int], settings: WindowConfig) -> WindowGrid:
    """The window grid of an image of size (h, w), on its working size."""
    if settings.short_side is not None:
        size = rescale_size(*size, settings.short_side, settings.long_side)
    return window_grid(*size, settings)


def prepare_image(
    image: UInt8[np.ndarray, "h w 3"],
    settings: WindowConfig,
    padded: Callable[[int], int] = bucket,
    mean: Channels = OPENAI_MEAN,
) -> Prepared:
    """The windows of an RGB image brought to its working size.

    Args:
        image: RGB.
        settings: working size, side and stride of the windows.
        padded: from W to the padded number of windows.
        mean: of the CLIP's pixels, 0 to 1, which pixels outside the image take.
    """
    grid = image_grid(image.shape[:2], settings)
    resized = resize_uint8(image, (grid.height, grid.width))
    return Prepared(cut_windows(resized, grid, padded(grid.count), mean), grid, image.shape[:2])
