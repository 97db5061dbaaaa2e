"""An image through the towers once: its labels under several settings."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from gla_jax import pipeline
from gla_jax.attention.one_key import OneKeyCount
from gla_jax.config import SegmenterConfig
from gla_jax.images.windows import Windows
from gla_jax.labels.targets import token_targets
from gla_jax.predict.examples import ClassSums, Labelled, class_sums
from gla_jax.predict.model import Model, Prepared, merged_patch
from gla_jax.predict.predict import Question, label_logits
from gla_jax.segmenter import Segmenter
from gla_jax.support.arrays import Array, Float, Integer, UInt8, l2_normalize
from gla_jax.text.prompts import Classes

# Numbers that only the step from logits to labels reads, with values that stand for all others.
LABEL_NUMBERS = {"logit_scale": 1.0, "threshold": 0.0, "prune_below": 0.0, "background_margin": 0.0}


class Encoded(NamedTuple):
    """One image after the towers."""

    tokens: pipeline.WindowTokens
    prepared: Prepared


class SettingLabels(NamedTuple):
    """The label map of one setting: its index, labels [h w], and its share of the seconds of the pass.

    one_key: of the image, on the host; None for a method that does not attend by features.
    """

    index: int
    labels: Integer[np.ndarray, "h w"]
    seconds: float
    one_key: OneKeyCount | None


_encode = jax.jit(pipeline.encode_windows)


def encode_image(model: Model, image: UInt8[np.ndarray, "h w 3"], configs: Sequence[SegmenterConfig]) -> Encoded:
    """Run the towers over the windows of an image, both of them when one of the configs reads both.

    Configs differ in what follows the towers alone.
    """
    reads_both = (config for config in configs if config.method.reads_vfm)
    prepared = model.prepare(image)
    tokens = _encode(model.params, prepared.windows, next(reads_both, configs[0]))
    return Encoded(jax.block_until_ready(tokens), prepared)


@jax.jit
def encoded_features(
    tokens: pipeline.WindowTokens, windows: Windows, params: pipeline.SegmenterParams, config: SegmenterConfig
) -> Float[Array, "W S E"]:
    """Joint-space features of length one after the towers.

    Args:
        tokens: outputs of the towers.
        windows: the same windows.
        params: of CLIP's image tower.
        config: method and dtype.
    """
    return l2_normalize(pipeline.segment_encoded(tokens, windows, params, config).rows)


@partial(jax.jit, static_argnames="counting")
def encoded_logits(
    tokens: pipeline.WindowTokens,
    windows: Windows,
    params: pipeline.SegmenterParams,
    text_embeddings: Float[Array, "Q E"],
    config: SegmenterConfig,
    counting: bool = False,
) -> pipeline.Counted:
    """Token logits [W S Q] after the towers; settings that differ in numbers alone share one program.

    Args:
        tokens: outputs of the towers.
        windows: the same windows.
        params: of CLIP's image tower.
        text_embeddings: a row of length one for every prompt.
        config: method and dtype.
        counting: whether tokens that keep one single key are counted.
    """
    rows, one_key = pipeline.segment_encoded(tokens, windows, params, config, counting=counting)
    logits = pipeline.token_logits(rows, text_embeddings, config.method.plain_precision)
    return pipeline.Counted(logits, one_key and pipeline.total_count(one_key, config.method))


def vocabulary_question(segmenter: Segmenter, classes: Classes) -> Question:
    """The question that names these classes; pixels below a threshold become class 0."""
    return Question(*segmenter.embeddings(classes), len(classes.names))


def windows_of(model: Model, prepared: Prepared, config: SegmenterConfig) -> Windows:
    """The windows of an image under settings that may merge other tokens than the model's own."""
    return prepared.windows._replace(overlaps=prepared.overlaps(merged_patch(model.params, config.method)))


def example_sums(
    model: Model, example: Labelled, configs: Sequence[SegmenterConfig], classes: int, ignore: int
) -> tuple[ClassSums, ...]:
    """The sums of the features of each class of a labelled image under each config; the towers run once.

    Args:
        model: parameters.
        example: RGB, and the class of every pixel.
        configs: settings that go with one pass of the towers.
        classes: L.
        ignore: value of pixels without a class.
    """
    image, label = example
    encoded, sums = encode_image(model, image, configs), {}
    grid, plain = encoded.prepared.grid, [replace(config, **LABEL_NUMBERS) for config in configs]
    for config in dict.fromkeys(plain):
        windows = windows_of(model, encoded.prepared, config)
        unit = np.asarray(encoded_features(encoded.tokens, windows, model.params, config))[: grid.count]
        sums[config] = class_sums(unit, token_targets(label, grid, unit.shape[:2], ignore), classes)
    return tuple(sums[config] for config in plain)


def label_settings(
    model: Model, encoded: Encoded, configs: Sequence[SegmenterConfig], question: Question | Sequence[Question]
) -> Iterator[SettingLabels]:
    """The label map of an image under every config; those that differ in LABEL_NUMBERS alone share their logits.

    Args:
        model: parameters.
        encoded: the image after the towers.
        configs: settings that go with these towers.
        question: prompts and classes, of all configs or one for each, alike for those that share their logits.
    """
    questions = [question] * len(configs) if isinstance(question, Question) else question
    tokens, prepared = encoded
    groups: dict[SegmenterConfig, list[int]] = {}
    for index, config in enumerate(configs):
        groups.setdefault(replace(config, **LABEL_NUMBERS), []).append(index)
    for config, indices in groups.items():
        begun = time.perf_counter()
        rows = questions[indices[0]].text_embeddings
        windows = windows_of(model, prepared, config)
        counted = encoded_logits(tokens, windows, model.params, rows, config, counting=True)
        logits, one_key = jax.block_until_ready(counted)
        share = (time.perf_counter() - begun) / len(indices)
        for index in indices:
            begun = time.perf_counter()
            labels = label_logits(logits, prepared, questions[index], configs[index]).labels
            yield SettingLabels(index, labels, share + time.perf_counter() - begun, jax.device_get(one_key))
