"""Proxy anchors: each query becomes the mean of the tokens that resemble it (DESIGN 3.1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gla_jax.attention.buffer import Buffer
from gla_jax.attention.calibrate import slope, uncalibrated
from gla_jax.attention.products import for_anchors, key_sums, similarities
from gla_jax.config import MethodConfig
from gla_jax.support.arrays import Array, Bool, Float, l2_normalize, typed


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
def zero_sums(queries: Float[Array, "q D"]) -> AnchorSums:
    """The sums over no keys, which merge leaves as they are."""
    return AnchorSums(jnp.zeros_like(queries), jnp.zeros_like(queries[:, 0]))


@typed
def positives(queries: Float[Array, "q D"], buffer: Buffer, method: MethodConfig) -> Bool[Array, "q b"]:
    """Mask M: keys that are valid and resemble a query by more than rho."""
    rho = uncalibrated(method.anchor_threshold, method)
    return (similarities(queries, for_anchors(buffer, method)) > rho) & buffer.valid[None]


@typed
def soft_positives(queries: Float[Array, "q D"], buffer: Buffer, method: MethodConfig) -> Float[Array, "q b"]:
    """Mask M with sigmoids of width mask_temperature around rho, 0 where a key is not valid."""
    mask = jax.nn.sigmoid(
        (similarities(queries, for_anchors(buffer, method)) - uncalibrated(method.anchor_threshold, method))
        * slope(method)
        / method.mask_temperature
    )
    return mask * buffer.valid.astype(jnp.float32)[None]


@typed
def positive_sums(queries: Float[Array, "q D"], buffer: Buffer, method: MethodConfig) -> AnchorSums:
    """Sum and count of the positives of every query among some keys."""
    buffer = for_anchors(buffer, method)
    if buffer.key_parts is not None and buffer.weights is None and method.mask_temperature is None:
        return _sums_of_parts(queries, buffer, method)
    mask = (positives if method.mask_temperature is None else soft_positives)(queries, buffer, method)
    if buffer.weights is None:
        return AnchorSums(key_sums(mask, buffer, method), mask.astype(jnp.float32).sum(1))
    # Of a hard mask they are whole numbers up to 256, which 16 bits hold exactly too.
    weights = mask.astype(jnp.float32) * buffer.weights[None]
    split = mask.dtype == bool and buffer.key_parts is not None
    exact = weights.astype(buffer.key_parts.dtype) if split else weights
    return AnchorSums(key_sums(exact, buffer, method), weights.sum(1))


def _sums_of_parts(queries: Array, buffer: Buffer, method: MethodConfig) -> AnchorSums:
    """positive_sums by keys in parts, whose rows are 0 where a key is not valid."""
    rho = uncalibrated(method.anchor_threshold, method)
    dtype, positive = buffer.key_parts.dtype, similarities(queries, buffer) > rho
    if dtype == jnp.float16:
        # A GPU's product then ends in these 16 bits; booleans, which XLA prefers, would be written, read and converted.
        ones, zeros = jax.lax.optimization_barrier((jnp.ones((), dtype), jnp.zeros((), dtype)))
        mask = jax.lax.optimization_barrier(jnp.where(positive, ones, zeros))
    else:
        mask = positive.astype(dtype)
    # Rows of 0 add nothing to a sum, and are counted where 0 is above the threshold.
    padding = jnp.where(rho < 0, (~buffer.valid).astype(jnp.float32).sum(), 0.0)
    # Nor has what the parts were made from a slope there; this costs nothing where no gradient is taken.
    buffer = buffer._replace(keys=jnp.where(buffer.valid[:, None], buffer.keys, 0))
    return AnchorSums(key_sums(mask, buffer, method), mask.astype(jnp.float32).sum(1) - padding)


@typed
def next_anchors(sums: AnchorSums, own_keys: Float[Array, "q D"]) -> Anchors:
    """Means of the positives, of length one; a query without any keeps its own token."""
    missing = jnp.maximum(1.0 - sums.count, 0.0)  # 1 only for rows without positives (hard masks count whole tokens)
    counts = sums.count + missing
    total = sums.total + missing[:, None] * own_keys
    return Anchors(l2_normalize(total / counts[:, None]), counts)
