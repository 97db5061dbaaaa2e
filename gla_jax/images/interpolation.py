"""Interpolation along one axis as a matrix: bilinear for token grids, logits and maps, bicubic for position tables."""

from functools import lru_cache

import numpy as np

from gla_jax.support.shapes import Float


@lru_cache(maxsize=256)
def bilinear_matrix(source: int, target: int) -> Float[np.ndarray, "target source"]:
    """Bilinear interpolation along one axis, float32: half-pixel centres, taps clamped at the ends, no antialias."""
    position = np.maximum((np.arange(target) + 0.5) * source / target - 0.5, 0.0)
    low = np.minimum(position.astype(int), source - 1)
    fraction = position - low
    return _matrix(source, [(low, 1 - fraction), (low + 1, fraction)])


@lru_cache(maxsize=64)
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
