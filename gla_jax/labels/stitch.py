"""From token logits of windows to one map: bilinear to the window, average overlaps, bilinear to the image (DESIGN 2).

All three steps are linear and separable, and windows are a grid of rows and columns, so along each axis they are one
matrix [pixels, windows * tokens]; sizes then enter a compiled program as data.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from gla_jax.images.resize import bilinear_matrix
from gla_jax.images.windows import WindowGrid
from gla_jax.support.arrays import Array, Float, typed


class StitchPlan(NamedTuple):
    """rows [h Wy*gh] and columns [w Wx*gw], float32: pixels of the image from tokens of the window grid."""

    rows: Float[Array, "h y"] | Float[np.ndarray, "h y"]
    columns: Float[Array, "w x"] | Float[np.ndarray, "w x"]


def axis_matrix(
    starts: tuple[int, ...], length: int, crop: int, tokens: int, target: int
) -> Float[np.ndarray, "target windows*tokens"]:
    """Pixels of the image (target of them) from the tokens of all windows along one axis of the resized image.

    starts: first pixel of each window (negative in padding); length: of the resized image; tokens: of one window.
    """
    # Float64 until the end: three small matrices are multiplied, and labels should not depend on their order.
    up = bilinear_matrix(tokens, crop).astype(np.float64)
    placed = np.zeros((length, len(starts), tokens))
    count = np.zeros(length)
    for window, start in enumerate(starts):
        first, last = max(start, 0), min(start + crop, length)
        placed[first:last, window] = up[first - start : last - start]
        count[first:last] += 1
    # Pixels that several windows show get the mean of what they say.
    averaged = placed.reshape(length, -1) / count[:, None]
    if target == length:
        return averaged.astype(np.float32)
    return (bilinear_matrix(length, target).astype(np.float64) @ averaged).astype(np.float32)


def stitch_plan(grid: WindowGrid, side: int, size: tuple[int, int]) -> StitchPlan:
    """The two matrices for windows of side x side tokens and an image of size (h, w) pixels."""
    return StitchPlan(
        axis_matrix(grid.row_starts, grid.height, grid.crop, side, size[0]),
        axis_matrix(grid.column_starts, grid.width, grid.crop, side, size[1]),
    )


@typed
def token_grid(
    tokens: Float[Array, "W S _"] | Float[np.ndarray, "W S _"], rows: int, columns: int
) -> Float[Array, "y x _"] | Float[np.ndarray, "y x _"]:
    """Logits or features of the tokens of rows x columns windows (padded ones dropped), [rows*gh columns*gw _]."""
    side = round(tokens.shape[1] ** 0.5)
    # Windows by rows and columns -> all token rows of a row of windows below each other.
    grid = tokens[: rows * columns].reshape(rows, columns, side, side, -1)
    return grid.transpose(0, 2, 1, 3, 4).reshape(rows * side, columns * side, -1)


@typed
def stitch(grid: Float[Array, "y x Q"], plan: StitchPlan) -> Float[Array, "h w Q"]:
    """Logits of every pixel; give it some rows of the plan to get some rows of the map."""
    rows = jnp.einsum("hy,yxq->hxq", jnp.asarray(plan.rows), grid, precision="highest")
    return jnp.einsum("wx,hxq->hwq", jnp.asarray(plan.columns), rows, precision="highest")
