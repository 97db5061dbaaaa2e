"""A segmenter for Ray Data."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gla_jax.segmenter import Segmenter as OneSegmenter


class Segmenter:
    """Adds labels to batches of images: the stateful callable of `ray.data.Dataset.map_batches`.

    dataset.map_batches(gla_jax.ray.Segmenter, fn_constructor_kwargs={"classes": [...], "model": "..."},
                        batch_size=8, num_gpus=1, concurrency=4)
    """

    def __init__(
        self,
        classes: Sequence[str] | Mapping[str, Sequence[str]],
        model: str,
        *,
        image_column: str = "image",
        labels_column: str = "labels",
        settings: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        """Load the model, once an actor.

        Args:
            classes: names, as gla_jax.Segmenter takes them.
            model: name or folder.
            image_column: holds RGB uint8 [h w 3], as ray.data.read_images gives them.
            labels_column: is added, class indices [h w].
            settings: options of gla_jax.Segmenter.from_pretrained.
            options: of gla_jax.Segmenter.batch, such as background and threshold.
        """
        self._segmenter = OneSegmenter.from_pretrained(model, **(settings or {}))
        self._classes, self._options = classes, options
        self._image, self._labels = image_column, labels_column

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with a column of labels, one array where all images have one size."""
        results = self._segmenter.batch(list(batch[self._image]), self._classes, **self._options)
        labels = [result.labels for result in results]
        if len({one.shape for one in labels}) == 1:
            return batch | {self._labels: np.stack(labels)}
        column = np.empty(len(labels), object)
        column[:] = labels
        return batch | {self._labels: column}
