"""Dynamic normalisation: where attention starts (shift) and how steep it is (scale) (DESIGN 3.2)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gla_jax.attention.buffer import Buffer
from gla_jax.config import MethodConfig
from gla_jax.support.shapes import Array, Float, typed


class Normalization(NamedTuple):
    """Attention logits are a_ij = scale_i * s_ij - offset_i; both [N] float32."""

    scale: Float[Array, " N"]
    offset: Float[Array, " N"]


@typed
def shift(windows: Float[Array, ""], config: MethodConfig) -> Float[Array, ""]:
    """beta: 1 + alpha_beta * ln(1 + W), or the fixed shift."""
    if config.dynamic_shift is None:
        return jnp.asarray(config.shift, jnp.float32)
    return 1.0 + config.dynamic_shift * jnp.log1p(windows)


@typed
def scale(counts: Float[Array, " N"], config: MethodConfig) -> Float[Array, " N"]:
    """gamma_i: 1 + alpha_gamma / m_i, or the fixed scale; counts m come from the anchors' last mask."""
    if config.dynamic_scale is None:
        return jnp.full_like(counts, config.scale)
    return 1.0 + config.dynamic_scale / counts


@typed
def mean_similarity(
    queries: Float[Array, "N D"], buffer: Buffer, by_row: bool, total: Callable[[Array], Array]
) -> Float[Array, " N"]:
    """mu_i without forming similarities: mean_j s_ij = P_i . mean_j K_j (DESIGN 3.3).

    by_row: the mean of each query's row, clipped at 0; otherwise one mean over all queries and keys (ProxyCLIP). total
    sums over the parts of a buffer that is split.
    """
    valid = buffer.valid.astype(jnp.float32)
    count = total(valid.sum())
    mean_key = total(jnp.einsum("n,nd->d", valid, buffer.keys, precision="highest")) / count
    rows = jnp.einsum("nd,d->n", queries, mean_key, precision="highest")
    if by_row:
        return jnp.maximum(rows, 0.0)
    return jnp.zeros_like(rows) + total((rows * valid).sum()) / count


@typed
def normalization(
    queries: Float[Array, "N D"],
    counts: Float[Array, " N"],
    buffer: Buffer,
    windows: Float[Array, ""],
    config: MethodConfig,
    total: Callable[[Array], Array],
) -> Normalization:
    """gamma_i and gamma_i * beta * mu_i of every query; windows is the number of valid windows W.

    total sums over the parts of a buffer that is split.
    """
    gamma = scale(counts, config)
    mean = mean_similarity(queries, buffer, config.row_mean, total)
    return Normalization(gamma, gamma * shift(windows, config) * mean)


@typed
def attention_logits(
    queries: Float[Array, "q D"], norm: Normalization, keys: Float[Array, "b D"]
) -> Float[Array, "q b"]:
    """a_ij = scale_i * s_ij - offset_i."""
    similarity = jnp.einsum("qd,kd->qk", queries, keys, precision="highest")
    return norm.scale[:, None] * similarity - norm.offset[:, None]


@typed
def ordinary_logits(logits: Float[Array, "q b"], config: MethodConfig) -> Float[Array, "q b"]:
    """Logits of the ordinary softmax over all keys, where no entry is dropped: a_ij itself without masking.

    With soft masks it is the method's in the limit: a_ij is kept by a sigmoid instead of a_ij >= 0, and in a row of
    negative logits the largest one takes all as t goes to 0, which is the method's rule too.
    """
    scaled = logits / config.temperature
    return scaled + jax.nn.log_sigmoid(logits / config.mask_temperature) if config.masking else scaled
