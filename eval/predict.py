"""One image to its label map, stage by stage, each stage timed."""

import time
from collections.abc import Callable
from typing import NamedTuple
from typing import Protocol as Interface

import jax
import numpy as np

from gla_jax.classify import label_map, layout, placed_logits
from gla_jax.config import SegmenterConfig
from gla_jax.eval.protocols import Protocol
from gla_jax.shapes import Array, Float, Integer, UInt8
from gla_jax.text.prompts import Classes
from gla_jax.windows import WindowGrid


class Features(Interface):
    """What the evaluation needs of a segmenter."""

    name: str
    model_hash: str
    config: SegmenterConfig

    def text_bank(self, classes: Classes) -> Float[Array, "Q E"]:
        """Unit text features of every query."""

    def window_features(self, image: UInt8[np.ndarray, "h w 3"]) -> tuple[Float[Array, "W S E"], WindowGrid]:
        """Joint-space features of every window token and the grid the windows lie on."""


class Prediction(NamedTuple):
    """labels uint8 [h w] (uint16 above 256 classes); resized: size of the image that was cut into windows."""

    labels: Integer[np.ndarray, "h w"]
    resized: tuple[int, int]


class Stopwatch:
    """Seconds of each stage since the one before."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        """The stage ends now."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def predictor(segmenter: Features, row: Protocol) -> Callable[[UInt8[np.ndarray, "h w 3"], Stopwatch], Prediction]:
    """The function from an image to its prediction under a protocol; text features are made once, here.

    Labels index the protocol's classes: its background is one of them, the first.
    """
    prompts = row.prompts
    bank = segmenter.text_bank(prompts)
    class_of_query = np.asarray(prompts.class_of_query, np.int32)
    dtype = np.uint8 if len(row.classes) <= 256 else np.uint16

    def predict(image: UInt8[np.ndarray, "h w 3"], watch: Stopwatch) -> Prediction:
        features, grid = segmenter.window_features(image)
        jax.block_until_ready(features)
        watch.mark("features")
        where = layout(grid, features.shape[1], image.shape[:2])
        with jax.default_matmul_precision("highest"):
            placed = placed_logits(features, bank, where)
            labels = label_map(placed, where, class_of_query, row.logit_scale, row.threshold)
        watch.mark("labels")
        return Prediction(labels.astype(dtype), (grid.height, grid.width))

    return predict
