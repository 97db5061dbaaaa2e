"""The cost of each step that composes with the method: what it adds is the difference to the row without it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from gla_jax.bench.parts import Subject, attention_row, bench_row, label_flops
from gla_jax.bench.timing import Bench, Row, random_array
from gla_jax.images.windows import bucket
from gla_jax.labels.label_map import whole_logits
from gla_jax.labels.pool import label_masks
from gla_jax.predict.features import cell_plan, stitched_features
from gla_jax.predict.predict import Prediction, start_label
from gla_jax.support.arrays import Array

STEP = 0.05  # threshold of pruning and margin; any above 0 costs the same
MASK_SIDE = 4  # squares along a side, which cover the image


def step_rows(subject: Subject, bench: Bench) -> Iterator[Callable[[], Row]]:
    """Label maps with pruning, a margin, masks; features without classes; attention with merged tokens, calibrated."""
    count, width = subject.options.grid.count, subject.model.params.joint_width
    features = random_array((bucket(count), subject.widths.tokens, width))
    flops = label_flops(subject)

    def measured(name: str, flops: float, function: Callable, **fields: float) -> Callable[[], Row]:
        row = bench_row("steps", name, {"float32": flops}, subject, bench)
        return lambda: bench.measure(row, partial(function, subject, features, **fields))

    yield measured("labels alone", flops, _labels)
    yield measured("labels, pruning", flops, _labels, prune_below=STEP)
    yield measured("labels, margin", flops, _labels, background_margin=STEP)
    yield measured(f"labels, {MASK_SIDE**2} masks", flops, _masked)
    yield measured("features, no classes", _stitch_flops(subject), _stitched)
    attention = partial(attention_row, "blockwise", "steps", count, subject, bench)
    yield attention
    yield partial(attention, merge_overlaps=True)
    if subject.model.config.method.reads_vfm:
        yield partial(attention, calibration="centred")


def _labels(subject: Subject, features: Array, scores: bool = False, **fields: float) -> Prediction:
    config, question = replace(subject.model.config, **fields), subject.question
    logits = whole_logits(features, question.text_embeddings, config.method.plain_precision)
    return start_label(logits, subject.prepared, question, config, scores)()


def _masked(subject: Subject, features: Array) -> np.ndarray:
    labels, scores, _ = _labels(subject, features, scores=True)
    height, width = labels.shape
    squares = np.add.outer(np.arange(height) * MASK_SIDE // height * MASK_SIDE, np.arange(width) * MASK_SIDE // width)
    return label_masks(labels, scores, [squares == index for index in range(MASK_SIDE**2)])


def _stitched(subject: Subject, features: Array) -> np.ndarray:
    grid = subject.prepared.grid
    return stitched_features(np.asarray(features)[: grid.count], grid)


def _stitch_flops(subject: Subject) -> float:
    """2 E multiply-adds of rows [cells tokens] times tokens, then of columns: both matrices are dense."""
    plan = cell_plan(subject.prepared.grid, round(subject.widths.tokens**0.5))
    rows, columns = (matrix.shape for matrix in plan)
    return 2.0 * subject.model.params.joint_width * columns[1] * rows[0] * (rows[1] + columns[0])
