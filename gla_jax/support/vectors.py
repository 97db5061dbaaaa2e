"""Lengths of vectors."""

import jax
import jax.numpy as jnp

from gla_jax.support.shapes import Array, Float, typed


@typed
def l2_normalize(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Rows of length one in float32; a zero row stays zero, and its gradient is finite."""
    x = x.astype(jnp.float32)
    return x * inverse_norms(x)


@typed
def inverse_norms(x: Float[Array, "*B D"]) -> Float[Array, "*B 1"]:
    """1 / length of every row; finite for a zero row."""
    return jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))
