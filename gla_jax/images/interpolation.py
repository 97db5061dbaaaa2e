"""Interpolation along one axis as a matrix: bilinear for token grids, logits and maps, bicubic for position tables."""

from functools import lru_cache

import numpy as np

from gla_jax.support.shapes import Float


@lru_cache(maxsize=256)
def bilinear_matrix(source: int, target: int) -> Float[np.ndarray, "target source"]:
    """Bilinear interpolation along one axis, float32: half-pixel centres, taps clamped at the ends, no antialias."""
    position = np.maximum((np.arange(target) + 0.5) * source / target - 0.5, 0.0)
    low = np.minimum(position.astype(int), source - 1)
    high = np.minimum(low + 1, source - 1)
    fraction = position - low
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target), low), 1 - fraction)
    np.add.at(matrix, (np.arange(target), high), fraction)
    matrix = matrix.astype(np.float32)
    matrix.flags.writeable = False
    return matrix


@lru_cache(maxsize=64)
def bicubic_matrix(source: int, target: int, scale: float) -> Float[np.ndarray, "target source"]:
    """Bicubic interpolation along one axis, float32: PyTorch's interpolate(scale_factor=scale), no antialias.

    Cell x lies at (x + 0.5) / scale - 0.5 of the source, whatever target is. Kernel a = -0.75, taps clamped at ends.
    """
    # In float32, as PyTorch: at place 30 a rounding moves the weights by as much as the tolerance of a parity test.
    position = np.float32(1 / scale) * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    low = np.floor(position).astype(int)
    fraction = position - low.astype(np.float32)
    matrix = np.zeros((target, source), np.float32)
    for tap in range(-1, 3):
        column = np.clip(low + tap, 0, source - 1)
        np.add.at(matrix, (np.arange(target), column), _cubic(np.abs(fraction - np.float32(tap))))
    matrix.flags.writeable = False
    return matrix


def _cubic(distance: Float[np.ndarray, " x"]) -> Float[np.ndarray, " x"]:
    """Keys' kernel with PyTorch's a = -0.75 at distances of 0 to 2."""
    a, d = np.float32(-0.75), distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, far).astype(np.float32)
