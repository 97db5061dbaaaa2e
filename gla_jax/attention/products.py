"""The products of the attention in the precision that the settings name (DESIGN 5).

highest: float32. high: a float32 number is the sum of a high and a low part (and a rest) of 16 bits, whose products are
exact and added up in float32. fast: the high part alone. Gradients are those of float32 products in all of them. Keys
and queries have parts in the platform's part_dtype: two of float16 are right to 2^-23, two of bfloat16 to 2^-17, three
to 2^-24. Values and their weights, which may be of any size, have parts in bfloat16.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gla_jax.attention.buffer import Buffer
from gla_jax.config import MethodConfig
from gla_jax.support.arrays import Array, Bool, Float, typed

HIGH, LOW, REST = range(3)
# Parts of query and key in each product. Small ones come first: added to a large sum, they would be rounded away.
PAIRS = ((REST, HIGH), (HIGH, REST), (LOW, LOW), (LOW, HIGH), (HIGH, LOW), (HIGH, HIGH))
# Rows narrower than this take all of PAIRS where parts are bfloat16: a cosine's error falls with the root of the width,
# and up to 384 numbers fewer products flip more of a mask than the limits of recorded outputs allow (eval/RESULTS.md).
NARROW = 512


def _scale(dtype: np.dtype) -> float:
    """Factor of keys and queries in parts: rows of length one times it keep clear of float16's smallest numbers."""
    return 2.0**8 if dtype == jnp.float16 else 1.0


def _parts(x: Array, dtype: np.dtype, count: int) -> list[Array]:
    """Numbers of 16 bits that add up to x, as nearly as so many can, the largest first."""
    # XLA may drop a conversion to 16 bits and back, which would make the next part 0; this one it keeps.
    bits, parts = jnp.finfo(dtype), []
    for _ in range(count - 1):
        parts.append(jax.lax.reduce_precision(x, exponent_bits=bits.nexp, mantissa_bits=bits.nmant))
        x = x - parts[-1]
    return [part.astype(dtype) for part in (*parts, x)]


def _side_by_side(rows: Array, dtype: np.dtype, products: int, side: int) -> Array:
    """Parts [b p] of rows [b D], of queries (side 0) or keys (1), as so many of PAIRS take them."""
    taken = [pair[side] for pair in PAIRS[-products:]]
    parts = _parts(rows * _scale(dtype), dtype, max(taken) + 1)
    return jnp.concatenate([parts[part] for part in taken], 1)


def _key_parts(keys: Array, method: MethodConfig, products: int) -> Array:
    """Keys [b D] as parts [b p], in bfloat16 for so many products."""
    dtype = jnp.dtype(method.parts)
    if method.products == "fast":
        products = 1
    elif dtype == jnp.float16:
        products = 3
    elif keys.shape[1] < NARROW:
        products = len(PAIRS)
    return _side_by_side(jax.lax.stop_gradient(keys), dtype, products, 1)


@typed
def for_anchors(buffer: Buffer, method: MethodConfig) -> Buffer:
    """The buffer with the parts of its keys that anchors read, once for all queries.

    A mask needs three products of parts: without the one of the low parts a cosine is right to 1e-5 of bfloat16; of
    narrow rows it needs six.
    """
    if method.products == "highest" or buffer.key_parts is not None:
        return buffer
    return buffer._replace(key_parts=_key_parts(jnp.where(buffer.valid[:, None], buffer.keys, 0), method, 3))


@typed
def for_attention(buffer: Buffer, method: MethodConfig) -> Buffer:
    """The buffer with the parts of keys and values that attention reads, once for all queries.

    Five products of bfloat16, for the scale multiplies a cosine by up to 31 before the softmax, and its error too. What
    is left out of a query alone hardly matters in wide rows: it changes all cosines of similar keys alike. Of float16
    three will do.
    """
    if method.products == "highest" or buffer.key_parts is not None:
        return buffer
    values = jax.lax.stop_gradient(buffer.values)
    if method.products == "fast" or values.dtype == jnp.bfloat16:
        values = values.astype(jnp.bfloat16)
    else:
        values = jnp.concatenate(_parts(values, jnp.bfloat16, 2)[::-1], 1)
    return buffer._replace(key_parts=_key_parts(buffer.keys, method, 5), value_parts=values)


def _exact(equation: str, left: Array, right: Array) -> Array:
    return jnp.einsum(equation, left.astype(jnp.float32), right.astype(jnp.float32), precision="highest")


def _one_pass(equation: str, left: Array, right: Array) -> Array:
    """A product of numbers of 16 bits, added up in float32."""
    return jnp.einsum(equation, left, right, precision="default", preferred_element_type=jnp.float32)


@typed
def similarities(queries: Float[Array, "q D"], buffer: Buffer) -> Float[Array, "q b"]:
    """Cosines of queries and keys, rows of length one, by the parts that the buffer has."""
    if buffer.key_parts is None:
        return _exact("qd,bd->qb", queries, buffer.keys)
    return _similarities(queries, buffer.keys, buffer.key_parts)


@jax.custom_jvp
def _similarities(queries: Array, keys: Array, key_parts: Array) -> Array:
    # One product of long rows runs twice as fast on a GPU as several.
    query_parts = _side_by_side(queries, key_parts.dtype, key_parts.shape[1] // keys.shape[1], 0)
    return _one_pass("qd,bd->qb", query_parts, key_parts) / _scale(key_parts.dtype) ** 2


_similarities.defjvps(
    lambda change, _, queries, keys, parts: _exact("qd,bd->qb", change, keys),
    lambda change, _, queries, keys, parts: _exact("qd,bd->qb", queries, change),
    None,
)


@typed
def key_sums(weights: Float[Array, "q b"] | Bool[Array, "q b"], buffer: Buffer, method: MethodConfig) -> Array:
    """Sums [q D] of keys under a mask, which 16 bits hold exactly, or under weights."""
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
        weights = weights.astype(parts.dtype)
    return _weighted(weights, rows, parts)


@jax.custom_jvp
def _weighted(weights: Array, rows: Array, parts: Array) -> Array:
    width, scale = rows.shape[1], _scale(parts.dtype)  # those of values, in bfloat16, have none

    def product(weights: Array, parts: Array) -> Array:
        both = _one_pass("qb,bc->qc", weights, parts)
        return both if both.shape[1] == width else both[:, :width] + both[:, width:]

    if weights.dtype == parts.dtype:
        return product(weights, parts) / scale
    high, low = _parts(weights, parts.dtype, 2)
    return (product(high, parts) + product(low, parts[:, -width:])) / scale


_weighted.defjvps(
    lambda change, _, weights, rows, parts: _exact("qb,bc->qc", change, rows),
    lambda change, _, weights, rows, parts: _exact("qb,bc->qc", weights, change),
    None,
)
