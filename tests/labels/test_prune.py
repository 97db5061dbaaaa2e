"""Vocabulary pruning against float64: classes that no pixel supports leave the softmax, and nothing else changes."""

import jax.numpy as jnp
import numpy as np
import pytest

from gla_jax.config import SegmenterConfig, WindowConfig
from gla_jax.distributed.mesh import make_mesh
from gla_jax.labels.label_map import LabelRule, label_map, layout, score_map
from gla_jax.labels.prune import best_probabilities, prune
from gla_jax.segmenter import Segmenter
from tests import oracle
from tests.labels.test_stitch import SIZES, TALL, TOKENS, WIDE, oracle_maps, random_tokens
from tests.small_models import random_pair

QUERIES = 70  # two chunks of prompts


@pytest.mark.parametrize(("canvas", "size"), [SIZES[1], SIZES[3], TALL, WIDE])
def test_labels_and_scores_are_those_without_the_classes_that_no_pixel_supports(canvas, size):
    grid, logits = random_tokens(canvas, QUERIES)
    # Far from every class: pixels beyond the image, where all logits are 0, would seem to support them.
    logits -= np.linspace(0, 3, QUERIES, dtype=np.float32) + 2
    classes = (np.arange(QUERIES) * 2 // 3).astype(np.int32)
    count = int(classes.max()) + 1
    pixels, scores = oracle_maps(grid, logits, canvas, size, classes, 4.0)
    best = np.sort(scores.max((1, 2)))
    below = (best[count // 2 - 1] + best[count // 2]) / 2

    stays = (scores.max((1, 2)) >= below)[classes]
    prompts = np.where(stays, oracle.softmax(np.where(stays, 4.0 * pixels.transpose(1, 2, 0), -np.inf)), 0)
    expected = np.stack([prompts[..., classes == label].max(-1) for label in range(count)])
    where, placed = layout(grid, TOKENS, size), jnp.asarray(logits)
    found = best_probabilities(placed, where, classes, 4.0, count)
    np.testing.assert_allclose(found, scores.max((1, 2)), atol=1e-5)
    pruned = prune(placed, found, classes, below)
    np.testing.assert_allclose(score_map(pruned, where, classes, 4.0, count), expected, atol=1e-5)
    assert (expected.max((1, 2)) == 0).sum() == count // 2
    ordered = np.sort(expected, axis=0)
    threshold = float(np.median(ordered[-1]))
    decided = (ordered[-1] - ordered[-2] > 1e-5) & (np.abs(ordered[-1] - threshold) > 1e-5)
    labels = label_map(pruned, where, LabelRule(classes, 4.0, threshold, background=1))()
    assert (labels == np.where(ordered[-1] < threshold, 1, expected.argmax(0)))[decided].all()


def test_the_best_class_stays_where_none_is_supported():
    best = jnp.array([0.2, 0.5, 0.4])
    pruned = np.asarray(prune(jnp.ones((1, 1, 4)), best, np.array([0, 1, 2, 1]), 0.9))[0, 0]
    np.testing.assert_array_equal(pruned == 1, [False, True, False, True])


def test_it_is_a_setting_of_every_way_to_labels(tmp_path):
    """Without it an image is what it was; under it labels, scores and a mesh leave out the same class."""
    config = SegmenterConfig(windows=WindowConfig(short_side=48, crop=32, stride=16))
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    segmenter = Segmenter.from_pretrained(random_pair(tmp_path), config)
    classes = ["sand; gravel", "water", "a red cloth with dots"]
    plain = segmenter(image, classes, scores=True)
    best = np.sort(plain.scores.max((1, 2)))
    below = float(best[0] + best[1]) / 2
    gone = int(plain.scores.max((1, 2)).argmin())
    pruning = segmenter.with_settings(prune_below=below)
    found = pruning(image, classes, scores=True)
    assert plain.scores[gone].max() > 0 == found.scores[gone].max()
    np.testing.assert_array_equal(found.labels, found.scores.argmax(0))
    mesh = Segmenter(segmenter.clip, segmenter.vfm, pruning.config, mesh=make_mesh())
    for other in (pruning, mesh):
        np.testing.assert_array_equal(other(image, classes).labels, found.labels)
    np.testing.assert_array_equal(pruning.with_settings(prune_below=0)(image, classes).labels, plain.labels)
