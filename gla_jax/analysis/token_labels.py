"""Ground truth on the tokens of an image's windows."""

import numpy as np

from gla_jax.images.windows import WindowGrid
from gla_jax.support.shapes import Int, Integer

UNLABELLED = -1


def token_targets(
    label: Integer[np.ndarray, "h w"], grid: WindowGrid, windows: int, tokens: int, ignore: int
) -> Int[np.ndarray, "W S"]:
    """The class under the centre of every token, UNLABELLED where ignored, beside the image or in a padded window."""
    side = round(tokens**0.5)
    centres = (np.arange(side) + 0.5) * grid.crop / side
    targets = np.full((windows, side, side), UNLABELLED, np.int32)
    for index, (top, left) in enumerate(grid.origins):
        rows, columns = top + centres, left + centres
        y = np.floor(rows * label.shape[0] / grid.height).astype(int)
        x = np.floor(columns * label.shape[1] / grid.width).astype(int)
        inside = ((rows >= 0) & (rows < grid.height))[:, None] & ((columns >= 0) & (columns < grid.width))[None]
        found = label[np.clip(y, 0, label.shape[0] - 1)[:, None], np.clip(x, 0, label.shape[1] - 1)[None]].astype(int)
        targets[index] = np.where(inside & (found != ignore), found, UNLABELLED)
    return targets.reshape(windows, tokens)
