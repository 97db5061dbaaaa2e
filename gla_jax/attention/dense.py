"""The two passes over the buffer written with whole N x N matrices: readable, exact, and only for small images."""

import jax
import jax.numpy as jnp

from gla_jax.attention.anchors import AnchorSums, positive_sums
from gla_jax.attention.blockwise import every_part, total
from gla_jax.attention.buffer import Buffer
from gla_jax.attention.normalize import Normalization, attention_logits, ordinary_logits
from gla_jax.config import MethodConfig
from gla_jax.support.shapes import Array, Float, typed

__all__ = ["attention_weights", "every_part", "gather", "sum_positives", "total"]


@typed
def sum_positives(queries: Float[Array, "N D"], buffer: Buffer, config: MethodConfig) -> AnchorSums:
    """Positives of every query among all keys."""
    return positive_sums(queries, buffer, config)


@typed
def attention_weights(
    queries: Float[Array, "q D"], norm: Normalization, buffer: Buffer, config: MethodConfig
) -> Float[Array, "q N"]:
    """Softmax over the kept keys, rows sum to 1: keep j where a_ij >= min(max_j a_ij, 0), all without masking."""
    logits = attention_logits(queries, norm, buffer.keys)
    if not config.drops_entries:
        return jax.nn.softmax(jnp.where(buffer.valid[None], ordinary_logits(logits, config), -jnp.inf), axis=1)
    logits = jnp.where(buffer.valid[None], logits, -jnp.inf)
    keep = logits >= jnp.minimum(logits.max(1, keepdims=True), 0.0)
    return jax.nn.softmax(jnp.where(keep, logits / config.temperature, -jnp.inf), axis=1)


@typed
def gather(
    queries: Float[Array, "N D"], norm: Normalization, buffer: Buffer, config: MethodConfig
) -> Float[Array, "N C"]:
    """Attention weights times the values."""
    weights = attention_weights(queries, norm, buffer, config)
    return jnp.einsum("qk,kc->qc", weights, buffer.values, precision="highest")
