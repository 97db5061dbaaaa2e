"""The passes over the buffer written with whole N x N matrices: readable, exact, and only for small images."""

import jax
import jax.numpy as jnp

from gla_jax.attention.anchors import AnchorSums, positive_sums
from gla_jax.attention.blockwise import fold_shards, shard_index, sum_over_shards
from gla_jax.attention.buffer import Buffer
from gla_jax.attention.normalize import Normalization, attention_logits, ordinary_logits
from gla_jax.attention.one_key import Attended
from gla_jax.attention.pooling import EPSILON, similarity_weights
from gla_jax.attention.products import for_attention, similarities, value_sums
from gla_jax.config import MethodConfig
from gla_jax.support.arrays import Array, Bool, Float, typed

__all__ = ["attend", "attention_weights", "fold_shards", "kept_keys", "shard_index", "sum_over_shards", "sum_positives"]


@typed
def sum_positives(queries: Float[Array, "N D"], buffer: Buffer, method: MethodConfig) -> AnchorSums:
    """Positives of every query among all keys."""
    return positive_sums(queries, buffer, method)


@typed
def attention_weights(
    queries: Float[Array, "q D"], norm: Normalization, buffer: Buffer, method: MethodConfig
) -> Float[Array, "q N"]:
    """Softmax over the kept keys, rows sum to 1: keep j where a_ij >= min(max_j a_ij, 0), all without masking.

    Where a baseline weighs by the similarities themselves, these over their sum.
    """
    if method.weighs_by_similarity:
        weights = similarity_weights(queries, buffer, method)
        return weights / (weights.sum(1, keepdims=True) + EPSILON)
    similarity = similarities(queries, for_attention(buffer, method))
    logits, kept, _ = attention_logits(similarity, norm, buffer.valid)
    if method.drops_entries:
        logits = logits / method.temperature
    else:
        kept, logits = jnp.broadcast_to(buffer.valid, logits.shape), ordinary_logits(logits, method)
    if buffer.weights is not None:
        logits += jnp.log(jnp.maximum(buffer.weights, 1.0))[None]
    return jax.nn.softmax(jnp.where(kept, logits, -jnp.inf), axis=1)


@typed
def kept_keys(
    queries: Float[Array, "q D"], norm: Normalization, buffer: Buffer, method: MethodConfig
) -> Bool[Array, "q N"]:
    """True for the keys that each row of attention_weights keeps, however small their weight."""
    if method.weighs_by_similarity:
        return similarity_weights(queries, buffer, method) > 0
    similarity = similarities(queries, for_attention(buffer, method))
    if method.drops_entries:
        return attention_logits(similarity, norm, buffer.valid).kept
    return jnp.broadcast_to(buffer.valid, similarity.shape)


@typed
def attend(
    queries: Float[Array, "N D"], norm: Normalization, buffer: Buffer, method: MethodConfig, counting: bool = False
) -> Attended:
    """Attention weights times the values; arguments as in blockwise.attend_partial."""
    buffer = for_attention(buffer, method)
    weights = attention_weights(queries, norm, buffer, method)
    kept = kept_keys(queries, norm, buffer, method).sum(1, dtype=jnp.int32) if counting else None
    return Attended(value_sums(weights, buffer, method), kept)  # [N N] x [N C]
