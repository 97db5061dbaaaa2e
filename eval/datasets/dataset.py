"""Benchmark data as examples: folders, a TensorFlow Datasets copy or generated scenes, read ahead by threads."""

import hashlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags

from gla_jax.eval.benchmarks import BENCHMARKS, FOLDER, TINY_WORLD, ClassNames, class_names
from gla_jax.eval.datasets.folders import find_folders
from gla_jax.eval.datasets.labels import Ignored, LabelCode, label_code, read_label
from gla_jax.images.reading import opened, to_rgb
from gla_jax.support.batches import read_ahead
from gla_jax.support.errors import DataError
from gla_jax.support.files import read_json
from gla_jax.support.shapes import Integer, UInt8

COPY_NAME, COPY_VERSION = "gla_benchmark", "1.0.0"
CLASSES_FILE = "classes.txt"
TINY_WORLD_SIZE = (336, 448)


class Example(NamedTuple):
    """One image: RGB uint8 [h w 3] and class indices [h w], with the data set's ignored value.

    ignored: the values of the label's file that are ignored, as pairs (value, pixels).
    """

    image_id: str
    image: UInt8[np.ndarray, "h w 3"]
    label: Integer[np.ndarray, "h w"]
    ignored: Ignored = ()


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


def open_dataset(benchmark: str, data: Path | None, unlabelled: bool = False) -> Dataset:
    """The data of a benchmark: `data` holds mmsegmentation's folders or a copy made by `gla-jax eval prepare`.

    tiny-world needs no data; unlabelled: the benchmark `folder` may be images without a folder of labels. Raises
    DataError when something is missing.
    """
    if benchmark == TINY_WORLD:
        return _tiny_world()
    if data is None:
        raise DataError(f"{benchmark} reads images from a folder; name it with --data.")
    if not data.is_dir():
        raise DataError(f"{data} is not a folder; --data names the one that holds {benchmark}.")
    if benchmark != FOLDER and (copy := find_copy(benchmark, data)):
        from gla_jax.eval.datasets.tfds_copy import open_copy

        return open_copy(benchmark, copy)
    return _folders(benchmark, data, unlabelled)


def find_copy(benchmark: str, data: Path) -> Path | None:
    """The folder of a TensorFlow Datasets copy that `data` is or holds, None without one.

    Raises DataError when the copy is damaged or another benchmark's.
    """
    for folder in (data, data / COPY_NAME / benchmark / COPY_VERSION):
        info = folder / "dataset_info.json"
        if info.is_file():
            content = read_json(info, "the copy is damaged:", f"remove {folder} and prepare it again", DataError)
            name, key = (isinstance(content, dict) and content.get(field) for field in ("name", "configName"))
            if (name, key) != (COPY_NAME, benchmark):
                raise DataError(
                    f"{folder} is a copy of {key or name}, not of {benchmark}; make one with gla-jax eval prepare "
                    f"{benchmark}."
                )
            return folder
    return None


def examples(dataset: Dataset, indices: Sequence[int], threads: int = 4) -> Iterator[Example]:
    """The examples at these indices, in order, read ahead by threads."""
    return read_ahead(indices, dataset.read, threads)


def example_reader(benchmark: str, code: LabelCode) -> Callable[[str, Path | bytes, Path | bytes | None], Example]:
    """Function from an id, an image file and a label file (None without one), as paths or bytes, to an Example.

    Images of `folder` are turned as their EXIF says, like those of `segment`, and labels belong to the turned image.
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
        classes, ignored = read_label(label, code, f"of {image_id}" if isinstance(label, bytes) else str(label))
        if classes.shape != size:
            turn = upright and orientation in range(5, 9) and classes.shape == size[::-1]
            advice = f"turn the label by the image's EXIF orientation {orientation} too" if turn else "they must agree"
            raise DataError(f"the label of {image_id} is {classes.shape}, its image {size}; {advice}.")
        return Example(image_id, pixels, classes, ignored)

    return read


def _folders(benchmark: str, data: Path, unlabelled: bool) -> Dataset:
    row = BENCHMARKS[benchmark]
    labelled = not unlabelled or benchmark != FOLDER or (data / row.layouts[0].labels).exists()
    files = find_folders(row, data, labelled)
    names = _names_of_folder(data) if benchmark == FOLDER else class_names(benchmark)
    code = label_code(files.layout.encoding, len(names.classes), names.tables)
    read_example = example_reader(benchmark, code)

    def read(index: int) -> Example:
        pair = files.pairs[index]
        return read_example(pair.image_id, pair.image, pair.label)

    ids = tuple(pair.image_id for pair in files.pairs)
    return Dataset(benchmark, str(files.root), ids, read, files.fingerprint(), names, code.ignore, labelled)


def _names_of_folder(data: Path) -> ClassNames:
    path = data / CLASSES_FILE
    if not path.is_file():
        raise DataError(f"{path} does not exist; write one class a line there, in the order of the labels' indices.")
    from gla_jax.text.prompts import parse_classes, read_lines

    classes = parse_classes(read_lines(path, "class"))
    synonyms: list[list[str]] = [[] for _ in classes.names]
    for prompt, index in zip(classes.prompts, classes.class_of_prompt, strict=True):
        synonyms[index].append(prompt)
    return ClassNames(classes.names, None, {"sclip": tuple(map(tuple, synonyms))}, {})


def _tiny_world() -> Dataset:
    from gla_jax.tiny_world.scenes import render

    def read(index: int) -> Example:
        scene = render(index, *TINY_WORLD_SIZE, split="test")
        return Example(ids[index], scene.image, scene.labels)

    ids = tuple(f"scene-{index:04d}" for index in range(BENCHMARKS[TINY_WORLD].images))
    fingerprint = hashlib.sha256(read(0).image.tobytes()).hexdigest()
    return Dataset(TINY_WORLD, "drawn on the fly", ids, read, fingerprint, class_names(TINY_WORLD), 255)
