"""The two passes over the buffer written with whole N x N matrices: readable, exact, and only for small images."""

import jax
import jax.numpy as jnp

from gla_jax.attention.anchors import AnchorSums, positive_sums
from gla_jax.attention.buffer import Buffer
from gla_jax.attention.normalize import Normalization
from gla_jax.config import MethodConfig
from gla_jax.shapes import Array, Float, typed


@typed
def sum_positives(queries: Float[Array, "N D"], buffer: Buffer, config: MethodConfig) -> AnchorSums:
    """Positives of every query among all keys."""
    return positive_sums(queries, buffer.keys, buffer.valid, config.anchor_threshold)


@typed
def gather(
    queries: Float[Array, "N D"], norm: Normalization, buffer: Buffer, config: MethodConfig
) -> Float[Array, "N C"]:
    """Softmax over the kept keys, times the values: keep j where a_ij >= min(max_j a_ij, 0)."""
    similarity = jnp.einsum("qd,kd->qk", queries, buffer.keys, precision="highest")
    logits = norm.scale[:, None] * similarity - norm.offset[:, None]
    logits = jnp.where(buffer.valid[None], logits, -jnp.inf)
    keep = logits >= jnp.minimum(logits.max(1, keepdims=True), 0.0)
    weights = jax.nn.softmax(jnp.where(keep, logits / config.temperature, -jnp.inf), axis=1)
    return jnp.einsum("qk,kc->qc", weights, buffer.values, precision="highest")
