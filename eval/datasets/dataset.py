"""Benchmark data as examples: folders, a TensorFlow Datasets copy or generated scenes, read by Grain with threads."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from gla_jax.eval.benchmarks import BENCHMARKS, FOLDER, TINY_WORLD, ClassNames, class_names
from gla_jax.eval.datasets.folders import find_folders, find_images
from gla_jax.eval.datasets.labels import label_code, read_image, read_label
from gla_jax.support.errors import DataError
from gla_jax.support.shapes import Integer, UInt8

COPY_NAME, COPY_VERSION = "gla_benchmark", "1.0.0"
CLASSES_FILE = "classes.txt"
TINY_WORLD_SIZE = (336, 448)


class Example(NamedTuple):
    """One image: RGB uint8 [h w 3] and class indices [h w], with the data set's ignored value."""

    image_id: str
    image: UInt8[np.ndarray, "h w 3"]
    label: Integer[np.ndarray, "h w"]


@dataclass(frozen=True)
class Dataset:
    """An opened benchmark: names of all images in evaluation order, and how to read one by its index.

    fingerprint is a hash of what the data is (Found.fingerprint, or a rendered scene), the same for folders and their
    copy; origin says where it is; names are the classes with their prompts; without labels every pixel is ignored.
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
        if not info.is_file():
            continue
        try:
            content = json.loads(info.read_text("utf-8"))
        except ValueError as error:
            raise DataError(f"{info} is damaged ({error}); remove its folder and prepare it again.") from error
        if (content.get("name"), content.get("configName")) != (COPY_NAME, benchmark):
            raise DataError(
                f"{folder} is a copy of {content.get('configName') or content.get('name')}, not of {benchmark}; "
                f"make one with gla-jax eval prepare {benchmark}."
            )
        return folder
    return None


Made = TypeVar("Made")


def examples(dataset: Dataset, indices: Sequence[int], threads: int = 4) -> Iterator[Example]:
    """The examples at some indices, in order, decoded ahead by Grain's threads."""
    return read_ahead(dataset, indices, lambda example: example, threads)


def read_ahead(
    dataset: Dataset, indices: Sequence[int], made: Callable[[Example], Made], threads: int = 4
) -> Iterator[Made]:
    """What is made of the examples at some indices, in order, ahead by Grain's threads."""
    import grain

    source = grain.MapDataset.source(_Indices(indices)).map(lambda index: made(dataset.read(index)))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(source.to_iter_dataset(options))


class _Indices:
    """Grain reads anything with a length and items, but takes a plain list of ints for something else."""

    def __init__(self, indices: Sequence[int]):
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> int:
        return self._indices[index]


def checked_example(image_id: str, image: np.ndarray, label: np.ndarray) -> Example:
    """An example whose label has the image's size. Raises DataError for another."""
    if image.shape[:2] != label.shape:
        raise DataError(f"the label of {image_id} is {label.shape}, its image {image.shape[:2]}; they must agree.")
    return Example(image_id, image, label)


def _folders(benchmark: str, data: Path, unlabelled: bool) -> Dataset:
    without = unlabelled and benchmark == FOLDER and not (data / BENCHMARKS[FOLDER].layouts[0].labels).exists()
    found = find_images(BENCHMARKS[benchmark], data) if without else find_folders(BENCHMARKS[benchmark], data)
    names = _names_of_folder(data) if benchmark == FOLDER else class_names(benchmark)
    code = label_code(found.layout.encoding, len(names.classes), names.tables)

    def read(index: int) -> Example:
        pair = found.pairs[index]
        image = read_image(pair.image, str(pair.image))
        if pair.label is None:
            return Example(pair.image_id, image, np.full(image.shape[:2], code.ignore, code.dtype))
        label = read_label(pair.label, code, str(pair.label))
        return checked_example(pair.image_id, image, label)

    ids = tuple(pair.image_id for pair in found.pairs)
    return Dataset(benchmark, str(found.root), ids, read, found.fingerprint(), names, code.ignore, not without)


def _names_of_folder(data: Path) -> ClassNames:
    path = data / CLASSES_FILE
    if not path.is_file():
        raise DataError(f"{path} does not exist; write one class a line there, in the order of the labels' indices.")
    from gla_jax.text.prompts import parse_classes, read_lines

    classes = parse_classes(read_lines(path, "class"))
    synonyms = tuple(
        tuple(prompt for prompt, owner in zip(classes.prompts, classes.class_of_prompt, strict=True) if owner == index)
        for index in range(len(classes.names))
    )
    return ClassNames(classes.names, None, {"sclip": synonyms}, {})


def _tiny_world() -> Dataset:
    from gla_jax.tiny_world.scenes import render

    def read(index: int) -> Example:
        scene = render(index, *TINY_WORLD_SIZE, split="test")
        return Example(ids[index], scene.image, scene.labels)

    ids = tuple(f"scene-{index:04d}" for index in range(BENCHMARKS[TINY_WORLD].images))
    fingerprint = hashlib.sha256(read(0).image.tobytes()).hexdigest()
    return Dataset(TINY_WORLD, "drawn on the fly", ids, read, fingerprint, class_names(TINY_WORLD), 255)
