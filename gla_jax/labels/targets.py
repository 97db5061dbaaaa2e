"""The truth on the tokens of windows: from labels of pixels to a class for every token."""

import numpy as np

from gla_jax.images.windows import WindowGrid
from gla_jax.support.arrays import Int, Integer

UNLABELLED = -1


def token_targets(
    label: Integer[np.ndarray, "h w"], grid: WindowGrid, shape: tuple[int, int], ignore: int
) -> Int[np.ndarray, "W S"]:
    """The class under the centre of every token, UNLABELLED where ignored, beside the image or in a padded window.

    Args:
        label: the class of every pixel of the image.
        grid: of its windows.
        shape: (W, S), W with padding.
        ignore: value of pixels that have no class.
    """
    side = round(shape[1] ** 0.5)

    def pixels(starts: tuple[int, ...], length: int, target: int) -> Int[np.ndarray, " windows*side"]:
        """The pixel of the image under each centre along an axis, -1 beside the image."""
        places = (np.array(starts)[:, None] + (np.arange(side) + 0.5) * grid.crop / side).ravel()
        return np.where((places >= 0) & (places < length), np.floor(places * target / length), -1).astype(int)

    rows = pixels(grid.row_starts, grid.height, label.shape[0])[:, None]
    columns = pixels(grid.column_starts, grid.width, label.shape[1])[None]
    classes = label[rows, columns].astype(np.int32)
    classes[(rows < 0) | (columns < 0) | (classes == ignore)] = UNLABELLED
    return np.pad(split_windows(classes, grid), ((0, shape[0] - grid.count), (0, 0)), constant_values=UNLABELLED)


def split_windows(per_token: np.ndarray, grid: WindowGrid) -> np.ndarray:
    """Tokens that lie as in the image [y x] by window [W S]: the inverse of stitch.token_grid."""
    rows, columns = len(grid.row_starts), len(grid.column_starts)
    return per_token.reshape(rows, -1, columns, per_token.shape[1] // columns).swapaxes(1, 2).reshape(grid.count, -1)
