"""Tokens of several windows at one pixel as one token that counts as often (DESIGN 3.7): our own, off by default."""

from types import ModuleType

import jax
import jax.numpy as jnp

from gla_jax.attention.buffer import Buffer
from gla_jax.images.windows import Overlaps
from gla_jax.support.arrays import Array, Bool, Float, Int, typed


@jax.named_scope("gla-attention")
@typed
def merge_tokens(buffer: Buffer, overlaps: Overlaps | None, form: ModuleType) -> Buffer:
    """A buffer of merged tokens: the mean key and the mean value of each pixel.

    The mean of unit rows is shorter than one: its cosines are the means of theirs, and so are all sums over keys.

    Args:
        buffer: of all tokens.
        overlaps: of the same windows.
        form: of attention; in a ring every device holds its part of the merged tokens.

    Raises ValueError without overlaps.
    """
    if overlaps is None:
        raise ValueError("merge_overlaps needs windows with overlaps; token_overlaps of images/windows.py finds them")
    weights = _weights(overlaps)
    keys, values = (merged_rows(rows, overlaps, form) for rows in (buffer.keys, buffer.values))
    return Buffer(keys, values.astype(buffer.values.dtype), weights > 0, weights=weights)


def _weights(overlaps: Overlaps) -> Array:
    """The number of tokens that each merged one stands for, 0 for padding."""
    return (overlaps.members >= 0).sum(1).astype(jnp.float32)


@typed
def merged_rows(rows: Float[Array, "N D"], overlaps: Overlaps, form: ModuleType) -> Float[Array, "merged D"]:
    """The mean of the rows at each pixel, in float32; arguments as in merge_tokens."""
    columns = jnp.asarray(overlaps.members).T  # [copies merged]: one member of each at a time

    def of_shard(shard: tuple[Array, Array]) -> Array:
        def add(total: Array, tokens: Array) -> tuple[Array, None]:
            return total + _rows_at(*shard, tokens).astype(jnp.float32), None

        # Gathered one by one: a scatter adds in an order that changes from run to run on a GPU.
        start = _rows_at(*shard, columns[0]).astype(jnp.float32)
        return jax.lax.scan(add, start, columns[1:])[0]

    total = form.fold_shards((rows, _first(rows, form)), of_shard, jnp.add)
    return total / jnp.maximum(_weights(overlaps), 1.0)[:, None]


@jax.named_scope("gla-attention")
@typed
def spread_rows(rows: Float[Array, "merged C"], overlaps: Overlaps, form: ModuleType) -> Float[Array, "N C"]:
    """The row of the merged token for every token that is part of it, zeros in padded windows."""
    merged = jnp.asarray(overlaps.merged).reshape(-1)
    return form.fold_shards((rows, _first(rows, form)), lambda shard: _rows_at(*shard, merged), jnp.add)


def _first(rows: Array, form: ModuleType) -> Int[Array, ""]:
    """Index of the first row of this device's shard among those of all devices."""
    return jnp.asarray(form.shard_index() * len(rows), jnp.int32)


def _rows_at(rows: Array, first: Int[Array, ""], indices: Int[Array, " n"]) -> Array:
    """The rows of some indices, zeros for those of other shards and for -1."""
    place = indices - first
    inside: Bool[Array, " n"] = (place >= 0) & (place < len(rows)) & (indices >= 0)
    return jnp.where(inside[:, None], rows[jnp.clip(place, 0, len(rows) - 1)], 0)
