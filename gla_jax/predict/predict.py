"""From prepared images to label maps: the one way of every command."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gla_jax.config import SegmenterConfig
from gla_jax.labels.label_map import label_map, layout, score_map, whole_logits
from gla_jax.predict.model import Model, Prepared
from gla_jax.support.arrays import Array, Float, Int, Integer, typed
from gla_jax.support.batches import Stopwatch, grouped
from gla_jax.support.errors import UserError
from gla_jax.support.steps import Progress

_all_finite = jax.jit(lambda features: jnp.isfinite(features).all())


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


class Prediction(NamedTuple):
    """labels: uint8 (uint16 above 256 classes); scores: probability of every class's best prompt, when asked for."""

    labels: Integer[np.ndarray, "h w"]
    scores: Float[np.ndarray, "L h w"] | None = None


class Ready(NamedTuple):
    """Something that stands for an image, and the image cut into windows."""

    item: Any
    prepared: Prepared


def predict(
    model: Model,
    images: Sequence[Prepared],
    question: Question,
    *,
    scores: bool = False,
    progress: Progress | None = None,
    watch: Stopwatch | None = None,
) -> Iterator[Prediction]:
    """Label images that have one padded number of windows, one after the other.

    Args:
        model: parameters and settings.
        images: they go through the towers together.
        question: prompts and classes.
        scores: also the probability of every class.
        progress: called with (steps done, steps) for an image that goes through in steps.
        watch: takes the seconds of "features" and "labels".
    """
    watch = watch or Stopwatch()
    features = jax.block_until_ready(model.features(images, progress))
    watch.mark_group("features", len(images))
    for image, own in zip(images, features, strict=True):
        if not _all_finite(own):
            raise UserError(
                f"the model gives numbers that are not finite in {model.config.dtype}; its weights are damaged or too "
                "large for it: convert them again, or choose --dtype float32."
            )
        logits = whole_logits(own, question.text_embeddings, model.config.method.precision)
        prediction = label_logits(logits, image, question, model.config, scores)
        watch.mark("labels")
        yield prediction


def label_logits(
    logits: Float[Array, "W S Q"], image: Prepared, question: Question, config: SegmenterConfig, scores: bool = False
) -> Prediction:
    """Token logits to the labels of every pixel.

    Args:
        logits: before the logit scale.
        image: where the windows lie, and the size of the result.
        question: prompts and classes.
        config: logit scale and threshold.
        scores: also the probability of every class.
    """
    where, scale = layout(image.grid, logits.shape[1], image.size), float(config.logit_scale)
    class_of_prompt, threshold = question.class_of_prompt, float(config.threshold)
    precision = config.method.precision
    probabilities = None
    if scores or question.area_threshold:
        probabilities = score_map(logits, where, class_of_prompt, scale, question.classes, precision)
    if question.area_threshold:
        labels = without_small_classes(probabilities, question.area_threshold, threshold)
    else:
        labels = label_map(logits, where, class_of_prompt, scale, threshold, question.background, precision)
    dtype = np.uint8 if question.classes <= 256 else np.uint16
    return Prediction(labels.astype(dtype), probabilities if scores else None)


@typed
def without_small_classes(
    scores: Float[np.ndarray, "L h w"], area_threshold: float, threshold: float
) -> Int[np.ndarray, "h w"]:
    """SCLIP's labels: the best class of every pixel once small classes are gone, class 0 below the threshold.

    A class other than 0 is small when at most that share of all pixels outside class 0 is labelled so.
    """
    areas = np.bincount(scores.argmax(0).ravel(), minlength=len(scores))[1:]
    kept = np.append(True, areas > area_threshold * areas.sum())
    left = np.where(kept[:, None, None], scores, np.float32(0))
    return np.where(left.max(0) < threshold, 0, left.argmax(0)).astype(np.int32)


def label_images(
    model: Model,
    images: Iterable[Ready],
    question: Question,
    watch: Stopwatch,
    *,
    batch: int = 1,
    scores: bool = False,
    around: Callable[[Sequence[Ready]], AbstractContextManager[Progress | None]] = lambda group: nullcontext(),
) -> Iterator[tuple[Any, Prediction]]:
    """The loop of `segment` and `eval`: images in groups through predict; yields (item, prediction).

    Args:
        model: parameters and settings.
        images: read and cut ahead.
        question: prompts and classes.
        watch: takes the seconds of "read", "features" and "labels".
        batch: images with one padded number of windows that go through the towers together.
        scores: also the probability of every class.
        around: entered around each group; gives the progress callback of images that go through in steps.
    """
    for group in grouped(images, lambda image: image.prepared.count, batch):
        watch.mark_group("read", len(group), new=True)
        with around(group) as progress:
            prepared = [image.prepared for image in group]
            predictions = predict(model, prepared, question, scores=scores, progress=progress, watch=watch)
            for image, prediction in zip(group, predictions, strict=True):
                yield image.item, prediction
