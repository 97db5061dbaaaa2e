"""A segmenter without weights: features are colours, so that it is fast, deterministic and right about some pixels."""

import time

import jax.numpy as jnp
import numpy as np

from gla_jax.attention.one_key import OneKeyCount
from gla_jax.config import SegmenterConfig
from gla_jax.pipeline import Counted
from gla_jax.predict.model import prepare_image

SIDE = 7  # tokens along a window


class ColourModel:
    """Features are the mean colours of SIDE x SIDE cells."""

    mesh = None
    labels_together = False

    def __init__(self, config: SegmenterConfig, seconds: float = 0.0):
        self.config = config
        self.seconds = seconds

    def prepare(self, image):
        return prepare_image(image, self.config.windows)

    def counted(self, images, progress=None, counting=True):
        """The counts differ from image to image, as those of a model do."""
        of_colour = [int((image.pixels[..., 0] > 127).sum()) // 10 for image in images]
        counts = [
            OneKeyCount(np.int32(one), np.int32(image.pixels[..., 0].size))
            for one, image in zip(of_colour, images, strict=True)
        ]
        rows = [self._features(image.windows.pixels) for image in images]
        return list(map(Counted, rows, counts if counting else [None] * len(images)))

    def _features(self, pixels):
        time.sleep(self.seconds)
        cell = self.config.windows.crop // SIDE
        cells = pixels.reshape(len(pixels), 3, SIDE, cell, SIDE, cell).mean((3, 5)) - np.float32(0.5)
        return jnp.asarray(cells.reshape(-1, 3, SIDE * SIDE).transpose(0, 2, 1) + np.float32(1e-3))


class ColourSegmenter:
    """What a run needs of a segmenter, around a ColourModel; text embeddings are fixed random colours."""

    name = "colours"
    model_hash = "0" * 64

    def __init__(self, config: SegmenterConfig, seconds: float = 0.0):
        self.model = ColourModel(config, seconds)
        self.texts = 0

    @property
    def config(self):
        return self.model.config

    def embeddings(self, classes):
        self.texts += 1
        rows = np.random.default_rng(len(classes.prompts)).normal(size=(len(classes.prompts), 3))
        rows = jnp.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), jnp.float32)
        return rows, np.asarray(classes.class_of_prompt, np.int32)
