"""Softmax attention of a transformer block: scores, weights, and the forms in which their products are computed."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gla_jax.config import TowerAttention
from gla_jax.support.arrays import Array, Bool, Float, typed

CHUNK_BYTES = 2**26  # of the scores that are in memory together


class QKV(NamedTuple):
    """Queries, keys and values of one attention layer, heads side by side: three arrays [B t C]."""

    queries: Array
    keys: Array
    values: Array


class Rotation(NamedTuple):
    """Rotary positions: cosines and sines of every token and channel of a head, two arrays [t K] float32."""

    cosines: Array | np.ndarray
    sines: Array | np.ndarray

    def turn(self, x: Float[Array, "B t C"]) -> Float[Array, "B t C"]:
        """x of every head, its channels (a, b) turned to (a cos - b sin, b cos + a sin), halves a and b; in float32."""
        cosines, sines = (jnp.asarray(leaf)[None, :, None] for leaf in self)  # [1 t 1 K]
        heads = x.astype(jnp.float32).reshape(*x.shape[:2], -1, cosines.shape[-1])  # [B t H K]
        first, second = jnp.split(heads, 2, axis=-1)
        turned = heads * cosines + jnp.concatenate([-second, first], axis=-1) * sines
        return turned.reshape(x.shape).astype(x.dtype)


def split_heads(x: Float[Array, "B t C"], num_heads: int) -> Float[Array, "B H t K"]:
    """Heads side by side [B t C] to heads as an axis [B H t K]."""
    return x.reshape(*x.shape[:-1], num_heads, -1).swapaxes(1, 2)


def merge_heads(x: Float[Array, "B H t K"]) -> Float[Array, "B t C"]:
    """The inverse of split_heads."""
    batch, heads, tokens, width = x.shape
    return x.swapaxes(1, 2).reshape(batch, tokens, heads * width)


@typed
def attention_weights(
    queries: Float[Array, "B H t K"],
    keys: Float[Array, "B H s K"],
    mask: Bool[Array, "*B #t s"] | None = None,
    bias: Float[Array, "t s"] | None = None,
    precision: str = "highest",
) -> Float[Array, "B H t s"]:
    """softmax(q k^T / sqrt K + bias) in float32 whatever the input's dtype.

    Args:
        queries, keys: one array a head.
        mask: True where a key may be seen, one for all or one for each of the batch; one row is for all queries.
        bias: added to the scaled scores of every head.
        precision: of the matrix product, in JAX's words.
    """
    return jax.nn.softmax(attention_scores(queries, keys, mask, bias, precision), axis=-1)


@typed
def attention_scores(
    queries: Float[Array, "B H t K"],
    keys: Float[Array, "B H s K"],
    mask: Bool[Array, "*B #t s"] | None = None,
    bias: Float[Array, "t s"] | None = None,
    precision: str = "highest",
) -> Float[Array, "B H t s"]:
    """The scores of which attention_weights takes the softmax, with the same arguments."""
    scores = jnp.einsum("bhtk,bhsk->bhts", queries, keys, precision=precision, preferred_element_type=jnp.float32)
    scores = scores * (queries.shape[-1] ** -0.5)
    if bias is not None:
        scores = scores + bias[None, None]
    if mask is not None:
        scores = jnp.where(_of_heads(mask), scores, -jnp.inf)
    return scores


def _of_heads(mask: Bool[Array, "*B #t s"]) -> Bool[Array, "b 1 #t s"]:
    return mask[None, None] if mask.ndim == 2 else mask[:, None]


@typed
def multi_head_attention(
    qkv: QKV,
    num_heads: int,
    mask: Bool[Array, "*B #t t"] | None = None,
    precision: str = "highest",
    form: TowerAttention = "together",
) -> Float[Array, "B t C"]:
    """Softmax attention of a transformer block.

    Args:
        qkv: three arrays [B t C], heads side by side.
        num_heads: H, which divides C.
        mask: True where a key may be seen, one for all or one for each of the batch, one row for all queries; None
            for all keys.
        precision: of both matrix products, in JAX's words.
        form: of the computation; results differ by rounding. "together" holds the scores of all heads, "head_by_head"
            those of one head, "chunked" at most CHUNK_BYTES of them, "cudnn", NVIDIA's fused kernel, none. What that
            kernel does not take goes in chunks: float32, and heads wider than 128 or of no multiple of 8.
    """
    batch, tokens, channels = qkv.queries.shape
    width = channels // num_heads
    if form == "cudnn" and qkv.queries.dtype == jnp.bfloat16 and width % 8 == 0 and width <= 128:
        heads = (x.reshape(batch, tokens, num_heads, width) for x in qkv)
        seen = None if mask is None else _of_heads(mask)
        return jax.nn.dot_product_attention(*heads, mask=seen, implementation="cudnn").reshape(qkv.values.shape)
    split = tuple(split_heads(x, num_heads) for x in qkv)
    if form == "together":
        return merge_heads(_weighted_values(*split, mask, precision))
    on_processor = form == "head_by_head"
    rows = tokens if on_processor else max(CHUNK_BYTES // (4 * batch * tokens), 1)  # of scores, in a chunk
    group = max(n for n in range(1, num_heads + 1) if num_heads % n == 0 and (n == 1 or n * tokens <= rows))
    attend = partial(
        _in_query_chunks, mask=mask, precision=precision, chunks=-(-tokens // rows), column_of_ones=on_processor
    )
    # [B H t K] -> [H/group B group t K].
    groups = tuple(x.reshape(batch, -1, group, tokens, width).swapaxes(0, 1) for x in split)
    attended = jax.lax.map(lambda heads: attend(*heads), groups)
    return merge_heads(attended.swapaxes(0, 1).reshape(batch, num_heads, tokens, width))


def _in_query_chunks(
    queries: Array, keys: Array, values: Array, mask: Array | None, precision: str, chunks: int, column_of_ones: bool
) -> Array:
    """_weighted_values, one equal part of the queries after the other."""
    weighted = partial(_weighted_values, precision=precision, column_of_ones=column_of_ones)
    if not column_of_ones:
        weighted = jax.checkpoint(weighted)  # a gradient would keep the scores of every chunk
    if chunks == 1:
        return weighted(queries, keys, values, mask)
    batch, heads, tokens, width = queries.shape
    padding = -tokens % chunks
    # [B H t K] -> [chunks B H rows K].
    parts = jnp.pad(queries, ((0, 0), (0, 0), (0, padding), (0, 0)))
    parts = parts.reshape(batch, heads, chunks, -1, width).transpose(2, 0, 1, 3, 4)
    alike = mask is not None and mask.shape[-2] == 1  # for all queries, so that nothing of it is cut
    if mask is not None and not alike:
        # Padded queries see every key: an empty softmax would be 0/0.
        mask = jnp.pad(mask, (*[(0, 0)] * (mask.ndim - 2), (0, padding), (0, 0)), constant_values=True)
        mask = jnp.moveaxis(mask.reshape(*mask.shape[:-2], chunks, -1, tokens), -3, 0)
    attended = jax.lax.map(
        lambda part: weighted(part[0], keys, values, mask if alike else part[1]), (parts, None if alike else mask)
    )
    return attended.transpose(1, 2, 0, 3, 4).reshape(batch, heads, -1, width)[:, :, :tokens]


def _weighted_values(
    queries: Array, keys: Array, values: Array, mask: Array | None, precision: str, column_of_ones: bool = False
) -> Array:
    """softmax(q k^T / sqrt K) v of every head, [B H t K]."""
    scores = attention_scores(queries, keys, mask, precision=precision)
    # The maximum cancels in the quotient, so no gradient goes through it.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    product = partial(jnp.einsum, "bhts,bhsk->bhtk", precision=precision, preferred_element_type=jnp.float32)
    if column_of_ones:
        # The same product also yields the denominator. On accelerators 65 columns would leave the fast tiles.
        values = jnp.concatenate([values, jnp.ones_like(values[..., :1])], axis=-1)
        sums = product(weights.astype(values.dtype), values)  # [B H t K+1]
        return (sums[..., :-1] / sums[..., -1:]).astype(values.dtype)
    return (product(weights.astype(values.dtype), values) / weights.sum(-1, keepdims=True)).astype(values.dtype)
