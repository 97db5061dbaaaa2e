"""From token logits to labels: upsampling, softmax over queries, best synonym of a class, threshold, in row tiles."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gla_jax.config import Number
from gla_jax.shapes import Array, Float, Int, typed
from gla_jax.stitch import StitchPlan, stitch, stitch_plan
from gla_jax.windows import WindowGrid, bucket

ROWS_OF_A_TILE = 64
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


class Layout(NamedTuple):
    """Where tokens and pixels of one image lie, padded to buckets so that sizes are data.

    windows [y x] int32: index of the window at each place of the window grid; plan: the stitching matrices, rows
    [tiles t y*gh], columns [w x*gw]; size (h, w) of the image in pixels.
    """

    windows: Int[np.ndarray, "y x"]
    plan: StitchPlan
    size: tuple[int, int]


def layout(grid: WindowGrid, tokens: int, size: tuple[int, int]) -> Layout:
    """The layout of an image of size (h, w) under a window grid with `tokens` tokens a window."""
    side = round(tokens**0.5)
    rows, columns = len(grid.row_starts), len(grid.column_starts)
    index = np.zeros((bucket(rows), bucket(columns)), np.int32)
    index[:rows, :columns] = np.arange(rows * columns).reshape(rows, columns)
    plan = stitch_plan(grid, side, size)
    tall, wide = -size[0] % ROWS_OF_A_TILE, bucket(-(-size[1] // 64)) * 64 - size[1]
    row_matrix = np.pad(plan.rows, ((0, tall), (0, index.shape[0] * side - plan.rows.shape[1])))
    column_matrix = np.pad(plan.columns, ((0, wide), (0, index.shape[1] * side - plan.columns.shape[1])))
    tiles = row_matrix.reshape(-1, ROWS_OF_A_TILE, row_matrix.shape[1])
    return Layout(index, StitchPlan(tiles, column_matrix), size)


@typed
def place_tokens(token_logits: Float[Array, "W S Q"], windows: Int[Array, "y x"]) -> Float[Array, "Y X Q"]:
    """Tokens laid out as the window grid lies in the image, [y*gh x*gw Q]."""
    side = round(token_logits.shape[1] ** 0.5)
    rows, columns = windows.shape
    grid = token_logits[windows].reshape(rows, columns, side, side, -1)
    return grid.transpose(0, 2, 1, 3, 4).reshape(rows * side, columns * side, -1)


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


place_tokens_jit = jax.jit(place_tokens)


@jax.jit
def _label_tile(placed, plan, class_of_query, logit_scale, threshold, background):
    return apply_threshold(best_classes(placed, plan, class_of_query, logit_scale), threshold, background)


@partial(jax.jit, static_argnames="classes")
def _score_tile(placed, plan, class_of_query, logit_scale, classes):
    return class_probabilities(placed, plan, class_of_query, logit_scale, classes)


def label_map(
    placed: Float[Array, "Y X Q"],
    where: Layout,
    class_of_query: Int[np.ndarray, " Q"],
    logit_scale: float,
    threshold: float = 0.0,
    background: int = 0,
) -> Int[np.ndarray, "h w"]:
    """The label of every pixel of the image, int32 on the host, computed in tiles of rows."""
    height, width = where.size
    tiles = [
        np.asarray(
            _label_tile(
                placed,
                StitchPlan(rows, where.plan.columns),
                class_of_query,
                np.float32(logit_scale),
                np.float32(threshold),
                np.int32(background),
            )
        )
        for rows in where.plan.rows
    ]
    return np.concatenate(tiles)[:height, :width]


def score_map(
    placed: Float[Array, "Y X Q"],
    where: Layout,
    class_of_query: Int[np.ndarray, " Q"],
    logit_scale: float,
    classes: int,
) -> Float[np.ndarray, "L h w"]:
    """The probability of every class at every pixel, float32 on the host, computed in tiles of rows."""
    height, width = where.size
    scores = np.empty((classes, height, width), np.float32)
    for tile, rows in enumerate(where.plan.rows):
        top = tile * ROWS_OF_A_TILE
        count = min(ROWS_OF_A_TILE, height - top)
        plan = StitchPlan(rows, where.plan.columns)
        part = _score_tile(placed, plan, class_of_query, np.float32(logit_scale), int(classes))
        scores[:, top : top + count] = np.asarray(part)[:count, :width].transpose(2, 0, 1)
    return scores
