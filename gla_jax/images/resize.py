"""The image resize of the benchmarks: OpenCV's INTER_LINEAR on uint8, bit for bit, in NumPy, and mmcv's size rule.

OpenCV weighs in 11-bit integers, so no floating-point bilinear gives the same pixels; antialiased ones (Pillow, the
default of jax.image.resize) differ by up to 79 grey levels.
"""

import numpy as np

from gla_jax.support.shapes import Float, Int, UInt8

ONE = 2048  # weight 1.0 in OpenCV's fixed point
ROW_BLOCK = 32  # keeps the 32-bit intermediates of a block in a core's cache


def rescale_size(height: int, width: int, short_side: int, long_side: int = 2048) -> tuple[int, int]:
    """(height, width) with the short side at short_side unless the long side would pass long_side, aspect kept.

    mmcv's Resize(scale=(long_side, short_side), keep_ratio=True): each axis is rounded half up by itself. Raises
    ValueError for an empty image.
    """
    if min(height, width) < 1:
        raise ValueError(f"an image of {height} x {width} pixels has no size to keep")
    scale = min(
        max(short_side, long_side) / max(height, width),
        min(short_side, long_side) / min(height, width),
    )
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
    left, right, left_weight, right_weight = _columns(width, new_width)
    upper, lower, upper_weight, lower_weight = _rows(height, new_height)
    source = np.ascontiguousarray(image).reshape(height, width * 3)
    resized = np.empty((new_height, new_width * 3), np.uint8)
    for top in range(0, new_height, ROW_BLOCK):
        block = slice(top, min(top + ROW_BLOCK, new_height))
        first = upper[block.start]
        rows = source[first : lower[block.stop - 1] + 1]
        across = np.multiply(rows.take(left, axis=1, mode="clip"), left_weight, dtype=np.int32)
        across += np.multiply(rows.take(right, axis=1, mode="clip"), right_weight, dtype=np.int32)
        across >>= 4
        result = _weigh(across.take(upper[block] - first, axis=0), upper_weight[block])
        result += _weigh(across.take(lower[block] - first, axis=0), lower_weight[block])
        result += 2
        result >>= 2
        resized[block] = result
    return resized.reshape(new_height, new_width, 3)


def _weigh(rows: Int[np.ndarray, "r x"], weight: Int[np.ndarray, " r"]) -> Int[np.ndarray, "r x"]:
    rows *= weight[:, None]
    rows >>= 16
    return rows


def _taps(source: int, target: int) -> tuple[Int[np.ndarray, " x"], Float[np.ndarray, " x"]]:
    """Index of the first of two source pixels for every target pixel, and the share of the second, float32."""
    scale = 1.0 / (target / source)  # OpenCV inverts twice, and the last bit shows
    position = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32)
    low = np.floor(position)
    return low.astype(np.int64), position - low


def _weights(share: Float[np.ndarray, " x"]) -> tuple[Int[np.ndarray, " x"], Int[np.ndarray, " x"]]:
    first = np.rint((np.float32(1) - share) * np.float32(ONE))
    return first.astype(np.int32), np.rint(share * np.float32(ONE)).astype(np.int32)


def _columns(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Both taps and weights along x, for interleaved channels. At the edges the weights are clamped as well."""
    low, share = _taps(source, target)
    share[(low < 0) | (low >= source - 1)] = 0
    low = low.clip(0, source - 1)
    high = np.minimum(low + 1, source - 1)
    left, right = ((column[:, None] * 3 + np.arange(3)).ravel() for column in (low, high))
    return left, right, *(weight.repeat(3) for weight in _weights(share))


def _rows(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Both taps and weights along y. At the edges only the taps are clamped: two weighted halves of one row."""
    low, share = _taps(source, target)
    return low.clip(0, source - 1), (low + 1).clip(0, source - 1), *_weights(share)
