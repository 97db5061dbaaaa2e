"""Images to their label maps, stage by stage, each stage timed."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from typing import Protocol as Interface

import jax
import numpy as np

from gla_jax.classify import label_map, layout, whole_logits
from gla_jax.config import SegmenterConfig
from gla_jax.eval.datasets import Example
from gla_jax.eval.protocols import Protocol
from gla_jax.segmenter import Prepared
from gla_jax.shapes import Array, Float, Integer, UInt8
from gla_jax.text.prompts import Classes


class Features(Interface):
    """What the evaluation needs of a segmenter."""

    name: str
    model_hash: str
    config: SegmenterConfig

    def text_bank(self, classes: Classes) -> Float[Array, "Q E"]:
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
    prompts = row.prompts
    bank = segmenter.text_bank(prompts)
    class_of_query = np.asarray(prompts.class_of_query, np.int32)
    dtype = np.uint8 if len(row.classes) <= 256 else np.uint16

    def predict(images: Sequence[Ready], watch: Stopwatch) -> Iterator[Prediction]:
        found = jax.block_until_ready(segmenter.batch_features([image.prepared for image in images]))
        watch.mark("features", len(images))
        shared = watch.take("read", "features")
        for (example, (_, grid)), features in zip(images, found, strict=True):
            watch.seconds.update(shared)
            where = layout(grid, features.shape[1], example.image.shape[:2])
            with jax.default_matmul_precision("highest"):
                labels = label_map(whole_logits(features, bank), where, class_of_query, row.logit_scale, row.threshold)
            watch.mark("labels")
            yield Prediction(labels.astype(dtype), (grid.height, grid.width))

    return predict
