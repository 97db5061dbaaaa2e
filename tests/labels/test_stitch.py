"""Stitching and classification against the oracle: what a user sees as labels and scores."""

import jax.numpy as jnp
import numpy as np
import pytest

from gla_jax.config import WindowConfig
from gla_jax.images.resize import bilinear_matrix
from gla_jax.images.windows import window_grid
from gla_jax.labels.label_map import LabelRule, label_map, layout, score_map
from gla_jax.labels.stitch import stitch, stitch_plan, token_grid
from tests import oracle

SIZES = [((48, 80), (48, 80)), ((37, 33), (50, 41)), ((32, 32), (70, 20)), ((20, 45), (45, 100)), ((90, 33), (90, 20))]
TALL, WIDE = ((33, 33), (530, 20)), ((33, 48), (20, 530))  # several tiles
CROP, STRIDE, TOKENS = 32, 16, 16


def random_tokens(canvas, queries):
    grid = window_grid(*canvas, WindowConfig(None, CROP, STRIDE))
    logits = np.random.default_rng(sum(canvas)).normal(size=(grid.count, TOKENS, queries)).astype(np.float32)
    return grid, logits


def oracle_maps(grid, logits, canvas, size, classes, scale):
    shape = len(grid.row_starts), len(grid.column_starts)
    pixels = oracle.stitch(logits.astype(np.float64), shape, canvas, CROP, STRIDE, size)
    probabilities = oracle.softmax((scale * pixels).transpose(1, 2, 0))
    scores = np.stack([probabilities[..., classes == c].max(-1) for c in range(classes.max() + 1)])
    return pixels, scores


@pytest.mark.parametrize(("source", "target"), [(14, 28), (28, 224), (336, 333), (504, 500), (5, 1), (1, 5), (7, 7)])
def test_bilinear_matrix_is_the_oracles(source, target):
    np.testing.assert_allclose(bilinear_matrix(source, target), oracle.bilinear_matrix(source, target), atol=1e-7)


@pytest.mark.parametrize(("canvas", "size"), SIZES)
def test_stitched_logits_equal_the_oracle(canvas, size):
    grid, logits = random_tokens(canvas, 5)
    placed = token_grid(jnp.asarray(logits), len(grid.row_starts), len(grid.column_starts))
    found = stitch(placed, stitch_plan(grid, 4, size))
    expected, _ = oracle_maps(grid, logits, canvas, size, np.arange(5), 1.0)
    np.testing.assert_allclose(np.asarray(found).transpose(2, 0, 1), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("queries", "canvas", "size"),
    [(3, *sizes) for sizes in (*SIZES, TALL, WIDE)] + [(count, *SIZES[-1]) for count in (64, 65, 150)],
)
def test_labels_and_scores_equal_the_oracle(queries, canvas, size):
    """Tiles of rows, buckets of widths and chunks of queries leave no trace in labels or scores."""
    grid, logits = random_tokens(canvas, queries)
    classes = (np.arange(queries) * 2 // 3).astype(np.int32)
    where = layout(grid, TOKENS, size)
    padded = np.concatenate([logits, np.full((2, TOKENS, queries), 99, np.float32)])
    padded = jnp.asarray(padded)
    _, scores = oracle_maps(grid, logits, canvas, size, classes, 4.0)
    found = score_map(padded, where, classes, 4.0, int(classes.max()) + 1)
    np.testing.assert_allclose(found, scores, atol=1e-5)

    best = np.sort(scores, axis=0)
    decided = best[-1] - best[-2] > 1e-5
    threshold = float(np.median(best[-1]))
    decided &= np.abs(best[-1] - threshold) > 1e-5
    labels = label_map(padded, where, LabelRule(classes, 4.0))()
    assert labels.shape == size
    assert (labels == scores.argmax(0))[decided].all()
    thresholded = label_map(padded, where, LabelRule(classes, 4.0, threshold, background=1))()
    assert (thresholded == np.where(best[-1] < threshold, 1, scores.argmax(0)))[decided].all()


def test_of_equal_queries_the_first_wins():
    """Benchmarks with a class repeated among the background's words rely on it (argmax takes the first index)."""
    grid, logits = random_tokens((32, 32), 70)
    logits[..., 69] = logits[..., 0] = 5.0
    where = layout(grid, TOKENS, (32, 32))
    assert (label_map(jnp.asarray(logits), where, LabelRule(np.arange(70, dtype=np.int32), 40.0))() == 0).all()
