"""Images to their label maps, stage by stage, each stage timed."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from typing import Protocol as Interface

import jax
import numpy as np

from gla_jax.config import SegmenterConfig
from gla_jax.eval.datasets.dataset import Example
from gla_jax.eval.protocols import Protocol
from gla_jax.labels.label_map import Layout, label_map, layout, score_map, whole_logits
from gla_jax.segmenter import Prepared
from gla_jax.support.shapes import Array, Float, Int, Integer, UInt8, typed
from gla_jax.text.prompts import Classes


class Features(Interface):
    """What the evaluation needs of a segmenter."""

    name: str
    model_hash: str
    config: SegmenterConfig

    def text_embeddings(self, classes: Classes) -> Float[Array, "Q E"]:
        """Unit text features of every query."""

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Prepared:
        """The image cut into windows, which may happen in a thread."""

    def batch_features(self, images: Sequence[Prepared]) -> list[Float[Array, "W S E"]]:
        """Joint-space features of every window token of images with one padded number of windows."""


class Prediction(NamedTuple):
    """labels uint8 [h w] (uint16 above 256 classes); resized: size of the image that was cut into windows."""

    labels: Integer[np.ndarray, "h w"]
    resized: tuple[int, int]


class Stopwatch:
    """Seconds of each stage since the one before, of each of some images that go through it together."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, stage: str, images: int = 1) -> None:
        """The stage ends now."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + (now - self._last) / images
        self._last = now

    def take(self, *stages: str) -> dict[str, float]:
        """Some stages' seconds, which are forgotten here."""
        return {stage: self.seconds.pop(stage) for stage in stages if stage in self.seconds}


class Ready(NamedTuple):
    """An example whose image is cut into windows."""

    example: Example
    prepared: Prepared


def predictor(segmenter: Features, row: Protocol) -> Callable[[Sequence[Ready], Stopwatch], Iterator[Prediction]]:
    """The function from images that go together to their predictions under a protocol, one after the other.

    Text features are made once, here. Labels index the protocol's classes: its background is one of them, the first.
    """
    prompts = row.vocabulary
    bank = segmenter.text_embeddings(prompts)
    class_of_prompt = np.asarray(prompts.class_of_prompt, np.int32)
    dtype = np.uint8 if len(row.classes) <= 256 else np.uint16

    def labels_of(logits: Float[Array, "W S Q"], where: Layout) -> Int[np.ndarray, "h w"]:
        if not row.area_threshold:
            return label_map(logits, where, class_of_prompt, row.logit_scale, row.threshold)
        scores = score_map(logits, where, class_of_prompt, row.logit_scale, len(row.classes))
        return without_small_classes(scores, row.area_threshold, row.threshold)

    def predict(images: Sequence[Ready], watch: Stopwatch) -> Iterator[Prediction]:
        found = jax.block_until_ready(segmenter.batch_features([image.prepared for image in images]))
        watch.mark("features", len(images))
        shared = watch.take("read", "features")
        for (example, (_, grid)), features in zip(images, found, strict=True):
            watch.seconds.update(shared)
            where = layout(grid, features.shape[1], example.image.shape[:2])
            with jax.default_matmul_precision("highest"):
                labels = labels_of(whole_logits(features, bank), where)
            watch.mark("labels")
            yield Prediction(labels.astype(dtype), (grid.height, grid.width))

    return predict


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
