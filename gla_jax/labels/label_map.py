"""From token logits to labels: upsampling, softmax over prompts, best synonym of a class, threshold, tile by tile.

Stitching is one matrix along each axis (stitch.py). Across columns it is multiplied as such, on the run of tokens that
a tile touches; down rows a pixel sees so few tokens that they are added up one by one. A tile's program knows sizes
only in buckets: the image's own are data.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gla_jax.config import Number
from gla_jax.images.windows import WindowGrid
from gla_jax.labels.stitch import axis_matrix
from gla_jax.pipeline import token_logits
from gla_jax.support.arrays import Array, Float, Int, Integer, typed
from gla_jax.support.sized_cache import cached_up_to

TILE_SHAPE = 512, 256  # pixels of a tile: rows, columns
ROW_BLOCK = 32  # of a tile, so that their logits stay in a core's cache
BAND_MULTIPLE, TAP_MULTIPLE = 16, 2  # bands and taps are multiples of them, so that few sizes compile
PROMPT_CHUNK = 64
KEPT_BYTES = 8 * 2**20  # of the places along each axis
NOTHING = -1e30


class PixelBest(NamedTuple):
    """The best prompt of every pixel so far: its logit, its class, and the sum of exp(scale * (logit - best)) over all.

    All [h w]; the best probability of the softmax over the prompts is then 1 / total.
    """

    logit: Float[Array, "h w"]
    label: Int[Array, "h w"]
    total: Float[Array, "h w"]

    def merge(self, other: "PixelBest", logit_scale: Number) -> "PixelBest":
        """The best of two sets of prompts; of equal logits the first set wins, as argmax takes the first index."""
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


class LabelRule(NamedTuple):
    """From a pixel's logits to its label.

    class_of_prompt: index of the class of every prompt; logit_scale: factor before the softmax over prompts; threshold:
    pixels whose best probability is below it take the label background; dtype: of the labels.
    """

    class_of_prompt: Int[np.ndarray, " Q"]
    logit_scale: float
    threshold: float = 0.0
    background: int = 0
    dtype: type = np.int32

    def numbers(self) -> tuple[np.ndarray | np.generic, ...]:
        """Those that a compiled program takes as data."""
        scale, threshold = np.float32(self.logit_scale), np.float32(self.threshold)
        return self.class_of_prompt, scale, threshold, np.int32(self.background)


class Layout(NamedTuple):
    """The places of an image's tokens among its pixels, tile by tile; size (h, w) in pixels."""

    rows: tuple[Rows, ...]
    columns: tuple[Columns, ...]
    size: tuple[int, int]

    def tiles(self) -> Iterator[tuple[slice, slice, Rows, Columns]]:
        """Every tile: its pixels in the image, then what it is computed from."""
        height, width = self.size
        for top, rows in zip(range(0, height, TILE_SHAPE[0]), self.rows, strict=True):
            for left, columns in zip(range(0, width, TILE_SHAPE[1]), self.columns, strict=True):
                down, across = min(top + TILE_SHAPE[0], height), min(left + TILE_SHAPE[1], width)
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


@cached_up_to(KEPT_BYTES)
def _axis_rows(*axis: Any) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]:
    """Of every tile the tokens of its band, and Rows' taps and weights."""
    return tuple((band, *row_taps(matrix)) for band, matrix in axis_bands(*axis, tile=TILE_SHAPE[0]))


@cached_up_to(KEPT_BYTES)
def _axis_columns(*axis: Any) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Of every tile the tokens of its band, and Columns' matrix."""
    bands = axis_bands(*axis, tile=TILE_SHAPE[1])
    return tuple((band, np.ascontiguousarray(matrix.T)) for band, matrix in bands)


def axis_bands(
    starts: tuple[int, ...], length: int, crop: int, side: int, target: int, tile: int
) -> Iterator[tuple[Int[np.ndarray, " band"], Float[np.ndarray, "pixels band"]]]:
    """One axis of an image in tiles of pixels: the tokens that a tile touches, and its stitching matrix on them.

    A pixel sees the few tokens around it, so a band is short however long the axis is. starts and length: of windows of
    `side` tokens on the resized axis; target: its length in pixels. Bands are in the order in which tokens lie.
    """
    # Sorted by place, tokens of overlapping windows interleave, and those that a tile touches form one run.
    centres = np.array(starts)[:, None] + (np.arange(side) + 0.5) * crop / side
    order = np.argsort(centres.ravel(), kind="stable").astype(np.int32)
    tiles = -(-target // tile)
    matrix = np.zeros((tiles * tile, order.size), np.float32)
    matrix[:target] = axis_matrix(starts, length, crop, side, target)
    matrix = matrix[:, order].reshape(tiles, tile, -1)
    # The same width for every tile of the axis, so that they share a program.
    touched = (matrix != 0).any(1)
    first, last = touched.argmax(1), order.size - touched[:, ::-1].argmax(1)
    width = min(_rounded_up(int((last - first).max()), BAND_MULTIPLE), order.size)
    for part, begin in zip(matrix, np.minimum(first, order.size - width), strict=True):
        yield order[begin : begin + width], part[:, begin : begin + width]


def row_taps(matrix: Float[np.ndarray, "h y"]) -> tuple[Int[np.ndarray, "h k"], Float[np.ndarray, "h k"]]:
    """The columns in which the rows of a matrix are not 0, and their entries; the same number for each."""
    count = _rounded_up(int((matrix != 0).sum(1).max()), TAP_MULTIPLE)
    # A stable sort puts the columns that are not 0 first; the rest are taps of weight 0.
    taps = np.argsort(matrix == 0, axis=1, kind="stable")[:, :count].astype(np.int32)
    return taps, np.take_along_axis(matrix, taps, 1)


def _rounded_up(count: int, step: int) -> int:
    return -(-count // step) * step


def whole_logits(
    features: Float[Array, "W S E"], text_embeddings: Float[Array, "Q E"], precision: str = "highest"
) -> Float[Array, "W S Q"]:
    """Token logits of all windows on one device; precision is that of the matrix product, in JAX's words.

    Features that are split over a mesh come together here, on the first device of every process.
    """
    split = isinstance(features.sharding, NamedSharding) and features.sharding.mesh.size > 1
    everywhere = NamedSharding(features.sharding.mesh, PartitionSpec()) if split else None
    embeddings = np.asarray(text_embeddings) if split else text_embeddings
    logits = _token_logits(features, embeddings, everywhere, precision)
    return logits.addressable_data(0) if split else logits


@partial(jax.jit, static_argnames=("sharding", "precision"))
def _token_logits(features: Array, embeddings: Array, sharding: NamedSharding | None, precision: str) -> Array:
    logits = token_logits(features, embeddings, precision)
    return logits if sharding is None else jax.lax.with_sharding_constraint(logits, sharding)


@typed
def across_columns(
    logits: Float[Array, "W S Q"], rows: Rows, columns: Columns, precision: str = "highest"
) -> Float[Array, "y Q w"]:
    """Logits of a tile's pixel columns at its token rows.

    Args:
        logits: of the tokens of all windows.
        rows: the tile's token rows.
        columns: the tile's token columns and their stitching matrix.
        precision: of the matrix product, in JAX's words.
    """
    tokens = logits.reshape(-1, logits.shape[-1])[rows.starts[:, None] + columns.offsets[None]]
    return jnp.einsum("yxq,xw->yqw", tokens, columns.matrix, precision=precision)


@typed
def down_rows(
    across: Float[Array, "y Q w"], taps: Int[Array, "h k"], weights: Float[Array, "h k"]
) -> Float[Array, "h Q w"]:
    """Logits of pixels from those of their columns at token rows."""
    return sum(weights[:, k, None, None] * across[taps[:, k]] for k in range(taps.shape[1]))


@typed
def best_of(logits: Float[Array, "h Q w"], class_of_prompt: Int[Array, " Q"], logit_scale: Number) -> PixelBest:
    """The best class of every pixel: softmax over prompts, max over a class's synonyms.

    The softmax is monotonous, so the best prompt's class is the best class, and of equal ones the first prompt's.
    """
    prompts = jnp.arange(logits.shape[1])[None, :, None]
    best = logits.max(1)
    # Two plain reductions, which vectorise where argmax does not.
    first = jnp.where(logits == best[:, None], prompts, logits.shape[1]).min(1)
    total = jnp.exp(logit_scale * (logits - best[:, None])).sum(1)
    return PixelBest(best, class_of_prompt[first], total)


def synonyms(class_of_prompt: Int[np.ndarray, " Q"], classes: int) -> Int[np.ndarray, "L m"]:
    """The prompts of every class, the first one again where another has more, -1 where a class has none."""
    members = [np.flatnonzero(class_of_prompt == index) for index in range(classes)]
    table = np.full((classes, max(map(len, members))), -1, np.int32)
    for row, prompts in zip(table, members, strict=True):
        if len(prompts):
            row[:] = prompts[0]
            row[: len(prompts)] = prompts
    return table


@typed
def class_probabilities(
    logits: Float[Array, "h Q w"], prompts: Int[Array, "L m"] | Int[np.ndarray, "L m"], logit_scale: Number | None
) -> Float[Array, "h L w"]:
    """softmax(scale * logits) over the prompts, then the best synonym of each class: no distribution over L.

    prompts: of every class, by `synonyms`; logit_scale: None where logits are probabilities already.
    """
    probabilities = logits if logit_scale is None else jax.nn.softmax(logit_scale * logits, axis=1)
    best = probabilities[:, prompts].max(2)
    return jnp.where((prompts >= 0).any(1)[None, :, None], best, 0.0)


@jax.named_scope("gla-labels")
def label_tile(
    logits: Float[Array, "W S Q"],
    rows: Rows,
    columns: Columns,
    blocks: Int[Array, ""] | np.int32 | None,
    class_of_prompt: Int[Array, " Q"] | Int[np.ndarray, " Q"],
    logit_scale: Number,
    threshold: Number,
    background: Int[Array, ""] | np.int32,
    thresholded: bool,
    precision: str,
    dtype: type = np.int32,
) -> Integer[Array, "h w"]:
    """The label of every pixel of a tile; prompts go in chunks.

    Args:
        logits: of the tokens of all windows, before the logit scale.
        rows: of the tile.
        columns: of the tile.
        blocks: of pixel rows that are computed, the first ones; None for all rows at once.
        class_of_prompt, logit_scale, threshold, background, dtype: of a LabelRule.
        thresholded: False where the threshold is 0.
        precision: of the matrix product, in JAX's words.
    """
    # Under jax.disable_jit what comes from the host is still NumPy's.
    rows, columns, class_of_prompt, logit_scale = jax.tree.map(
        jnp.asarray, (rows, columns, class_of_prompt, logit_scale)
    )
    prompts = logits.shape[-1]
    size = min(PROMPT_CHUNK, prompts)
    padding = ((0, 0), (0, -prompts % size), (0, 0))
    # A mask further down would keep XLA from fusing what is done to a pixel.
    padded = jnp.pad(across_columns(logits, rows, columns, precision), padding, constant_values=NOTHING)
    chunks = padded.reshape(padded.shape[0], -1, size, padded.shape[2]).transpose(1, 0, 2, 3)
    classes = jnp.pad(class_of_prompt, (0, -prompts % size), constant_values=-1).reshape(-1, size)

    def labels_of(taps: Array, weights: Array) -> Array:
        def best(chunk: Array, own: Array) -> PixelBest:
            return best_of(down_rows(chunk, taps, weights), own, logit_scale)

        state = best(chunks[0], classes[0])
        if len(chunks) > 1:

            def step(state: PixelBest, chunk: tuple[Array, Array]) -> tuple[PixelBest, None]:
                return state.merge(best(*chunk), logit_scale), None

            state = jax.lax.scan(step, state, (chunks[1:], classes[1:]))[0]
        # Without a threshold the denominator is unused, so XLA eliminates the exponentials.
        labels = jnp.where(1.0 / state.total < threshold, background, state.label) if thresholded else state.label
        return labels.astype(dtype)

    if blocks is None:
        return labels_of(rows.taps, rows.weights)

    def block(index: Array, labels: Array) -> Array:
        own = labels_of(*(row_block(array, index) for array in (rows.taps, rows.weights)))
        return jax.lax.dynamic_update_slice_in_dim(labels, own, index * ROW_BLOCK, 0)

    return jax.lax.fori_loop(0, blocks, block, jnp.zeros((TILE_SHAPE[0], columns.matrix.shape[1]), dtype))


_label_tile = jax.jit(label_tile, static_argnames=("thresholded", "precision", "dtype"))
_across_columns = jax.jit(across_columns, static_argnames="precision")


@jax.jit
def _score_rows(across, taps, weights, prompts, logit_scale):
    taps, weights, logit_scale = jax.tree.map(jnp.asarray, (taps, weights, logit_scale))  # as in _label_tile
    return class_probabilities(down_rows(across, taps, weights), prompts, logit_scale)


def label_map(
    logits: Float[Array, "W S Q"], where: Layout, rule: LabelRule, precision: str = "highest"
) -> Callable[[], Integer[np.ndarray, "h w"]]:
    """The label of every pixel of the image, handed to the device tile by tile; the function waits for all.

    Args:
        logits: of the tokens of all windows, before the logit scale.
        where: layout of the tokens among the pixels.
        rule: from logits to a label.
        precision: of the matrix product, in JAX's words.
    """
    static = {"thresholded": rule.threshold > 0, "precision": precision, "dtype": rule.dtype}
    platform = array_platform(logits)
    tiles = [
        _label_tile(logits, rows, columns, blocks_of(down, platform), *rule.numbers(), **static)
        for down, _, rows, columns in where.tiles()
    ]
    for tile in tiles:
        tile.copy_to_host_async()
    return lambda: join_tiles(where, tiles, rule.dtype)


def array_platform(logits: Array) -> str:
    """The platform of the device that holds an array, "" while a program is traced."""
    return "" if isinstance(logits, jax.core.Tracer) else next(iter(logits.devices())).platform


def blocks_of(rows: slice, platform: str = "") -> np.int32 | None:
    """Blocks of pixel rows that a tile has in the image; None on GPUs, where the whole tile goes at once.

    For a loop of unknown length a GPU asks its host after every block whether there is another, and the host waits.
    """
    return None if platform == "gpu" else np.int32(-(-(rows.stop - rows.start) // ROW_BLOCK))


def row_block(array: Array, index: Array) -> Array:
    """The rows of a block of pixel rows."""
    return jax.lax.dynamic_slice_in_dim(array, index * ROW_BLOCK, ROW_BLOCK)


def join_tiles(where: Layout, tiles: Sequence[Array | np.ndarray], dtype: type) -> Integer[np.ndarray, "h w"]:
    """The label map of an image from those of its tiles, which are larger where the image ends."""
    labels = np.empty(where.size, dtype)
    for (down, across, _, _), tile in zip(where.tiles(), tiles, strict=True):
        labels[down, across] = np.asarray(tile)[: down.stop - down.start, : across.stop - across.start]
    return labels


def score_map(
    logits: Float[Array, "W S Q"],
    where: Layout,
    class_of_prompt: Int[np.ndarray, " Q"],
    logit_scale: float | None,
    classes: int,
    precision: str = "highest",
) -> Float[np.ndarray, "L h w"]:
    """The probability of every class at every pixel, float32 on the host, computed tile by tile.

    Args:
        logits: of the tokens of all windows, before the logit scale.
        where: layout of the tokens among the pixels.
        class_of_prompt: index of the class of every prompt.
        logit_scale: factor before the softmax over prompts, None where logits are probabilities already.
        classes: L.
        precision: of the matrix product, in JAX's words.
    """
    scale = None if logit_scale is None else np.float32(logit_scale)
    scores, prompts = np.empty((classes, *where.size), np.float32), synonyms(class_of_prompt, classes)
    for down, across, rows, columns in where.tiles():
        at_token_rows = _across_columns(logits, rows, columns, precision=precision)
        for top in range(down.start, down.stop, ROW_BLOCK):
            block = slice(top - down.start, top - down.start + ROW_BLOCK)
            part = _score_rows(at_token_rows, rows.taps[block], rows.weights[block], prompts, scale)
            bottom = min(top + ROW_BLOCK, down.stop)
            shown = np.asarray(part)[: bottom - top, :, : across.stop - across.start]
            scores[:, top:bottom, across] = shown.transpose(1, 0, 2)
    return scores
