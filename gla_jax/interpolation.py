"""Bilinear interpolation along one axis as a matrix: token grids, window logits and whole maps all use it."""

from functools import lru_cache

import numpy as np

from gla_jax.shapes import Float


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
