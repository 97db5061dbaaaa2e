"""Resizing: OpenCV's INTER_LINEAR on uint8, bit for bit, in NumPy, mmcv's size rule, and interpolation as matrices.

The uint8 resize is kept in place of a library's: OpenCV weighs in 11-bit integers, so no floating-point bilinear gives
the same pixels; antialiased ones (Pillow, the default of jax.image.resize) differ by up to 79 grey levels.
"""

import jax.numpy as jnp
import numpy as np

from gla_jax.support.arrays import Array, Float, Int, UInt8
from gla_jax.support.sized_cache import cached_up_to

FIXED_POINT_ONE = 2048  # weight 1.0 in OpenCV's fixed point
KEPT_BYTES = 8 * 2**20  # of each kind of matrix
ROWS_PER_BLOCK = 32  # keeps the 32-bit intermediates of a block in a core's cache


def rescale_size(height: int, width: int, short_side: int, long_side: int = 2048) -> tuple[int, int]:
    """(height, width) with the short side at short_side unless the long side would pass long_side, aspect kept.

    mmcv's Resize(scale=(long_side, short_side), keep_ratio=True): each axis is rounded half up by itself.

    Args:
        height, width: of the image, in pixels.
        short_side: of the result.
        long_side: most of the result.

    Raises:
        ValueError: the image is empty.
    """
    if min(height, width) < 1:
        raise ValueError(f"an image of {height} x {width} pixels has no size to keep")
    least, most = sorted((short_side, long_side))
    scale = min(most / max(height, width), least / min(height, width))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resize_uint8(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """The image at size (height, width), bit-equal to cv2.resize(..., interpolation=cv2.INTER_LINEAR).

    Raises ValueError when the image is not uint8 [h w 3] or a size is below 1.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(*image.shape, *size) < 1:
        raise ValueError(f"cannot resize {image.dtype} {image.shape} to {size}: it takes uint8 [h w 3] and sizes >= 1")
    (height, width), (new_height, new_width) = image.shape[:2], size
    if (height, width) == (new_height, new_width):
        return image.copy()
    # Along x the edges' weights are clamped with the taps, along y the taps alone: two weighted halves of one row.
    left, right, left_weight, right_weight = _taps(width, new_width, clamp_weights=True)
    left, right = ((column[:, None] * 3 + np.arange(3)).ravel() for column in (left, right))  # interleaved channels
    left_weight, right_weight = left_weight.repeat(3), right_weight.repeat(3)
    upper, lower, upper_weight, lower_weight = _taps(height, new_height)
    source = np.ascontiguousarray(image).reshape(height, width * 3)
    resized = np.empty((new_height, new_width * 3), np.uint8)
    for top in range(0, new_height, ROWS_PER_BLOCK):
        block = slice(top, min(top + ROWS_PER_BLOCK, new_height))
        first = upper[block.start]
        rows = source[first : lower[block.stop - 1] + 1]
        across = np.multiply(rows.take(left, axis=1, mode="clip"), left_weight, dtype=np.int32)
        across += np.multiply(rows.take(right, axis=1, mode="clip"), right_weight, dtype=np.int32)
        across >>= 4
        # OpenCV drops 16 bits of each product before the sum, not after it.
        result = np.int32(2)
        for tap, weight in ((upper, upper_weight), (lower, lower_weight)):
            result = result + (across.take(tap[block] - first, axis=0) * weight[block, None] >> 16)
        resized[block] = result >> 2
    return resized.reshape(new_height, new_width, 3)


def resize_uint8_traced(image: UInt8[Array, "h w 3"], size: tuple[int, int]) -> UInt8[Array, "H W 3"]:
    """resize_uint8 inside a program, to the same bytes; the taps are constants of it."""
    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    *columns, left_weight, right_weight = _taps(width, size[1], clamp_weights=True)
    *lines, upper_weight, lower_weight = _taps(height, size[0])
    image = image.astype(jnp.int32)
    left, right = (image[:, taps] for taps in columns)
    across = (left * left_weight[None, :, None] + right * right_weight[None, :, None]) >> 4
    upper, lower = (across[taps] for taps in lines)
    result = 2 + (upper * upper_weight[:, None, None] >> 16) + (lower * lower_weight[:, None, None] >> 16)
    return (result >> 2).astype(jnp.uint8)


def _taps(source: int, target: int, clamp_weights: bool = False) -> tuple[Int[np.ndarray, " x"], ...]:
    """Indices of the two source pixels of every target pixel, and their weights in fixed point, int32."""
    scale = 1.0 / (target / source)  # OpenCV inverts twice, and the last bit shows
    position = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32)
    low = np.floor(position)
    share, low = position - low, low.astype(np.int64)
    if clamp_weights:
        share[(low < 0) | (low >= source - 1)] = 0
        low = low.clip(0, source - 1)
    weights = (np.rint(part * np.float32(FIXED_POINT_ONE)).astype(np.int32) for part in (np.float32(1) - share, share))
    return low.clip(0, source - 1), (low + 1).clip(0, source - 1), *weights


@cached_up_to(KEPT_BYTES)
def bilinear_matrix(source: int, target: int) -> Float[np.ndarray, "target source"]:
    """Bilinear interpolation along one axis, float32: half-pixel centres, taps clamped at the ends, no antialias."""
    position = np.maximum((np.arange(target) + 0.5) * source / target - 0.5, 0.0)
    low = np.minimum(position.astype(int), source - 1)
    fraction = position - low
    return _matrix(source, [(low, 1 - fraction), (low + 1, fraction)])


@cached_up_to(KEPT_BYTES)
def bicubic_matrix(source: int, target: int, scale: float) -> Float[np.ndarray, "target source"]:
    """Bicubic interpolation along one axis, float32: PyTorch's interpolate(scale_factor=scale), no antialias.

    Cell x lies at (x + 0.5) / scale - 0.5 of the source, for any target. Kernel a = -0.75, taps clamped at the ends.
    jax.image.resize has another kernel (a = -0.5) and its own scale: position tables would differ from PyTorch's.
    """
    # In float32, as PyTorch: at place 30 a rounding moves the weights by as much as the tolerance of a parity test.
    position = np.float32(1 / scale) * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    low = np.floor(position).astype(int)
    fraction = position - low.astype(np.float32)
    return _matrix(source, [(low + tap, _cubic(np.abs(fraction - np.float32(tap)))) for tap in range(-1, 3)])


def _matrix(source: int, taps: list[tuple[np.ndarray, np.ndarray]]) -> Float[np.ndarray, "target source"]:
    """Rows with the weights of (columns, weights), summed where clamped columns coincide; read-only, for the cache."""
    target = len(taps[0][0])
    matrix = np.zeros((target, source), taps[0][1].dtype)
    for columns, weights in taps:
        np.add.at(matrix, (np.arange(target), columns.clip(0, source - 1)), weights)
    matrix = matrix.astype(np.float32)
    matrix.flags.writeable = False
    return matrix


def _cubic(distance: Float[np.ndarray, " x"]) -> Float[np.ndarray, " x"]:
    """Keys' kernel with PyTorch's a = -0.75 at distances of 0 to 2."""
    a, d = np.float32(-0.75), distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, far).astype(np.float32)
