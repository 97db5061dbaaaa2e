"""Vocabulary pruning: classes that no pixel of an image supports leave the softmax over the prompts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gla_jax.config import Number
from gla_jax.labels.label_map import (
    NOTHING,
    Columns,
    Layout,
    Rows,
    across_columns,
    array_platform,
    blocks_of,
    class_probabilities,
    down_rows,
    row_block,
    synonyms,
)
from gla_jax.support.arrays import Array, Float, Int, typed


@typed
def prune(
    logits: Float[Array, "W S Q"],
    best: Float[Array, " L"],
    class_of_prompt: Int[Array, " Q"] | Int[np.ndarray, " Q"],
    prune_below: Number,
) -> Float[Array, "W S Q"]:
    """Logits without the prompts of classes whose best probability is below prune_below; the best class always stays.

    Prompts keep their places: those that leave have logits of which the softmax gives 0.

    Args:
        logits: of the tokens of all windows.
        best: of each class the best probability over all pixels.
        class_of_prompt: index of the class of every prompt.
        prune_below: a probability.
    """
    stays = (best >= prune_below) | (best == best.max())
    return jnp.where(stays[jnp.asarray(class_of_prompt)], logits, NOTHING)


def best_probabilities(
    logits: Float[Array, "W S Q"],
    where: Layout,
    class_of_prompt: Int[np.ndarray, " Q"],
    logit_scale: float | None,
    classes: int,
    precision: str = "highest",
) -> Float[Array, " L"]:
    """The best probability of every class over all pixels, on the device; with the arguments of `score_map`."""
    scale = None if logit_scale is None else np.float32(logit_scale)
    best, prompts = jnp.zeros(classes, jnp.float32), synonyms(class_of_prompt, classes)
    platform = array_platform(logits)
    for down, across, rows, columns in where.tiles():
        shape = np.array([down.stop - down.start, across.stop - across.start], np.int32)
        best = _best_in_tile(best, logits, rows, columns, shape, blocks_of(down, platform), prompts, scale, precision)
    return best


@partial(jax.jit, static_argnames="precision")
def _best_in_tile(
    best: Array,
    logits: Array,
    rows: Rows,
    columns: Columns,
    shape: Array,
    blocks: Array | None,
    prompts: Array,
    logit_scale: Array | None,
    precision: str,
) -> Array:
    """The larger of `best` [L] and the best probabilities in a tile whose first `shape` pixels lie in the image.

    blocks: of label_tile.
    """
    rows, columns, shape, prompts, logit_scale = jax.tree.map(jnp.asarray, (rows, columns, shape, prompts, logit_scale))
    across = across_columns(logits, rows, columns, precision)
    inside_columns = jnp.arange(across.shape[2], dtype=jnp.int32) < shape[1]

    def best_of_rows(taps: Array, weights: Array, numbers: Array) -> Array:
        inside = (numbers < shape[0])[:, None, None] & inside_columns[None, None]
        scores = class_probabilities(down_rows(across, taps, weights), prompts, logit_scale)
        return jnp.where(inside, scores, 0.0).max((0, 2))

    parts = rows.taps, rows.weights, jnp.arange(len(rows.taps), dtype=jnp.int32)
    if blocks is None:
        return jnp.maximum(best, best_of_rows(*parts))

    def block(index: Array, best: Array) -> Array:
        return jnp.maximum(best, best_of_rows(*(row_block(part, index) for part in parts)))

    return jax.lax.fori_loop(0, blocks, block, best)
