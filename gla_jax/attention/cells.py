"""Windows stitched to cells of a patch each, for a block that attends over all of them (OV-Stitcher; our reading)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gla_jax.attention.buffer import MARGIN
from gla_jax.support.arrays import Array, Bool, Float, Int, typed


class Cells(NamedTuple):
    """Cells of an image, of a patch each, and the tokens of all windows that lie in them; there are N slots for cells.

    cell [N]: slot of every token; valid [N]: slots that hold a cell; count [N]: tokens in each.
    """

    cell: Int[Array, " N"]
    valid: Bool[Array, " N"]
    count: Float[Array, " N"]

    def average(self, tokens: Float[Array, "W S C"]) -> Float[Array, "N C"]:
        """The mean over the tokens of each cell, 0 for slots without one."""
        flat = tokens.reshape(-1, tokens.shape[-1]).astype(jnp.float32)
        return jax.ops.segment_sum(flat, self.cell, self.count.size) / jnp.maximum(self.count, 1.0)[:, None]


@typed
def stitch_cells(origins: Int[Array, "W 2"], valid: Bool[Array, " W"], tokens: int, patch_size: int) -> Cells:
    """The cells of an image; a token lies in the one that holds its centre.

    Args:
        origins: top-left pixel (row, column) of every window.
        valid: False for padded windows.
        tokens: S of a window, a square number.
        patch_size: pixels along a side of a token.
    """
    # Twice the centres of tokens along an axis, which are whole numbers for odd patches too.
    steps = (2 * jnp.arange(round(tokens**0.5), dtype=jnp.int32) + 1) * patch_size
    rows, columns = ((2 * axis[:, None] + steps[None]) // (2 * patch_size) + MARGIN for axis in origins.T)
    # One number a cell; windows that shift back need not lie on the grid of the others.
    numbers = rows[:, :, None] * 2**15 + columns[:, None, :]
    numbers = jnp.where(valid[:, None, None], numbers, -1).reshape(-1)
    # Unique numbers are fewer than tokens: -1 of padded windows and this filling mark slots without a cell.
    last = jnp.iinfo(jnp.int32).max
    distinct, cell = jnp.unique(numbers, size=numbers.size, fill_value=last, return_inverse=True)
    count = jax.ops.segment_sum(jnp.ones(numbers.size, jnp.float32), cell, numbers.size)
    return Cells(cell, (distinct >= 0) & (distinct < last), count)
