"""Sliding windows over an image: their places, their pixels, and the padding that keeps compiled programs few.

An image goes to the device as bytes, once, and its windows are cut there: they overlap and are float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gla_jax.config import MAX_SIDE, WindowConfig
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


PIECES = 16  # of a canvas: those behind an image's last byte need not be sent
# x / 255 as the sum of two products, for every byte x to the bit: the first product is exact. XLA would divide by
# multiplying with 1 / 255, which gives other numbers.
PER_255 = np.float32(32897 * 2.0**-23), np.float32(1 / 255 - 32897 * 2.0**-23)


class Overlaps(NamedTuple):
    """Tokens that have the same top-left pixel, for the setting merge_overlaps: merged ones, padded, of N = W S.

    merged [W S] int32: index of the merged token that each token is part of, -1 in padded windows; members [merged
    copies] int32: indices of the tokens of each merged one, -1 for none. Stacks of several images have one axis more.
    """

    merged: Int[Array, "*B W S"] | Int[np.ndarray, "*B W S"]
    members: Int[Array, "*B merged copies"] | Int[np.ndarray, "*B merged copies"]


class Windows(NamedTuple):
    """The windows of one image, padded to a bucket.

    pixels [W 3 c c] float32 RGB in 0..1; valid [W] False for padding; origins [W 2] int32, row and column of the
    top-left pixel in the resized image (negative where the image is smaller than a window); overlaps: read under the
    setting merge_overlaps alone.
    """

    pixels: Float[Array, "W 3 c c"] | Float[np.ndarray, "W 3 c c"]
    valid: Bool[Array, " W"] | Bool[np.ndarray, " W"]
    origins: Int[Array, "W 2"] | Int[np.ndarray, "W 2"]
    overlaps: Overlaps | None = None


class Canvas(NamedTuple):
    """A resized image before its windows are cut: arrays of one size for all images of one padded number of windows.

    pieces: together the RGB bytes of the image, row by row, after those of `crop` pixels and before as many; shape [2]
    int32: its height and width; valid [W], origins [W 2] and overlaps: of Windows. Stacks of several images have one
    axis more.
    """

    pieces: tuple[UInt8[Array, "*B b"], ...]
    shape: Int[Array, "*B 2"] | Int[np.ndarray, "*B 2"]
    valid: Bool[Array, "*B W"] | Bool[np.ndarray, "*B W"]
    origins: Int[Array, "*B W 2"] | Int[np.ndarray, "*B W 2"]
    overlaps: Overlaps | None = None


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


def padded_origins(grid: WindowGrid, padded: int) -> tuple[Bool[np.ndarray, " W"], Int[np.ndarray, "W 2"]]:
    """valid and origins of Windows."""
    origins = np.zeros((padded, 2), np.int32)
    origins[: grid.count] = grid.origins
    return np.arange(padded) < grid.count, origins


@lru_cache(maxsize=16)
def token_overlaps(grid: WindowGrid, padded: int, patch_size: int, devices: int = 1) -> Overlaps:
    """Tokens of all windows by their top-left pixel; a token with a pixel of its own is merged with none.

    Args:
        grid: places of the W windows.
        padded: number of windows with padding.
        patch_size: pixels along a side of a token.
        devices: that share the merged tokens evenly.
    """
    steps = np.arange(grid.crop // patch_size) * patch_size
    rows, columns = grid.origins[:, :1] + steps, grid.origins[:, 1:] + steps  # [W side]
    pixels = rows[:, :, None] * 2 * MAX_SIDE + columns[:, None]  # one number a pixel
    _, first, merged = np.unique(pixels, return_index=True, return_inverse=True)
    # In the order of the first window that shows them: neighbours in the image stay in one block of the attention.
    merged = first.argsort().argsort()[merged.ravel()]
    counts, by_pixel = np.bincount(merged), merged.argsort(kind="stable")
    tokens = len(steps) ** 2
    # Padded as windows are, so that few sizes compile.
    length = bucket(-(-len(counts) // tokens)) * tokens
    members = np.full((-(-length // devices) * devices, counts.max()), -1, np.int32)
    # The tokens of a pixel stand side by side in by_pixel; `place` counts each of them from 0.
    place = np.arange(merged.size) - np.repeat(counts.cumsum() - counts, counts)
    members[merged[by_pixel], place] = by_pixel
    merged = np.pad(merged.reshape(-1, tokens), ((0, padded - grid.count), (0, 0)), constant_values=-1)
    return Overlaps(merged.astype(np.int32), members)


def stack_overlaps(images: Sequence[Overlaps]) -> Overlaps:
    """Those of images of one padded number of windows, members padded to the largest."""
    rows, copies = (max(image.members.shape[axis] for image in images) for axis in (0, 1))

    def padded(members: Int[np.ndarray, "merged copies"]) -> Int[np.ndarray, "_ _"]:
        missing = rows - members.shape[0], copies - members.shape[1]
        return np.pad(members, [(0, most) for most in missing], constant_values=-1)

    return Overlaps(np.stack([each.merged for each in images]), np.stack([padded(each.members) for each in images]))


def piece_bytes(windows: int, crop: int, stride: int) -> int:
    """Bytes of a piece of the canvas of all images of up to `windows` windows, the largest of which is a strip."""
    beside = crop - stride
    pixels = beside**2 + beside * stride * (windows + 1) + stride**2 * windows + 2 * crop
    return -(-3 * pixels // PIECES)


def image_pieces(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], crop: int, length: int
) -> list[UInt8[np.ndarray, "B b"]]:
    """The pieces, `length` bytes each, of the canvases of some images, up to the last byte of the largest one."""
    edge = 3 * crop
    used = -(-(max(image.size for image in images) + 2 * edge) // length)
    flat = np.zeros((len(images), used * length), np.uint8)
    for row, image in zip(flat, images, strict=True):
        row[edge : edge + image.size] = image.ravel()
    return [flat[:, index * length : (index + 1) * length] for index in range(used)]


def cut_canvas(canvas: Canvas, crop: int, mean: Channels) -> Windows:
    """The windows of one image, cut on the device: those of cut_windows to the bit."""
    bytes_, shape, valid, origins = jnp.concatenate(canvas.pieces), *map(jnp.asarray, canvas[1:4])
    steps, height, width = jnp.arange(crop, dtype=jnp.int32), shape[0], shape[1]
    rows, columns = origins[:, :1] + steps[None], origins[:, 1:] + steps[None]
    # The edges of `crop` pixels keep every line of a window inside, also where it begins left of a narrow image.
    first = 3 * (crop + jnp.clip(rows, 0, height - 1) * width + origins[:, 1:])
    lines = jax.vmap(lambda start: jax.lax.dynamic_slice_in_dim(bytes_, start, 3 * crop))(first.reshape(-1))
    pixels = lines.reshape(*rows.shape, crop, 3).transpose(0, 3, 1, 2).astype(jnp.float32)
    inside_rows = (rows >= 0) & (rows < height) & valid[:, None]
    inside_columns = (columns >= 0) & (columns < width)
    inside = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
    colour = jnp.asarray(mean, jnp.float32).reshape(1, 3, 1, 1)
    pixels = jnp.where(inside, pixels * PER_255[0] + pixels * PER_255[1], colour)
    return Windows(pixels, valid, origins, canvas.overlaps)


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
    for window, (row, column) in enumerate(grid.origins):
        top, left = max(row, 0), max(column, 0)
        piece = planes[:, top : row + crop, left : column + crop]
        if piece.shape != pixels[window].shape:  # only the windows that reach beyond the image
            pixels[window] = colour
        pixels[window, :, top - row :, left - column :][:, : piece.shape[1], : piece.shape[2]] = piece
    return Windows(pixels, *padded_origins(grid, padded))
