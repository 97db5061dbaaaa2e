"""The products of the attention in the precision that the settings name (DESIGN 5), the same on every platform.

highest: float32. high: a float32 number is the sum of a high and a low bfloat16 part, to 2^-18 of it; products of parts
are exact and added up in float32. fast: the high part alone. Gradients are those of float32 products in all of them.
"""

import jax
import jax.numpy as jnp

from gla_jax.attention.buffer import Buffer
from gla_jax.config import MethodConfig
from gla_jax.support.arrays import Array, Bool, Float, typed


def _two_parts(x: Array) -> tuple[Array, Array]:
    """High and low, both bfloat16."""
    # XLA may drop a conversion to bfloat16 and back, which would make the low part 0; this one it keeps.
    high = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return high.astype(jnp.bfloat16), (x - high).astype(jnp.bfloat16)


def _key_parts(keys: Array, method: MethodConfig, products: int) -> Array:
    """Keys [b D] as parts side by side [b p], for as many products of parts in one."""
    keys = jax.lax.stop_gradient(keys)
    if method.products == "fast":
        return keys.astype(jnp.bfloat16)
    high, low = _two_parts(keys)
    rest = (keys - high.astype(jnp.float32) - low.astype(jnp.float32)).astype(jnp.bfloat16)
    # Small products come first: added to a large sum, they would be rounded away.
    return jnp.concatenate([rest, low, high, low, high][-products:], 1)


@typed
def for_anchors(buffer: Buffer, method: MethodConfig) -> Buffer:
    """The buffer with the parts of its keys that anchors read, once for all queries.

    A mask needs three products of parts: without the one of the low parts a cosine is right to 1e-6.
    """
    if method.products == "highest" or buffer.key_parts is not None:
        return buffer
    return buffer._replace(key_parts=_key_parts(buffer.keys, method, 3))


@typed
def for_attention(buffer: Buffer, method: MethodConfig) -> Buffer:
    """The buffer with the parts of keys and values that attention reads, once for all queries.

    Five products, for the scale multiplies a cosine by up to 31 before the softmax, and its error too. What is left
    out of a query alone hardly matters: it changes all cosines of similar keys alike.
    """
    if method.products == "highest" or buffer.key_parts is not None:
        return buffer
    values = jax.lax.stop_gradient(buffer.values)
    if method.products == "fast" or values.dtype == jnp.bfloat16:
        values = values.astype(jnp.bfloat16)
    else:
        values = jnp.concatenate(_two_parts(values)[::-1], 1)
    return buffer._replace(key_parts=_key_parts(buffer.keys, method, 5), value_parts=values)


def _exact(equation: str, left: Array, right: Array) -> Array:
    return jnp.einsum(equation, left.astype(jnp.float32), right.astype(jnp.float32), precision="highest")


def _one_pass(equation: str, left: Array, right: Array) -> Array:
    """A product of bfloat16 numbers, added up in float32."""
    return jnp.einsum(equation, left, right, precision="default", preferred_element_type=jnp.float32)


@typed
def similarities(queries: Float[Array, "q D"], buffer: Buffer) -> Float[Array, "q b"]:
    """Cosines of queries and keys, rows of length one, by the parts that the buffer has."""
    if buffer.key_parts is None:
        return _exact("qd,bd->qb", queries, buffer.keys)
    return _similarities(queries, buffer.keys, buffer.key_parts)


@jax.custom_jvp
def _similarities(queries: Array, keys: Array, key_parts: Array) -> Array:
    high, low = _two_parts(queries)
    # One product of long rows runs twice as fast on a GPU as several.
    query_parts = jnp.concatenate([high, low, low, high, high][-(key_parts.shape[1] // keys.shape[1]) :], 1)
    return _one_pass("qd,bd->qb", query_parts, key_parts)


_similarities.defjvps(
    lambda change, _, queries, keys, parts: _exact("qd,bd->qb", change, keys),
    lambda change, _, queries, keys, parts: _exact("qd,bd->qb", queries, change),
    None,
)


@typed
def key_sums(weights: Float[Array, "q b"] | Bool[Array, "q b"], buffer: Buffer, method: MethodConfig) -> Array:
    """Sums [q D] of keys under a mask, which bfloat16 holds exactly, or under weights."""
    parts = None if buffer.key_parts is None else buffer.key_parts[:, -2 * buffer.keys.shape[1] :]
    return _sums(weights, buffer.keys, parts, method)


@typed
def value_sums(weights: Float[Array, "q b"], buffer: Buffer, method: MethodConfig) -> Array:
    """Sums [q C] of weighted values."""
    return _sums(weights, buffer.values, buffer.value_parts, method)


def _sums(weights: Array, rows: Array, parts: Array | None, method: MethodConfig) -> Array:
    if parts is None:
        return _exact("qb,bc->qc", weights, rows)
    if weights.dtype == bool or method.products == "fast":
        weights = weights.astype(jnp.bfloat16)
    return _weighted(weights, rows, parts)


@jax.custom_jvp
def _weighted(weights: Array, rows: Array, parts: Array) -> Array:
    width = rows.shape[1]

    def product(weights: Array, parts: Array) -> Array:
        both = _one_pass("qb,bc->qc", weights, parts)
        return both if both.shape[1] == width else both[:, :width] + both[:, width:]

    if weights.dtype == jnp.bfloat16:
        return product(weights, parts)
    high, low = _two_parts(weights)
    return product(high, parts) + product(low, parts[:, -width:])


_weighted.defjvps(
    lambda change, _, weights, rows, parts: _exact("qb,bc->qc", change, rows),
    lambda change, _, weights, rows, parts: _exact("qb,bc->qc", weights, change),
    None,
)
