"""From token logits to labels: upsampling, softmax over queries, best synonym of a class, threshold, in row tiles."""

from collections.abc import Iterator
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gla_jax.config import Number
from gla_jax.logits import token_logits
from gla_jax.shapes import Array, Float, Int, typed
from gla_jax.stitch import StitchPlan, axis_matrix, stitch
from gla_jax.windows import WindowGrid, bucket

ROWS_OF_A_TILE, COLUMNS_OF_A_TILE = 64, 128
TOKENS_OF_A_BAND = 16  # bands are multiples of it, so that few sizes compile
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


class Bands(NamedTuple):
    """One axis of an image in tiles of pixels: each tile's stitching matrix on the run of tokens it touches.

    A pixel sees the few tokens around it, so a band is short however long the axis is. order [x]: the tokens of all
    windows by where they lie; starts [tiles]: the first token of each band in that order; matrix [tiles pixels band].
    """

    order: Int[np.ndarray, " x"]
    starts: Int[np.ndarray, " tiles"]
    matrix: Float[np.ndarray, "tiles pixels band"]


class Layout(NamedTuple):
    """Where tokens and pixels of one image lie, padded to buckets so that sizes are data.

    windows [y x] int32: index of the window at each place of the window grid; size (h, w) of the image in pixels.
    """

    windows: Int[np.ndarray, "y x"]
    rows: Bands
    columns: Bands
    size: tuple[int, int]


def layout(grid: WindowGrid, tokens: int, size: tuple[int, int]) -> Layout:
    """The layout of an image of size (h, w) under a window grid with `tokens` tokens a window."""
    side = round(tokens**0.5)
    rows, columns = len(grid.row_starts), len(grid.column_starts)
    index = np.zeros((bucket(rows), bucket(columns)), np.int32)
    index[:rows, :columns] = np.arange(rows * columns).reshape(rows, columns)
    return Layout(
        index,
        axis_bands(grid.row_starts, grid.height, grid.crop, side, size[0], ROWS_OF_A_TILE),
        axis_bands(grid.column_starts, grid.width, grid.crop, side, size[1], COLUMNS_OF_A_TILE),
        size,
    )


@lru_cache(maxsize=256)
def axis_bands(starts: tuple[int, ...], length: int, crop: int, side: int, target: int, tile: int) -> Bands:
    """The bands of one axis: windows of `side` tokens, resized length and target length in pixels."""
    windows = bucket(len(starts))
    centres = np.full((windows, side), np.inf)
    centres[: len(starts)] = np.array(starts)[:, None] + (np.arange(side) + 0.5) * crop / side
    order = np.argsort(centres.ravel(), kind="stable").astype(np.int32)

    tiles = bucket(-(-target // tile))
    matrix = np.zeros((tiles * tile, windows * side), np.float32)
    matrix[:target, : len(starts) * side] = axis_matrix(starts, length, crop, side, target)
    matrix = matrix[:, order].reshape(tiles, tile, -1)
    touched = (matrix != 0).any(1)
    first, last = touched.argmax(1), matrix.shape[2] - touched[:, ::-1].argmax(1)
    longest = int(np.where(touched.any(1), last - first, 0).max())
    band = min(-(-longest // TOKENS_OF_A_BAND) * TOKENS_OF_A_BAND, matrix.shape[2])
    begins = np.minimum(first, matrix.shape[2] - band).astype(np.int32)
    runs = np.stack([part[:, begin : begin + band] for part, begin in zip(matrix, begins, strict=True)])
    for array in (order, begins, runs):
        array.flags.writeable = False
    return Bands(order, begins, runs)


@typed
def place_tokens(token_logits: Float[Array, "W S Q"], windows: Int[Array, "y x"]) -> Float[Array, "Y X Q"]:
    """Tokens laid out as the window grid lies in the image, [y*gh x*gw Q]."""
    side = round(token_logits.shape[1] ** 0.5)
    rows, columns = windows.shape
    grid = token_logits[windows].reshape(rows, columns, side, side, -1)
    return grid.transpose(0, 2, 1, 3, 4).reshape(rows * side, columns * side, -1)


def placed_logits(features: Float[Array, "W S E"], text_bank: Float[Array, "Q E"], where: Layout) -> Array:
    """Token logits laid out as the windows lie in the image, [y*gh x*gw Q]; whole on one device.

    Features that are split over a mesh come together here, on the first device of every process.
    """
    split = isinstance(features.sharding, NamedSharding) and features.sharding.mesh.size > 1
    everywhere = NamedSharding(features.sharding.mesh, PartitionSpec()) if split else None
    bank = np.asarray(text_bank) if split else text_bank
    with jax.default_matmul_precision("highest"):
        placed = _placed_logits(features, bank, where.windows, everywhere)
    return placed.addressable_data(0) if split else placed


@partial(jax.jit, static_argnames="sharding")
def _placed_logits(features: Array, bank: Array, windows: Array, sharding: NamedSharding | None) -> Array:
    placed = place_tokens(token_logits(features, bank), windows)
    return placed if sharding is None else jax.lax.with_sharding_constraint(placed, sharding)


@typed
def best_classes(
    placed: Float[Array, "Y X Q"], plan: StitchPlan, class_of_query: Int[Array, " Q"], logit_scale: Number
) -> PixelBest:
    """The best class of every pixel of a tile, queries in chunks: softmax over queries, max over a class's synonyms.

    The softmax is monotonous, so the best query's class is the best class. class_of_query is -1 for padding.
    """
    queries = placed.shape[-1]
    size = min(QUERIES_OF_A_CHUNK, queries)
    padded = jnp.pad(placed, ((0, 0), (0, 0), (0, -queries % size)))
    chunks = padded.reshape(*placed.shape[:2], -1, size).transpose(2, 0, 1, 3)
    classes = jnp.pad(class_of_query, (0, -queries % size), constant_values=-1).reshape(-1, size)

    def step(state: PixelBest, chunk: tuple[Array, Array]) -> tuple[PixelBest, None]:
        tokens, labels = chunk
        logits = jnp.where(labels[None, None] >= 0, stitch(tokens, plan), NOTHING)
        best = logits.max(-1)
        total = jnp.exp(logit_scale * (logits - best[..., None])).sum(-1)
        return state.merge(PixelBest(best, labels[logits.argmax(-1)], total), logit_scale), None

    shape = plan.rows.shape[0], plan.columns.shape[0]
    start = PixelBest(jnp.full(shape, NOTHING), jnp.full(shape, -1, jnp.int32), jnp.zeros(shape))
    return jax.lax.scan(step, start, (chunks, classes))[0]


@typed
def class_probabilities(
    placed: Float[Array, "Y X Q"],
    plan: StitchPlan,
    class_of_query: Int[Array, " Q"],
    logit_scale: Number,
    classes: int,
) -> Float[Array, "h w L"]:
    """softmax(scale * logits) over the queries, then the best synonym of each class: no distribution over L."""
    logits = logit_scale * stitch(placed, plan)
    logits = jnp.where(class_of_query[None, None] >= 0, logits, NOTHING)
    probabilities = jax.nn.softmax(logits, axis=-1)
    # Padded queries (class -1) fall outside the segments and are dropped.
    by_class = jax.ops.segment_max(jnp.moveaxis(probabilities, -1, 0), class_of_query, classes)
    return jnp.moveaxis(jnp.maximum(by_class, 0.0), 0, -1)


@typed
def apply_threshold(best: PixelBest, threshold: Number, background: int | Int[Array, ""]) -> Int[Array, "h w"]:
    """Labels, with the background's where the best probability is below the threshold."""
    return jnp.where(1.0 / best.total < threshold, background, best.label)


@jax.jit
def _in_order(placed: Array, rows: Array, columns: Array) -> Array:
    return placed[rows][:, columns]


def _strip(ordered: Array, start: Array, band: int, axis: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(ordered, start, band, axis)


@partial(jax.jit, static_argnames="thresholded")
def _label_tiles(ordered, start, matrix, columns, class_of_query, logit_scale, threshold, background, thresholded):
    """Labels of one row of tiles, [tiles rows columns]."""
    strip = _strip(ordered, start, matrix.shape[1], 0)

    def label(tile: tuple[Array, Array]) -> Array:
        tokens = _strip(strip, tile[0], columns.matrix.shape[2], 1)
        best = best_classes(tokens, StitchPlan(matrix, tile[1]), class_of_query, logit_scale)
        # Without a threshold nobody asks for the softmax's denominator, and XLA drops its exponentials.
        return apply_threshold(best, threshold, background) if thresholded else best.label

    return jax.lax.map(label, (columns.starts, columns.matrix))


@partial(jax.jit, static_argnames="classes")
def _score_tiles(ordered, start, matrix, columns, class_of_query, logit_scale, classes):
    """Probabilities of one row of tiles, [tiles rows columns L]."""
    strip = _strip(ordered, start, matrix.shape[1], 0)

    def score(tile: tuple[Array, Array]) -> Array:
        tokens = _strip(strip, tile[0], columns.matrix.shape[2], 1)
        return class_probabilities(tokens, StitchPlan(matrix, tile[1]), class_of_query, logit_scale, classes)

    return jax.lax.map(score, (columns.starts, columns.matrix))


def label_map(
    placed: Float[Array, "Y X Q"],
    where: Layout,
    class_of_query: Int[np.ndarray, " Q"],
    logit_scale: float,
    threshold: float = 0.0,
    background: int = 0,
) -> Int[np.ndarray, "h w"]:
    """The label of every pixel of the image, int32 on the host, computed tile by tile."""
    height, width = where.size
    ordered = _in_order(placed, where.rows.order, where.columns.order)
    scalars = class_of_query, np.float32(logit_scale), np.float32(threshold), np.int32(background)
    # All are under way before the first one is fetched.
    tiles = [
        _label_tiles(ordered, start, matrix, where.columns, *scalars, thresholded=threshold > 0)
        for start, matrix in _rows_of_tiles(where)
    ]
    rows = [np.asarray(row).transpose(1, 0, 2).reshape(ROWS_OF_A_TILE, -1)[:, :width] for row in tiles]
    return np.concatenate(rows)[:height]


def score_map(
    placed: Float[Array, "Y X Q"],
    where: Layout,
    class_of_query: Int[np.ndarray, " Q"],
    logit_scale: float,
    classes: int,
) -> Float[np.ndarray, "L h w"]:
    """The probability of every class at every pixel, float32 on the host, computed tile by tile."""
    height, width = where.size
    ordered = _in_order(placed, where.rows.order, where.columns.order)
    scores = np.empty((classes, height, width), np.float32)
    for index, (start, matrix) in enumerate(_rows_of_tiles(where)):
        top = index * ROWS_OF_A_TILE
        count = min(ROWS_OF_A_TILE, height - top)
        part = _score_tiles(ordered, start, matrix, where.columns, class_of_query, np.float32(logit_scale), classes)
        row = np.asarray(part).transpose(3, 1, 0, 2).reshape(classes, ROWS_OF_A_TILE, -1)
        scores[:, top : top + count] = row[:, :count, :width]
    return scores


def _rows_of_tiles(where: Layout) -> Iterator[tuple[Int[np.ndarray, ""], Float[np.ndarray, "pixels band"]]]:
    """The start and matrix of each row of tiles that holds pixels of the image."""
    return zip(where.rows.starts, where.rows.matrix[: -(-where.size[0] // ROWS_OF_A_TILE)], strict=False)
