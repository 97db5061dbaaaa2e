"""The global key-value buffer: unit features and resampled values of every window of an image, side by side."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gla_jax.interpolation import bilinear_matrix
from gla_jax.shapes import Array, Bool, Float, Int, typed


class Buffer(NamedTuple):
    """keys [N D] unit rows, values [N C], valid [N]: False for tokens of padded windows; all float32."""

    keys: Float[Array, "N D"]
    values: Float[Array, "N C"]
    valid: Bool[Array, " N"]


@typed
def unit_rows(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Rows of length one in float32; a zero row stays zero, and its gradient is finite."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


@typed
def resample_tokens(values: Float[Array, "W n C"], tokens: int) -> Float[Array, "W S C"]:
    """Bilinear resampling of a square token grid n -> S = tokens, half-pixel centres; the same grid is untouched.

    Raises ValueError when n or S is not a square.
    """
    windows, n, width = values.shape
    if n == tokens:
        return values
    source, side = (round(count**0.5) for count in (n, tokens))
    if source**2 != n or side**2 != tokens:
        raise ValueError(f"token grids are square, but n = {n} and S = {tokens}")
    matrix = jnp.asarray(bilinear_matrix(source, side))
    grid = values.astype(jnp.float32).reshape(windows, source, source, width)
    resampled = jnp.einsum("yi,xj,wijc->wyxc", matrix, matrix, grid, precision="highest")
    return resampled.reshape(windows, tokens, width)


@typed
def fill_buffer(features: Float[Array, "W S D"], values: Float[Array, "W n C"], valid: Bool[Array, " W"]) -> Buffer:
    """One buffer over all windows; the values are resampled to the feature grid."""
    windows, tokens, width = features.shape
    values = resample_tokens(values, tokens).astype(jnp.float32)
    return Buffer(
        unit_rows(features).reshape(windows * tokens, width),
        values.reshape(windows * tokens, -1),
        jnp.repeat(valid, tokens),
    )


@typed
def neighbourhood_queries(
    features: Float[Array, "W S D"], valid: Bool[Array, " W"], origins: Int[Array, "W 2"], patch_size: int
) -> Float[Array, "N D"]:
    """ClearCLIP's first queries under GLA (DESIGN 3.4): the mean feature of the token itself, its up to 8 neighbours in
    the window, and the tokens of other windows whose top-left pixel is the same; as unit rows.
    """
    windows, tokens, width = features.shape
    side = round(tokens**0.5)
    grid = features.astype(jnp.float32).reshape(windows, side, side, width)
    padded = jnp.pad(grid, ((0, 0), (1, 1), (1, 1), (0, 0)))
    inside = jnp.pad(jnp.ones((side, side), jnp.float32), 1)
    shifts = [(i, j) for i in range(3) for j in range(3)]
    total = sum(padded[:, i : i + side, j : j + side] for i, j in shifts)
    count = sum(inside[i : i + side, j : j + side] for i, j in shifts)

    steps = jnp.arange(side, dtype=jnp.int32) * patch_size
    rows = origins[:, 0, None, None] + steps[None, :, None]
    columns = origins[:, 1, None, None] + steps[None, None, :]
    # One integer per pixel position; images are far smaller than 2^15 pixels a side in this host's settings.
    position = jnp.where(valid[:, None, None], rows * 2**15 + columns, -1).reshape(-1)
    _, group = jnp.unique(position, size=position.size, return_inverse=True)
    flat = grid.reshape(-1, width)
    group_sum = jax.ops.segment_sum(flat, group, position.size)[group]
    group_size = jax.ops.segment_sum(jnp.ones(position.size), group, position.size)[group]
    total = total.reshape(-1, width) + group_sum - flat
    count = jnp.tile(count.reshape(-1), windows) + group_size - 1.0
    return unit_rows(total / count[:, None])
