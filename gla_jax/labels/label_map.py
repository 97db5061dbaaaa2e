"""From token logits to labels: upsampling, softmax over queries, best synonym of a class, threshold, tile by tile.

Stitching is one matrix along each axis (stitch.py). Across columns it is multiplied as such, on the run of tokens that
a tile touches; down rows a pixel sees so few tokens that they are added up one by one. A tile's program knows sizes
only in buckets: the image's own are data.
"""

from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gla_jax.config import Number
from gla_jax.images.windows import WindowGrid
from gla_jax.labels.stitch import axis_matrix
from gla_jax.pipeline import token_logits
from gla_jax.support.shapes import Array, Float, Int, typed

ROWS_OF_A_TILE, COLUMNS_OF_A_TILE = 512, 256
ROWS_AT_ONCE = 32  # of a tile, so that their logits stay in a core's cache
TOKENS_OF_A_BAND, TAPS = 16, 2  # bands and taps are multiples of them, so that few sizes compile
QUERIES_OF_A_CHUNK = 64
NOTHING = -1e30


class PixelBest(NamedTuple):
    """The best query of every pixel so far: its logit, its class, and the sum of exp(scale * (logit - best)) over all.

    All [h w]; the best probability of the softmax over the queries is then 1 / total.
    """

    logit: Float[Array, "h w"]
    label: Int[Array, "h w"]
    total: Float[Array, "h w"]

    def merge(self, other: "PixelBest", logit_scale: Number) -> "PixelBest":
        """The best of two sets of queries; of equal logits the first set wins, as argmax takes the first index."""
        logit = jnp.maximum(self.logit, other.logit)
        total = sum(side.total * jnp.exp(logit_scale * (side.logit - logit)) for side in (self, other))
        return PixelBest(logit, jnp.where(other.logit > self.logit, other.label, self.label), total)


class Rows(NamedTuple):
    """The rows of a tile: where in [W S] its tokens' windows and rows begin, and each pixel row's taps."""

    starts: Int[Array, " y"] | Int[np.ndarray, " y"]
    taps: Int[Array, "h k"] | Int[np.ndarray, "h k"]
    weights: Float[Array, "h k"] | Float[np.ndarray, "h k"]


class Columns(NamedTuple):
    """The columns of a tile: how far after a row's start its tokens lie, and their stitching matrix."""

    offsets: Int[Array, " x"] | Int[np.ndarray, " x"]
    matrix: Float[Array, "x w"] | Float[np.ndarray, "x w"]


class Layout(NamedTuple):
    """Where the tokens of an image lie among its pixels, tile by tile; size (h, w) in pixels."""

    rows: tuple[Rows, ...]
    columns: tuple[Columns, ...]
    size: tuple[int, int]

    def tiles(self) -> Iterator[tuple[slice, slice, Rows, Columns]]:
        """Every tile: its pixels in the image, then what it is computed from."""
        height, width = self.size
        for top, rows in zip(range(0, height, ROWS_OF_A_TILE), self.rows, strict=True):
            for left, columns in zip(range(0, width, COLUMNS_OF_A_TILE), self.columns, strict=True):
                down, across = min(top + ROWS_OF_A_TILE, height), min(left + COLUMNS_OF_A_TILE, width)
                yield slice(top, down), slice(left, across), rows, columns


def layout(grid: WindowGrid, tokens: int, size: tuple[int, int]) -> Layout:
    """The layout of an image of size (h, w) under a window grid with `tokens` tokens a window."""
    side = round(tokens**0.5)
    down = _axis_rows(grid.row_starts, grid.height, grid.crop, side, size[0])
    across = _axis_columns(grid.column_starts, grid.width, grid.crop, side, size[1])
    a_row_of_windows = len(grid.column_starts) * tokens
    rows = (
        Rows((band // side * a_row_of_windows + band % side * side).astype(np.int32), *rest) for band, *rest in down
    )
    columns = (Columns((band // side * tokens + band % side).astype(np.int32), matrix) for band, matrix in across)
    return Layout(tuple(rows), tuple(columns), size)


@lru_cache(maxsize=256)
def _axis_rows(*axis: Any) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]:
    """Of every tile the tokens of its band, and Rows' taps and weights."""
    return tuple((band, *row_taps(matrix)) for band, matrix in axis_bands(*axis, tile=ROWS_OF_A_TILE))


@lru_cache(maxsize=256)
def _axis_columns(*axis: Any) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Of every tile the tokens of its band, and Columns' matrix."""
    bands = axis_bands(*axis, tile=COLUMNS_OF_A_TILE)
    return tuple((band, np.ascontiguousarray(matrix.T)) for band, matrix in bands)


def axis_bands(
    starts: tuple[int, ...], length: int, crop: int, side: int, target: int, tile: int
) -> Iterator[tuple[Int[np.ndarray, " band"], Float[np.ndarray, "pixels band"]]]:
    """One axis of an image in tiles of pixels: the tokens that a tile touches, and its stitching matrix on them.

    A pixel sees the few tokens around it, so a band is short however long the axis is. starts and length: of windows of
    `side` tokens on the resized axis; target: its length in pixels. Bands are in the order in which tokens lie.
    """
    centres = np.array(starts)[:, None] + (np.arange(side) + 0.5) * crop / side
    order = np.argsort(centres.ravel(), kind="stable").astype(np.int32)
    tiles = -(-target // tile)
    matrix = np.zeros((tiles * tile, order.size), np.float32)
    matrix[:target] = axis_matrix(starts, length, crop, side, target)
    matrix = matrix[:, order].reshape(tiles, tile, -1)
    touched = (matrix != 0).any(1)
    first, last = touched.argmax(1), order.size - touched[:, ::-1].argmax(1)
    width = min(_rounded_up(int((last - first).max()), TOKENS_OF_A_BAND), order.size)
    for part, begin in zip(matrix, np.minimum(first, order.size - width), strict=True):
        yield order[begin : begin + width], part[:, begin : begin + width]


def row_taps(matrix: Float[np.ndarray, "h y"]) -> tuple[Int[np.ndarray, "h k"], Float[np.ndarray, "h k"]]:
    """The columns in which the rows of a matrix are not 0, and their entries; the same number for each."""
    count = _rounded_up(int((matrix != 0).sum(1).max()), TAPS)
    taps = np.argsort(matrix == 0, axis=1, kind="stable")[:, :count].astype(np.int32)
    return taps, np.take_along_axis(matrix, taps, 1)


def _rounded_up(count: int, step: int) -> int:
    return -(-count // step) * step


def whole_logits(features: Float[Array, "W S E"], text_bank: Float[Array, "Q E"]) -> Float[Array, "W S Q"]:
    """Token logits of all windows on one device.

    Features that are split over a mesh come together here, on the first device of every process.
    """
    split = isinstance(features.sharding, NamedSharding) and features.sharding.mesh.size > 1
    everywhere = NamedSharding(features.sharding.mesh, PartitionSpec()) if split else None
    with jax.default_matmul_precision("highest"):
        logits = _token_logits(features, np.asarray(text_bank) if split else text_bank, everywhere)
    return logits.addressable_data(0) if split else logits


@partial(jax.jit, static_argnames="sharding")
def _token_logits(features: Array, bank: Array, sharding: NamedSharding | None) -> Array:
    logits = token_logits(features, bank)
    return logits if sharding is None else jax.lax.with_sharding_constraint(logits, sharding)


@typed
def across_columns(logits: Float[Array, "W S Q"], rows: Rows, columns: Columns) -> Float[Array, "y Q w"]:
    """Logits of a tile's pixel columns at its token rows."""
    tokens = logits.reshape(-1, logits.shape[-1])[rows.starts[:, None] + columns.offsets[None]]
    return jnp.einsum("yxq,xw->yqw", tokens, columns.matrix, precision="highest")


@typed
def down_rows(
    across: Float[Array, "y Q w"], taps: Int[Array, "h k"], weights: Float[Array, "h k"]
) -> Float[Array, "h Q w"]:
    """Logits of pixels from those of their columns at token rows."""
    return sum(weights[:, k, None, None] * across[taps[:, k]] for k in range(taps.shape[1]))


@typed
def best_of(logits: Float[Array, "h Q w"], class_of_query: Int[Array, " Q"], logit_scale: Number) -> PixelBest:
    """The best class of every pixel: softmax over queries, max over a class's synonyms.

    The softmax is monotonous, so the best query's class is the best class, and of equal ones the first query's.
    """
    queries = jnp.arange(logits.shape[1])[None, :, None]
    best = logits.max(1)
    # Two plain reductions, which vectorise where argmax does not.
    first = jnp.where(logits == best[:, None], queries, logits.shape[1]).min(1)
    total = jnp.exp(logit_scale * (logits - best[:, None])).sum(1)
    return PixelBest(best, class_of_query[first], total)


def synonyms(class_of_query: Int[np.ndarray, " Q"], classes: int) -> Int[np.ndarray, "L m"]:
    """The queries of every class, the first one again where another has more, -1 where a class has none."""
    found = [np.flatnonzero(class_of_query == index) for index in range(classes)]
    table = np.full((classes, max(map(len, found))), -1, np.int32)
    for row, queries in zip(table, found, strict=True):
        if len(queries):
            row[:] = queries[0]
            row[: len(queries)] = queries
    return table


@typed
def class_probabilities(
    logits: Float[Array, "h Q w"], queries: Int[Array, "L m"] | Int[np.ndarray, "L m"], logit_scale: Number
) -> Float[Array, "h L w"]:
    """softmax(scale * logits) over the queries, then the best synonym of each class: no distribution over L.

    queries: of every class, by `synonyms`.
    """
    best = jax.nn.softmax(logit_scale * logits, axis=1)[:, queries].max(2)
    return jnp.where((queries >= 0).any(1)[None, :, None], best, 0.0)


@partial(jax.jit, static_argnames="thresholded")
def _label_tile(logits, rows, columns, blocks, class_of_query, logit_scale, threshold, background, thresholded):
    """Labels [rows columns] of the first `blocks` blocks of rows of a tile, queries in chunks."""
    queries = logits.shape[-1]
    size = min(QUERIES_OF_A_CHUNK, queries)
    padding = ((0, 0), (0, -queries % size), (0, 0))
    # A mask further down would keep XLA from fusing what is done to a pixel.
    padded = jnp.pad(across_columns(logits, rows, columns), padding, constant_values=NOTHING)
    chunks = padded.reshape(padded.shape[0], -1, size, padded.shape[2]).transpose(1, 0, 2, 3)
    classes = jnp.pad(class_of_query, (0, -queries % size), constant_values=-1).reshape(-1, size)

    def block(index: Array, labels: Array) -> Array:
        first = index * ROWS_AT_ONCE
        taps, weights = (
            jax.lax.dynamic_slice_in_dim(jnp.asarray(array), first, ROWS_AT_ONCE) for array in (rows.taps, rows.weights)
        )

        def best(chunk: Array, own: Array) -> PixelBest:
            return best_of(down_rows(chunk, taps, weights), own, logit_scale)

        found = best(chunks[0], classes[0])
        if len(chunks) > 1:

            def step(state: PixelBest, chunk: tuple[Array, Array]) -> tuple[PixelBest, None]:
                return state.merge(best(*chunk), logit_scale), None

            found = jax.lax.scan(step, found, (chunks[1:], classes[1:]))[0]
        # Without a threshold nobody asks for the softmax's denominator, and XLA drops its exponentials.
        found_labels = jnp.where(1.0 / found.total < threshold, background, found.label) if thresholded else found.label
        return jax.lax.dynamic_update_slice_in_dim(labels, found_labels, first, 0)

    return jax.lax.fori_loop(0, blocks, block, jnp.zeros((ROWS_OF_A_TILE, columns.matrix.shape[1]), jnp.int32))


_across_columns = jax.jit(across_columns)


@jax.jit
def _score_rows(across, taps, weights, queries, logit_scale):
    return class_probabilities(down_rows(across, taps, weights), queries, logit_scale)


def label_map(
    logits: Float[Array, "W S Q"],
    where: Layout,
    class_of_query: Int[np.ndarray, " Q"],
    logit_scale: float,
    threshold: float = 0.0,
    background: int = 0,
) -> Int[np.ndarray, "h w"]:
    """The label of every pixel of the image, int32 on the host, computed tile by tile.

    Pixels whose best probability is below the threshold take the background's.
    """
    scalars = class_of_query, np.float32(logit_scale), np.float32(threshold), np.int32(background)
    # All are under way before the first one is fetched.
    tiles = []
    for down, across, rows, columns in where.tiles():
        blocks = np.int32(-(-(down.stop - down.start) // ROWS_AT_ONCE))
        tiles.append((down, across, _label_tile(logits, rows, columns, blocks, *scalars, thresholded=threshold > 0)))
    labels = np.empty(where.size, np.int32)
    for down, across, tile in tiles:
        labels[down, across] = np.asarray(tile)[: down.stop - down.start, : across.stop - across.start]
    return labels


def score_map(
    logits: Float[Array, "W S Q"],
    where: Layout,
    class_of_query: Int[np.ndarray, " Q"],
    logit_scale: float,
    classes: int,
) -> Float[np.ndarray, "L h w"]:
    """The probability of every class at every pixel, float32 on the host, computed tile by tile."""
    scores, queries = np.empty((classes, *where.size), np.float32), synonyms(class_of_query, classes)
    for down, across, rows, columns in where.tiles():
        at_token_rows = _across_columns(logits, rows, columns)
        for top in range(down.start, down.stop, ROWS_AT_ONCE):
            block = slice(top - down.start, top - down.start + ROWS_AT_ONCE)
            part = _score_rows(at_token_rows, rows.taps[block], rows.weights[block], queries, np.float32(logit_scale))
            bottom = min(top + ROWS_AT_ONCE, down.stop)
            shown = np.asarray(part)[: bottom - top, :, : across.stop - across.start]
            scores[:, top:bottom, across] = shown.transpose(1, 0, 2)
    return scores
