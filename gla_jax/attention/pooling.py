"""Averages weighted by the similarities themselves, those below a cutoff left out: CLIP-DINOiser's pooling.

w_ij = s_ij where s_ij >= cutoff, else 0;  out_i = sum_j w_ij V_j / (sum_j w_ij + 1e-6). Sums over sets of keys add up.
"""

from typing import NamedTuple

import jax.numpy as jnp

from gla_jax.attention.buffer import Buffer
from gla_jax.attention.products import for_attention, similarities, value_sums
from gla_jax.config import BASELINES, MethodConfig
from gla_jax.support.arrays import Array, Float, Int, typed

EPSILON = 1e-6  # of the release


class PooledSums(NamedTuple):
    """Over some keys: weighted [q C] is the sum of weights times values, total [q] that of the weights.

    kept [q]: the number of keys with a weight, None where it is not counted.
    """

    weighted: Float[Array, "q C"]
    total: Float[Array, " q"]
    kept: Int[Array, " q"] | None = None

    def merge(self, other: "PooledSums") -> "PooledSums":
        """The sums over both sets of keys."""
        kept = None if self.kept is None else self.kept + other.kept
        return PooledSums(self.weighted + other.weighted, self.total + other.total, kept)

    def average(self) -> Float[Array, "q C"]:
        """The weighted mean of the values, 0 where every similarity is below the cutoff."""
        return self.weighted / (self.total + EPSILON)[:, None]


@typed
def similarity_weights(queries: Float[Array, "q D"], keys: Buffer, method: MethodConfig) -> Float[Array, "q b"]:
    """Similarities of queries and valid keys, 0 below the baseline's cutoff."""
    similarity = similarities(queries, for_attention(keys, method))
    kept = (similarity >= BASELINES[method.baseline].cutoff) & keys.valid[None]
    weights = jnp.where(kept, similarity, 0.0)
    return weights if keys.weights is None else weights * keys.weights[None]


@typed
def pooled_sums(queries: Float[Array, "q D"], keys: Buffer, method: MethodConfig, counting: bool = False) -> PooledSums:
    """The sums of some queries over some keys; counting: those with a weight too."""
    weights = similarity_weights(queries, keys, method)  # [q b], times values [b C]
    weighted = value_sums(weights, for_attention(keys, method), method)
    return PooledSums(weighted, weights.sum(1), (weights > 0).sum(1, dtype=jnp.int32) if counting else None)


@typed
def no_sums(queries: Float[Array, "q D"], width: int, counting: bool = False) -> PooledSums:
    """The sums over no keys, which merge leaves as they are; width: C of the values; counting: keys with a weight."""
    zeros = jnp.zeros_like(queries[:, 0])
    kept = zeros.astype(jnp.int32) if counting else None
    return PooledSums(jnp.zeros_like(queries, shape=(len(queries), width)), zeros, kept)
