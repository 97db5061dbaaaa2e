"""Windows stitched to one canvas of patches, over which a transformer block attends (OV-Stitcher; our reading)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gla_jax.attention.buffer import MARGIN
from gla_jax.support.arrays import Array, Bool, Float, Int, typed
from gla_jax.towers.attention import QKV, attention_weights, merge_heads, split_heads

CHUNK_BYTES = 2**26  # of the scores that are in memory together


class Canvas(NamedTuple):
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
def stitch_canvas(origins: Int[Array, "W 2"], valid: Bool[Array, " W"], tokens: int, patch_size: int) -> Canvas:
    """The canvas of an image; a token lies in the cell that holds its centre.

    Args:
        origins: top-left pixel (row, column) of every window.
        valid: False for padded windows.
        tokens: S of a window, a square number.
        patch_size: pixels along a side of a token.
    """
    steps = (2 * jnp.arange(round(tokens**0.5), dtype=jnp.int32) + 1) * patch_size
    rows, columns = ((2 * axis[:, None] + steps[None]) // (2 * patch_size) + MARGIN for axis in origins.T)
    # One number a cell; windows that shift back need not lie on the grid of the others.
    numbers = rows[:, :, None] * 2**15 + columns[:, None, :]
    numbers = jnp.where(valid[:, None, None], numbers, -1).reshape(-1)
    last = jnp.iinfo(jnp.int32).max
    distinct, cell = jnp.unique(numbers, size=numbers.size, fill_value=last, return_inverse=True)
    count = jax.ops.segment_sum(jnp.ones(numbers.size, jnp.float32), cell, numbers.size)
    return Canvas(cell, (distinct >= 0) & (distinct < last), count)


@typed
def attend_canvas(
    qkv: QKV, valid: Bool[Array, " t"], num_heads: int, precision: str = "highest"
) -> Float[Array, "t C"]:
    """Softmax attention of all heads over the valid tokens, in chunks of queries.

    Args:
        qkv: three arrays [t C], heads side by side.
        valid: tokens that may be seen.
        num_heads: H, which divides C.
        precision: of both matrix products, in JAX's words.
    """
    queries, keys, values = (split_heads(part[None], num_heads) for part in qkv)  # [1 H t K]
    count = queries.shape[2]
    rows = min(max(CHUNK_BYTES // (4 * num_heads * count), 1), count)
    padded = jnp.pad(queries, ((0, 0), (0, 0), (0, -count % rows), (0, 0)))
    chunks = padded.reshape(1, num_heads, -1, rows, queries.shape[3]).transpose(2, 0, 1, 3, 4)
    seen = jnp.broadcast_to(valid[None], (rows, count))

    def attend(part: Array) -> Array:
        weights = attention_weights(part, keys, seen, precision=precision).astype(values.dtype)
        return jnp.einsum("bhts,bhsk->bhtk", weights, values, precision=precision)

    attended = jax.lax.map(attend, chunks).transpose(1, 2, 0, 3, 4).reshape(1, num_heads, -1, queries.shape[3])
    return merge_heads(attended)[0, :count]
