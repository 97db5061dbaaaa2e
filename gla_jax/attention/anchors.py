"""Proxy anchors: each query becomes the mean of the tokens that resemble it (DESIGN 3.1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gla_jax.attention.buffer import Buffer, unit_rows
from gla_jax.config import MethodConfig, Number
from gla_jax.support.shapes import Array, Bool, Float, typed


class AnchorSums(NamedTuple):
    """Positives of some queries among some keys: total [q D] is the sum of positive keys, count [q] their number."""

    total: Float[Array, "q D"]
    count: Float[Array, " q"]

    def merge(self, other: "AnchorSums") -> "AnchorSums":
        """The sums over both sets of keys."""
        return AnchorSums(self.total + other.total, self.count + other.count)


class Anchors(NamedTuple):
    """queries P [N D] and counts m [N]: how many tokens the last mask of each query held."""

    queries: Float[Array, "N D"]
    counts: Float[Array, " N"]


@typed
def no_positives(queries: Float[Array, "q D"]) -> AnchorSums:
    """The neutral element of merge."""
    return AnchorSums(jnp.zeros_like(queries), jnp.zeros_like(queries[:, 0]))


@typed
def positives(
    queries: Float[Array, "q D"], keys: Float[Array, "b D"], valid: Bool[Array, " b"], threshold: Number
) -> Bool[Array, "q b"]:
    """M: which keys are valid and resemble a query by more than rho."""
    similarity = jnp.einsum("qd,bd->qb", queries, keys, precision="highest")
    return (similarity > threshold) & valid[None]


@typed
def soft_positives(
    queries: Float[Array, "q D"],
    keys: Float[Array, "b D"],
    valid: Bool[Array, " b"],
    threshold: Number,
    mask_temperature: Number,
) -> Float[Array, "q b"]:
    """M with sigmoids of width t around rho, 0 where a key is not valid."""
    similarity = jnp.einsum("qd,bd->qb", queries, keys, precision="highest")
    return jax.nn.sigmoid((similarity - threshold) / mask_temperature) * valid.astype(jnp.float32)[None]


@typed
def positive_sums(queries: Float[Array, "q D"], buffer: Buffer, config: MethodConfig) -> AnchorSums:
    """Sum and count of the positives of every query among some keys."""
    about = queries, buffer.keys, buffer.valid, config.anchor_threshold
    if config.mask_temperature is None:
        mask = positives(*about).astype(jnp.float32)
    else:
        mask = soft_positives(*about, config.mask_temperature)
    return AnchorSums(jnp.einsum("qb,bd->qd", mask, buffer.keys, precision="highest"), mask.sum(1))


@typed
def next_anchors(sums: AnchorSums, own_keys: Float[Array, "q D"]) -> Anchors:
    """Means of the positives as unit rows; a query without any keeps its own token.

    Written as the missing part of one positive, which is all or nothing under hard masks.
    """
    missing = jnp.maximum(1.0 - sums.count, 0.0)
    counts = sums.count + missing
    total = sums.total + missing[:, None] * own_keys
    return Anchors(unit_rows(total / counts[:, None]), counts)
