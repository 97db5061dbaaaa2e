"""The global key-value buffer: unit features and resampled values of every window of an image, side by side."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gla_jax.attention.calibrate import centred
from gla_jax.config import MethodConfig
from gla_jax.images.resize import bilinear_matrix
from gla_jax.support.arrays import Array, Bool, Float, Int, l2_normalize, typed

# Larger than half a window; columns below 2^15 - MARGIN keep pixels apart, rows below 2^16 - MARGIN fit an int32.
MARGIN = 2**12


class Buffer(NamedTuple):
    """Keys and values of N tokens.

    keys [N D]: unit rows, or means of them where tokens are merged, float32; values [N C]: float32, or the towers'
    bfloat16 where products take parts; valid [N]: False for tokens of padded windows; key_parts, value_parts: those
    parts (products.py); weights [N]: how many tokens each one stands for where tokens are merged, 0 for padding, None
    elsewhere.
    """

    keys: Float[Array, "N D"]
    values: Float[Array, "N C"]
    valid: Bool[Array, " N"]
    key_parts: Float[Array, "N p"] | None = None
    value_parts: Float[Array, "N r"] | None = None
    weights: Float[Array, " N"] | None = None

    @property
    def counts(self) -> Float[Array, " N"]:
        """The weight of each token in sums over all: the number that it stands for, 0 for padding."""
        return self.valid.astype(jnp.float32) if self.weights is None else self.weights


@typed
def resample_tokens(values: Float[Array, "W n C"], tokens: int, precision: str = "highest") -> Float[Array, "W S C"]:
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
    # Interpolation is separable: the same matrix [side source] along rows and columns.
    resampled = jnp.einsum("yi,xj,wijc->wyxc", matrix, matrix, grid, precision=precision)
    return resampled.reshape(windows, tokens, width)


@jax.named_scope("gla-attention")
@typed
def fill_buffer(
    features: Float[Array, "W S D"],
    values: Float[Array, "W n C"],
    valid: Bool[Array, " W"],
    method: MethodConfig,
    sum_over_shards: Callable[[Array], Array] = lambda partial: partial,
) -> Buffer:
    """One buffer over all windows; the values are resampled to the feature grid.

    Args:
        features: before normalisation.
        values: of CLIP's last block, on their own token grid.
        valid: False for padded windows.
        method: precision, and whether features are centred first.
        sum_over_shards: sums over the parts of a buffer that is split over devices.
    """
    windows, tokens, width = features.shape
    dtype = jnp.float32 if method.products == "highest" else values.dtype
    values = resample_tokens(values, tokens, method.plain_precision).astype(dtype)
    if method.calibrates:
        features = centred(features, valid, sum_over_shards)
    return Buffer(
        l2_normalize(features).reshape(windows * tokens, width),
        values.reshape(windows * tokens, -1),
        jnp.repeat(valid, tokens),
    )


class PixelSums(NamedTuple):
    """Sum [n D] and number [n] of the features that lie at each of n pixels."""

    total: Float[Array, "n D"]
    count: Float[Array, " n"]

    def merge(self, other: "PixelSums") -> "PixelSums":
        """The sums over both sets of features."""
        return PixelSums(self.total + other.total, self.count + other.count)


@typed
def sums_at_pixels(wanted: Int[Array, " n"], features: Float[Array, "b D"], pixels: Int[Array, " b"]) -> PixelSums:
    """Sum and number of the features at each wanted pixel; pixels are numbers, negative for none."""
    # Pixels are few of many possible numbers: group the tokens by distinct pixel, sum each group, look pixels up.
    distinct, group = jnp.unique(pixels, size=pixels.size, fill_value=jnp.iinfo(jnp.int32).max, return_inverse=True)
    total = jax.ops.segment_sum(features, group, pixels.size)
    count = jax.ops.segment_sum(jnp.ones_like(features[:, 0]), group, pixels.size)
    place = jnp.minimum(jnp.searchsorted(distinct, wanted), pixels.size - 1)
    present = ((distinct[place] == wanted) & (wanted >= 0)).astype(jnp.float32)
    return PixelSums(total[place] * present[:, None], count[place] * present)


@typed
def sums_of_neighbours(features: Float[Array, "W S D"]) -> PixelSums:
    """Sum and number of the features of every token and its up to 8 neighbours in the window, N = W S of them."""
    windows, tokens, width = features.shape
    side = round(tokens**0.5)
    grid = features.astype(jnp.float32).reshape(windows, side, side, width)
    # Zero padding adds nothing to the sums, and `inside` counts the neighbours that exist.
    padded = jnp.pad(grid, ((0, 0), (1, 1), (1, 1), (0, 0)))
    inside = jnp.pad(jnp.ones((side, side), jnp.float32), 1)
    shifts = [(i, j) for i in range(3) for j in range(3)]
    total = sum(padded[:, i : i + side, j : j + side] for i, j in shifts)
    count = sum(inside[i : i + side, j : j + side] for i, j in shifts)
    return PixelSums(total.reshape(-1, width), jnp.tile(count.reshape(-1), windows))


@jax.named_scope("gla-anchors")
@typed
def neighbourhood_queries(
    features: Float[Array, "W S D"],
    valid: Bool[Array, " W"],
    origins: Int[Array, "W 2"],
    patch_size: int,
    fold_shards: Callable | None,
) -> Float[Array, "N D"]:
    """ClearCLIP's first queries under GLA as unit rows (DESIGN 3.4).

    The mean feature of the token itself, its up to 8 neighbours in the window, and the tokens of other windows whose
    top-left pixel is the same.

    Args:
        features: before normalisation.
        valid: False for padded windows.
        origins: top-left pixel (row, column) of every window.
        patch_size: pixels along a side of a token.
        fold_shards: merges over the shards of a buffer (of attention's form); None leaves other windows out.
    """
    tokens, width = features.shape[1:]
    side = round(tokens**0.5)
    total, count = sums_of_neighbours(features)
    if fold_shards is None:
        return l2_normalize(total / count[:, None])

    steps = jnp.arange(side, dtype=jnp.int32) * patch_size
    rows = origins[:, 0, None, None] + steps[None, :, None]
    columns = origins[:, 1, None, None] + steps[None, None, :]
    # One number a pixel; an image smaller than a window starts before its first pixel, by less than MARGIN.
    pixels = (rows + MARGIN) * 2**15 + columns + MARGIN
    pixels = jnp.where(valid[:, None, None], pixels, -1).reshape(-1)
    flat = features.astype(jnp.float32).reshape(-1, width)
    same = fold_shards((flat, pixels), lambda part: sums_at_pixels(pixels, *part), PixelSums.merge)
    # The token itself is in both sums; a padded token is in none of `same`.
    own = valid.astype(jnp.float32).repeat(tokens)
    total = total + same.total - flat * own[:, None]
    count = count + same.count - own
    return l2_normalize(total / count[:, None])
