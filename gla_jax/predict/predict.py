"""From prepared images to label maps: the one way of every command."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from gla_jax.attention.one_key import OneKeyCount, host_count
from gla_jax.config import SegmenterConfig
from gla_jax.distributed.labels import split_logits, start_labels
from gla_jax.distributed.mesh import DATA_AXIS
from gla_jax.labels.background import labels_with_background
from gla_jax.labels.label_map import LabelRule, label_map, layout, score_map, whole_logits
from gla_jax.labels.pool import label_masks
from gla_jax.labels.probabilities import token_probabilities, with_background_tokens
from gla_jax.labels.prune import best_probabilities, prune
from gla_jax.pipeline import Counted
from gla_jax.predict.features import FeatureMap, check_usable
from gla_jax.predict.model import MAX_PROGRAM_WINDOWS, Model, Prepared
from gla_jax.support.arrays import Array, Bool, Float, Int, Integer, have_directions, typed
from gla_jax.support.batches import Stopwatch, grouped
from gla_jax.support.errors import UserError
from gla_jax.support.steps import Progress

_usable = jax.jit(have_directions)


class Question(NamedTuple):
    """Prompts and classes that an image is labelled with.

    text_embeddings: a row of length one for every prompt; class_of_prompt: index of its class; classes: L; background:
    the class of pixels below the threshold; area_threshold: above 0, a class with at most that share of all pixels
    outside class 0 is taken away (SCLIP).
    """

    text_embeddings: Float[Array, "Q E"]
    class_of_prompt: Int[np.ndarray, " Q"]
    classes: int
    background: int = 0
    area_threshold: float = 0.0

    def rule(self, config: SegmenterConfig) -> LabelRule:
        """From logits to a label under some settings."""
        dtype = np.uint8 if self.classes <= 256 else np.uint16
        scale, threshold = float(config.logit_scale), float(config.threshold)
        return LabelRule(self.class_of_prompt, scale, threshold, self.background, dtype)


class Prediction(NamedTuple):
    """labels: uint8 (uint16 above 256 classes); scores: probability of every class's best prompt, when asked for.

    one_key: of the image, on the host, where it was counted.
    """

    labels: Integer[np.ndarray, "h w"]
    scores: Float[np.ndarray, "L h w"] | None = None
    one_key: OneKeyCount | None = None


def pooled_labels(
    prediction: Prediction, masks: Iterable[Bool[np.ndarray, "h w"]], question: Question, config: SegmenterConfig
) -> Integer[np.ndarray, "h w"]:
    """The labels of a prediction with scores, one for each mask (label_masks), by the rules of the background.

    Args:
        prediction: of an image, with scores.
        masks: regions of it.
        question: its background is the label of masks that the rules send there.
        config: threshold and margin.
    """
    threshold, margin = float(config.threshold), config.background_margin
    return label_masks(prediction.labels, prediction.scores, masks, threshold, question.background, margin)


class Ready(NamedTuple):
    """Something that stands for an image, and the image at its working size."""

    item: Any
    prepared: Prepared


def predict(
    model: Model,
    images: Sequence[Prepared],
    question: Question,
    *,
    scores: bool = False,
    progress: Progress | None = None,
) -> Iterator[Prediction]:
    """Label images that have one padded number of windows, one after the other.

    Args:
        model: parameters and settings.
        images: they go through the towers together.
        question: prompts and classes.
        scores: also the probability of every class.
        progress: called with (steps done, steps) for an image that goes through in steps.
    """
    started = start(model, images, question, len(images), scores=scores, progress=progress)
    yield from (started.prediction(index) for index in range(len(images)))


class Started(NamedTuple):
    """Images that are on the device.

    usable: of each whether its features have directions, which waits for the towers; labels: of each, waits for the
    rest; one_key: of an image by its index, None where it is not counted.
    """

    usable: Sequence[Array] | Array
    labels: Sequence[Callable[[], Prediction]]
    one_key: Callable[[int], OneKeyCount | None]
    dtype: str

    def prediction(self, index: int) -> Prediction:
        """The result of an image. Raises UserError when its features would give every pixel the same label."""
        check_usable(np.asarray(jax.device_get(self.usable))[index], self.dtype)
        return self.labels[index]()._replace(one_key=jax.device_get(self.one_key(index)))


def start(
    model: Model,
    images: Sequence[Prepared],
    question: Question,
    size: int,
    *,
    scores: bool = False,
    counting: bool = False,
    progress: Progress | None = None,
) -> Started:
    """Hand images that have one padded number of windows to the device, without waiting for it.

    Args:
        model: parameters and settings.
        images: at most `size`.
        question: prompts and classes.
        size: images of the program; what is left over takes the last one again.
        scores: also the probability of every class.
        counting: also the tokens that keep one single key.
        progress: called with (steps done, steps) for an image that goes through in steps, which is waited for.
    """
    config, padded = model.config, [*images, *[images[-1]] * (size - len(images))]
    precision = config.method.plain_precision
    from_scores = scores or question.area_threshold or config.background_margin
    plain = config.average == "logits" and not (from_scores or config.prune_below)
    if model.labels_together and plain:
        return start_together(model, model.features_together(padded, progress, counting), padded, question)
    features, counts = zip(*model.counted(padded, progress, counting)[: len(images)], strict=True)
    layer = model.foreground(images) if config.foreground_below else [None] * len(images)
    labels = []
    for image, own, foreground in zip(images, features, layer, strict=True):
        logits = whole_logits(own, question.text_embeddings, precision)
        labels.append(start_label(logits, image, question, config, scores, foreground))
    return Started([_usable(own) for own in features], labels, counts.__getitem__, config.dtype)


def start_together(model: Model, features: Counted, images: Sequence[Prepared], question: Question) -> Started:
    """Hand the labels of a group to the device that has its features, in a few programs for all images.

    Args:
        model: settings, of a softmax over plain logits.
        features: of Model.features_together.
        images: the group, without what the features were padded with.
        question: prompts and classes.
    """
    mesh, precision = model.mesh, model.config.method.plain_precision
    embeddings = question.text_embeddings if mesh is None else np.asarray(question.text_embeddings)
    logits, usable = split_logits(features.rows, embeddings, mesh, precision)
    padded = [*images, *[images[-1]] * (len(usable) - len(images))]
    places = [layout(image.grid, logits.shape[2], image.size) for image in padded]
    labels = start_labels(logits, places, question.rule(model.config), mesh, precision)
    count = partial(host_count, features.one_key)
    return Started(usable, [lambda own=own: Prediction(own()) for own in labels], count, model.config.dtype)


def start_label(
    logits: Float[Array, "W S Q"],
    image: Prepared | FeatureMap,
    question: Question,
    config: SegmenterConfig,
    scores: bool = False,
    foreground: Float[Array, "W S"] | None = None,
) -> Callable[[], Prediction]:
    """Hand token logits to the device; the function waits for the labels of every pixel.

    Args:
        logits: before the logit scale.
        image: where the windows lie, and the size of the result.
        question: prompts and classes.
        config: logit scale, the rules of the background, prune_below and average.
        scores: also the probability of every class; all is then done when the function is called.
        foreground: logit of every token by CLIP-DINOiser's background layer, which foreground_below reads.

    Raises UserError when foreground_below has none to read.
    """
    if config.foreground_below and foreground is None:
        raise UserError("foreground_below reads the image's own tokens, which are not kept; segment the image itself.")
    where, rule = layout(image.grid, logits.shape[1], image.size), question.rule(config)
    precision, of_tokens = config.method.plain_precision, config.average == "probabilities"
    scale = None if of_tokens else rule.logit_scale
    averaged = token_probabilities(logits, rule.logit_scale) if of_tokens else logits
    if config.prune_below:
        best = best_probabilities(averaged, where, rule.class_of_prompt, scale, question.classes, precision)
        logits = prune(logits, best, rule.class_of_prompt, config.prune_below)
        averaged = token_probabilities(logits, rule.logit_scale) if of_tokens else logits
    if config.foreground_below:
        of_background = (rule.class_of_prompt == rule.background).astype(np.int32)
        averaged = with_background_tokens(averaged, foreground, of_background, config.foreground_below)
    # The program of labels knows a threshold on a softmax alone.
    from_scores = question.area_threshold or config.background_margin or (of_tokens and rule.threshold)
    if not (scores or from_scores):
        labels = label_map(averaged, where, rule, precision)
        return lambda: Prediction(labels())

    def scored() -> Prediction:
        probabilities = score_map(averaged, where, rule.class_of_prompt, scale, question.classes, precision)
        if from_scores:
            left, background = probabilities, rule.background
            if question.area_threshold:
                left, background = without_small_classes(probabilities, question.area_threshold), 0
            labels = labels_with_background(left, rule.threshold, config.background_margin, background)
            return Prediction(labels.astype(rule.dtype), probabilities if scores else None)
        return Prediction(label_map(averaged, where, rule, precision)(), probabilities if scores else None)

    return scored


def label_logits(
    logits: Float[Array, "W S Q"], image: Prepared, question: Question, config: SegmenterConfig
) -> Prediction:
    """Token logits to the labels of every pixel; arguments as in start_label."""
    return start_label(logits, image, question, config)()


@typed
def without_small_classes(scores: Float[np.ndarray, "L h w"], area_threshold: float) -> Float[np.ndarray, "L h w"]:
    """SCLIP's scores: 0 for small classes, those that are the best of at most that share of all pixels outside class 0.

    Class 0, the background, is never small.
    """
    areas = np.bincount(scores.argmax(0).ravel(), minlength=len(scores))[1:]
    kept = np.append(True, areas > area_threshold * areas.sum())
    return np.where(kept[:, None, None], scores, np.float32(0))


def label_images(
    model: Model,
    images: Iterable[Ready],
    question: Question,
    watch: Stopwatch,
    *,
    batch: int | None = None,
    scores: bool = False,
    counting: bool = False,
    around: Callable[[Sequence[Ready]], AbstractContextManager[Progress | None] | None] = lambda group: None,
) -> Iterator[tuple[Any, Prediction]]:
    """The loop of every command: images in groups through the device; yields (item, prediction).

    While the device works on a group, the caller has the results of the group before and the next one is read.

    Args:
        model: parameters and settings.
        images: read and resized ahead.
        question: prompts and classes.
        watch: takes the seconds of "read", "features" and "labels": those that the loop waits.
        batch: images with one padded number of windows that go through the towers together; None for as many as the
            towers take at a time.
        scores: also the probability of every class.
        counting: also the tokens that keep one single key, of a method that attends by features.
        around: of a group that is to be alone on the device, such as an image that goes through in steps, the context
            that is entered around it, which gives the progress callback; None for any other group.
    """

    def size(count: int) -> int:
        if model.mesh is None and count > MAX_PROGRAM_WINDOWS:
            return 1
        groups = 1 if model.mesh is None else model.mesh.shape[DATA_AXIS]
        wanted = -(-model.config.max_tower_batch // count) if batch is None else batch
        return -(-wanted // groups) * groups

    def finished(
        group: Sequence[Ready], started: Started, seconds: dict[str, float]
    ) -> Iterator[tuple[Any, Prediction]]:
        jax.block_until_ready(started.usable)
        watch.mark_group("features", len(group), seconds)
        for index, image in enumerate(group):
            prediction = started.prediction(index)
            watch.mark("labels")
            watch.turn_to(seconds)
            yield image.item, prediction

    before = None
    for group, room in grouped(images, lambda image: image.prepared.count, size):
        seconds: dict[str, float] = {}
        watch.mark_group("read", len(group), seconds)
        alone = around(group)
        if alone is not None and before:
            yield from finished(*before)
            before = None
        with alone or nullcontext() as progress:
            prepared = [image.prepared for image in group]
            started = start(model, prepared, question, room, scores=scores, counting=counting, progress=progress)
        watch.mark_group("features", len(group), seconds)
        if before:
            yield from finished(*before)
        before = group, started, seconds
    if before:
        yield from finished(*before)
