"""Dynamic normalisation: where attention starts (shift) and how steep it is (scale) (DESIGN 3.2)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gla_jax.attention.buffer import Buffer
from gla_jax.attention.calibrate import calibrated, slope
from gla_jax.config import MethodConfig
from gla_jax.support.arrays import Array, Bool, Float, typed


class Normalization(NamedTuple):
    """Attention logits are a_ij = scale_i * s_ij - offset_i; both [N] float32."""

    scale: Float[Array, " N"]
    offset: Float[Array, " N"]


@typed
def shift(windows: Float[Array, ""], method: MethodConfig) -> Float[Array, ""]:
    """beta: 1 + alpha_beta * ln(1 + W), or the fixed shift."""
    if method.dynamic_shift is None:
        return jnp.asarray(method.shift, jnp.float32)
    return 1.0 + method.dynamic_shift * jnp.log1p(windows)


@typed
def scale(counts: Float[Array, " N"], method: MethodConfig) -> Float[Array, " N"]:
    """gamma_i: 1 + alpha_gamma / m_i, or the fixed scale; counts m come from the anchors' last mask."""
    if method.dynamic_scale is None:
        return jnp.full_like(counts, method.scale)
    return 1.0 + method.dynamic_scale / counts


@typed
def mean_similarity(
    queries: Float[Array, "N D"], buffer: Buffer, method: MethodConfig, sum_over_shards: Callable[[Array], Array]
) -> Float[Array, " N"]:
    """mu_i without forming similarities: mean_j s_ij = P_i . mean_j K_j (DESIGN 3.3).

    Args:
        queries: P.
        buffer: keys K of the whole image, or this device's part of them.
        method: row_mean takes each query's row, clipped at 0; else one mean over all queries and keys (ProxyCLIP).
        sum_over_shards: sums over the parts of a buffer that is split over devices.
    """
    counts = buffer.counts
    total = sum_over_shards(counts.sum())
    # One key in place of all N: no pass over the similarities is needed for their mean.
    mean_key = sum_over_shards(jnp.einsum("n,nd->d", counts, buffer.keys, precision="highest")) / total
    rows = calibrated(jnp.einsum("nd,d->n", queries, mean_key, precision="highest"), method)
    if method.row_mean:
        return jnp.maximum(rows, 0.0)
    # One number for all rows, repeated, so that both kinds have one shape.
    return jnp.zeros_like(rows) + sum_over_shards((rows * counts).sum()) / total


@typed
def normalization(
    queries: Float[Array, "N D"],
    counts: Float[Array, " N"],
    buffer: Buffer,
    windows: Float[Array, ""],
    method: MethodConfig,
    sum_over_shards: Callable[[Array], Array],
) -> Normalization:
    """gamma_i and gamma_i * beta * mu_i of every query (DESIGN 3.2), with a calibration those of the cosines.

    Args:
        queries: P.
        counts: m, the tokens of each query's anchor.
        buffer: keys K of the whole image, or this device's part of them.
        windows: W, without padding.
        method: which of shift, scale and row mean are dynamic, and their numbers.
        sum_over_shards: sums over the parts of a buffer that is split over devices.
    """
    gamma = scale(counts, method)
    mean = mean_similarity(queries, buffer, method, sum_over_shards)
    if not method.calibrates:
        return Normalization(gamma, gamma * shift(windows, method) * mean)
    # gamma (s' - beta mu') as a line in the cosine s.
    return Normalization(gamma * slope(method), gamma * (shift(windows, method) * mean - calibrated(0.0, method)))


# Lower than any attention logit, yet finite: differences of two such maxima stay numbers.
NOTHING = -1e30


class Logits(NamedTuple):
    """Logits a_ij [q b] before the softmax.

    kept: the entries that it keeps where the method drops any; best [q]: the largest valid logit, without a gradient.
    """

    values: Float[Array, "q b"]
    kept: Bool[Array, "q b"]
    best: Float[Array, " q"]


@typed
def attention_logits(similarity: Float[Array, "q b"], norm: Normalization, valid: Bool[Array, " b"]) -> Logits:
    """a_ij = scale_i * s_ij - offset_i; kept is every valid entry >= 0 and the largest of each row (DESIGN 3.2)."""
    logits = norm.scale[:, None] * similarity - norm.offset[:, None]
    # The largest is found among the similarities, which come out of a product. A compiler may compute logits twice and
    # round them differently: none would equal their maximum, and a row of negative ones would keep nothing.
    sign = jnp.where(norm.scale < 0, -1.0, 1.0)
    rank = jnp.where(valid[None], sign[:, None] * similarity, -jnp.inf)
    top = jax.lax.stop_gradient(rank.max(1))
    best = jax.lax.stop_gradient(norm.scale) * sign * top - jax.lax.stop_gradient(norm.offset)
    kept = ((logits >= 0) | (rank >= top[:, None])) & valid[None]
    return Logits(logits, kept, jnp.where(valid.any(), best, NOTHING))


@typed
def ordinary_logits(logits: Float[Array, "q b"], method: MethodConfig) -> Float[Array, "q b"]:
    """Logits of the ordinary softmax over all keys, where no entry is dropped: a_ij itself without masking.

    With soft masks it is the method's in the limit: a_ij is kept by a sigmoid instead of a_ij >= 0, and in a row of
    negative logits the largest one takes all as t goes to 0, which is the method's rule too.
    """
    scaled = logits / method.temperature
    return scaled + jax.nn.log_sigmoid(logits / method.mask_temperature) if method.masking else scaled
