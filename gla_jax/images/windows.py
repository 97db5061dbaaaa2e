"""Sliding windows over an image: their places, their pixels, and the padding that keeps compiled programs few."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from gla_jax.config import WindowConfig
from gla_jax.support.arrays import Array, Bool, Float, Int, UInt8

Channels = tuple[float, float, float]
# Of the images OpenAI trained CLIP on; most CLIPs since have taken them over.
OPENAI_MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD: Channels = (0.26862954, 0.26130258, 0.27577711)
CLIP_MEAN, CLIP_STD = np.array(OPENAI_MEAN, np.float32), np.array(OPENAI_STD, np.float32)
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def are_pixel_numbers(mean: Sequence[float], std: Sequence[float]) -> bool:
    """True for a mean and a std that pixels in 0..1 can have; far from these float32 would lose or overflow them."""
    return all(0 <= number <= 1 for number in mean) and all(1e-4 <= number <= 1e4 for number in std)


def normalise(
    pixels: Float[Array, "W 3 c c"], mean: Channels | np.ndarray, std: Channels | np.ndarray
) -> Float[Array, "W 3 c c"]:
    """(pixels - mean) / std per channel."""
    mean, std = (jnp.asarray(x, jnp.float32).reshape(1, 3, 1, 1) for x in (mean, std))
    return (pixels - mean) / std


class Windows(NamedTuple):
    """The windows of one image, padded to a bucket.

    pixels [W 3 c c] float32 RGB in 0..1; valid [W] False for padding; origins [W 2] int32, row and column of the
    top-left pixel in the resized image (negative where the image is smaller than a window).
    """

    pixels: Float[Array, "W 3 c c"] | Float[np.ndarray, "W 3 c c"]
    valid: Bool[Array, " W"] | Bool[np.ndarray, " W"]
    origins: Int[Array, "W 2"] | Int[np.ndarray, "W 2"]


@dataclass(frozen=True)
class WindowGrid:
    """Windows of an image of height x width pixels: every row start with every column start, row by row."""

    height: int
    width: int
    crop: int
    row_starts: tuple[int, ...]
    column_starts: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of windows W."""
        return len(self.row_starts) * len(self.column_starts)

    @property
    def origins(self) -> Int[np.ndarray, "W 2"]:
        """Top-left pixel of every window, [W 2] int32 (row, column)."""
        return np.array([(row, column) for row in self.row_starts for column in self.column_starts], np.int32)


def axis_starts(length: int, crop: int, stride: int) -> tuple[int, ...]:
    """First pixel of each window along an axis (DESIGN 2): the last window is shifted back to end with the image.

    An axis shorter than a window has one window that starts before the image: the missing pixels are split evenly,
    the smaller half first.
    """
    if length < crop:
        return (-((crop - length) // 2),)
    count = max(length - crop + stride - 1, 0) // stride + 1
    return tuple(min(i * stride + crop, length) - crop for i in range(count))


def window_grid(height: int, width: int, config: WindowConfig) -> WindowGrid:
    """The windows of a resized image of height x width pixels."""
    rows, columns = (axis_starts(length, config.crop, config.stride) for length in (height, width))
    return WindowGrid(height, width, config.crop, rows, columns)


def bucket(count: int) -> int:
    """Padded number of `count` things: eight sizes an octave, so that above 8 at most an eighth is padding."""
    if count <= 8:
        return count
    step = 2 ** ((count - 1).bit_length() - 4)
    return -(-count // step) * step


def cut_windows(
    image: UInt8[np.ndarray, "h w 3"], grid: WindowGrid, padded: int | None = None, mean: Channels = OPENAI_MEAN
) -> Windows:
    """The windows of a resized image, as NumPy arrays.

    Args:
        image: RGB uint8 [h w 3], of the grid's size.
        grid: places of the W windows.
        padded: number of windows of the result, by default the bucket of W.
        mean: RGB in 0..1 of pixels outside the image; CLIP's normalisation turns its own mean into zeros.
    """
    padded = bucket(grid.count) if padded is None else padded
    crop = grid.crop
    planes = np.divide(np.ascontiguousarray(image.transpose(2, 0, 1)), np.float32(255))
    colour = np.array(mean, np.float32)[:, None, None]
    pixels = np.empty((padded, 3, crop, crop), np.float32)
    pixels[grid.count :] = colour
    origins = np.zeros((padded, 2), np.int32)
    origins[: grid.count] = grid.origins
    for window, (row, column) in enumerate(grid.origins):
        top, left = max(row, 0), max(column, 0)
        piece = planes[:, top : row + crop, left : column + crop]
        if piece.shape != pixels[window].shape:  # only the windows that reach beyond the image
            pixels[window] = colour
        pixels[window, :, top - row :, left - column :][:, : piece.shape[1], : piece.shape[2]] = piece
    return Windows(pixels, np.arange(padded) < grid.count, origins)
