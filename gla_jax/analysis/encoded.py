"""An image through the towers once: its labels under several settings, and the truth on its tokens."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from gla_jax import pipeline
from gla_jax.analysis.token_attention import split_windows
from gla_jax.config import SegmenterConfig
from gla_jax.images.windows import WindowGrid, Windows
from gla_jax.predict.model import Model, Prepared
from gla_jax.predict.predict import Question, label_logits
from gla_jax.segmenter import Segmenter
from gla_jax.support.arrays import Array, Float, Int, Integer, UInt8
from gla_jax.text.prompts import Classes

UNLABELLED = -1
# Numbers that only the step from logits to labels reads, with values that stand for all others.
LABEL_NUMBERS = {"logit_scale": 1.0, "threshold": 0.0, "prune_below": 0.0}


class Encoded(NamedTuple):
    """One image after the towers."""

    tokens: pipeline.WindowTokens
    prepared: Prepared


class SettingLabels(NamedTuple):
    """The label map of one setting: its index, labels [h w], and its share of the seconds of the pass."""

    index: int
    labels: Integer[np.ndarray, "h w"]
    seconds: float


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
def encoded_logits(
    tokens: pipeline.WindowTokens,
    windows: Windows,
    params: pipeline.SegmenterParams,
    text_embeddings: Float[Array, "Q E"],
    config: SegmenterConfig,
) -> Float[Array, "W S Q"]:
    """Token logits after the towers; settings that differ in numbers alone share one program.

    Args:
        tokens: outputs of the towers.
        windows: the same windows.
        params: of CLIP's image tower.
        text_embeddings: a row of length one for every prompt.
        config: method and dtype.
    """
    attended = pipeline.aggregate_windows(tokens, windows, params, config.method)
    features = pipeline.patch_features(attended, tokens.residual, params, config)
    return pipeline.token_logits(features, text_embeddings, config.method.plain_precision)


def vocabulary_question(segmenter: Segmenter, classes: Classes) -> Question:
    """The question that names these classes; pixels below a threshold become class 0."""
    class_of_prompt = np.asarray(classes.class_of_prompt, np.int32)
    return Question(segmenter.text_embeddings(classes), class_of_prompt, len(classes.names))


def label_settings(
    model: Model, encoded: Encoded, configs: Sequence[SegmenterConfig], question: Question
) -> Iterator[SettingLabels]:
    """The label map of an image under every config; those that differ in LABEL_NUMBERS alone share their logits.

    Args:
        model: parameters.
        encoded: the image after the towers.
        configs: settings that go with these towers.
        question: prompts and classes.
    """
    tokens, prepared = encoded
    groups: dict[SegmenterConfig, list[int]] = {}
    for index, config in enumerate(configs):
        groups.setdefault(replace(config, **LABEL_NUMBERS), []).append(index)
    for config, indices in groups.items():
        begun = time.perf_counter()
        logits = encoded_logits(tokens, prepared.windows, model.params, question.text_embeddings, config)
        jax.block_until_ready(logits)
        share = (time.perf_counter() - begun) / len(indices)
        for index in indices:
            begun = time.perf_counter()
            labels = label_logits(logits, prepared, question, configs[index]).labels
            yield SettingLabels(index, labels, share + time.perf_counter() - begun)


def token_targets(
    label: Integer[np.ndarray, "h w"], grid: WindowGrid, shape: tuple[int, int], ignore: int
) -> Int[np.ndarray, "W S"]:
    """The class under the centre of every token, UNLABELLED where ignored, beside the image or in a padded window.

    Args:
        label: the class of every pixel of the image.
        grid: of its windows.
        shape: (W, S), W with padding.
        ignore: value of pixels that have no class.
    """
    side = round(shape[1] ** 0.5)

    def pixels(starts: tuple[int, ...], length: int, target: int) -> Int[np.ndarray, " windows*side"]:
        """The pixel of the image under each centre along an axis, -1 beside the image."""
        places = (np.array(starts)[:, None] + (np.arange(side) + 0.5) * grid.crop / side).ravel()
        return np.where((places >= 0) & (places < length), np.floor(places * target / length), -1).astype(int)

    rows = pixels(grid.row_starts, grid.height, label.shape[0])[:, None]
    columns = pixels(grid.column_starts, grid.width, label.shape[1])[None]
    classes = label[rows, columns].astype(np.int32)
    classes[(rows < 0) | (columns < 0) | (classes == ignore)] = UNLABELLED
    return np.pad(split_windows(classes, grid), ((0, shape[0] - grid.count), (0, 0)), constant_values=UNLABELLED)
