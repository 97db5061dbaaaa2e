"""Examples of benchmark data: an image with its label, read ahead by threads."""

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags

from gla_jax.eval.benchmarks import FOLDER, ClassNames
from gla_jax.eval.datasets.labels import LabelCode, read_label
from gla_jax.images.reading import opened, to_rgb
from gla_jax.support.arrays import Integer, UInt8
from gla_jax.support.batches import read_ahead
from gla_jax.support.errors import DataError


class Example(NamedTuple):
    """One image: RGB uint8 [h w 3] and class indices [h w], with the data set's ignored value."""

    image_id: str
    image: UInt8[np.ndarray, "h w 3"]
    label: Integer[np.ndarray, "h w"]


@dataclass(frozen=True)
class Dataset:
    """An opened benchmark: names of all images in evaluation order, and how to read one by its index.

    fingerprint is a hash of what the data is (DataFiles.fingerprint, or a rendered scene), the same for folders and
    their copy; origin says where it is; names are the classes with their prompts; without labels every pixel is
    ignored.
    """

    benchmark: str
    origin: str
    ids: tuple[str, ...]
    read: Callable[[int], Example]
    fingerprint: str
    names: ClassNames
    ignore: int
    labelled: bool = True


def examples(dataset: Dataset, indices: Sequence[int], threads: int = 4) -> Iterator[Example]:
    """The examples at these indices, in order, read ahead by threads."""
    return read_ahead(indices, dataset.read, threads)


def example_reader(benchmark: str, code: LabelCode) -> Callable[[str, Path | bytes, Path | bytes | None], Example]:
    """Function from an id, an image file and a label file (None without one), as paths or bytes, to an Example.

    Images of `folder` are turned as their EXIF says, like those of `segment`, and labels, turned as theirs says, belong
    to the turned image.
    The benchmarks' labels belong to the images as they are stored: mmsegmentation's figures are of such pairs.
    """
    upright, turned = benchmark == FOLDER, itertools.count()

    def read(image_id: str, image: Path | bytes, label: Path | bytes | None) -> Example:
        name = image_id if isinstance(image, bytes) else str(image)
        with opened(image, name, DataError) as picture:
            orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
            pixels = to_rgb(picture, upright)
        if orientation in range(2, 9) and not upright and next(turned) == 0:  # once for all threads
            warnings.warn(
                f"{name} has the EXIF orientation {orientation}; {benchmark} reads images as they are stored, without "
                "turning them, as mmsegmentation pairs them with labels",
                stacklevel=2,
            )
        size = pixels.shape[:2]
        if label is None:
            return Example(image_id, pixels, np.full(size, code.ignore, code.dtype))
        classes = read_label(label, code, f"of {image_id}" if isinstance(label, bytes) else str(label), upright)
        if classes.shape != size:
            turn = upright and orientation in range(5, 9) and classes.shape == size[::-1]
            advice = f"turn the label by the image's EXIF orientation {orientation} too" if turn else "they must agree"
            raise DataError(f"the label of {image_id} is {classes.shape}, its image {size}; {advice}.")
        return Example(image_id, pixels, classes)

    return read
