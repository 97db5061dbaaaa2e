"""Labelled images that show classes, in place of names: a folder of one's own or a part of a benchmark."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gla_jax.eval.benchmarks import FOLDER, TINY_WORLD
from gla_jax.eval.datasets.dataset import CLASSES_FILE, CLASSES_JSON, Dataset, examples, open_dataset
from gla_jax.predict.examples import ExampleClasses, Labelled
from gla_jax.support.errors import DataError
from gla_jax.support.places import is_folder, is_remote, place
from gla_jax.text.prompts import quote


def classes_from(folder: Path | str, benchmark: str = FOLDER) -> ExampleClasses:
    """The classes that the labelled images of a folder show, for Segmenter in place of names.

    Args:
        folder: images/, labels/ with an index PNG of the same name for each (255: no class) and classes.txt, one name a
            line in the order of the indices, or classes.json, {"index": "name"}; indices that it does not name count
            as 255.
        benchmark: its images in the layout of `gla-jax eval` instead.

    Raises DataError for what cannot be used, ClassesError for names.
    """
    if not isinstance(folder, str | Path) and not is_remote(folder):
        raise DataError(f"classes_from takes the path of a folder, not a value of type {type(folder).__name__}.")
    home = place(str(folder))
    if home.suffix != ".tar" and not is_folder(home):
        raise DataError(
            f"{folder} is not a folder of labelled images; name one with images/, labels/ and {CLASSES_FILE}."
        )
    return example_classes(open_dataset(benchmark, home))


def benchmark_examples(folder: Path | str, benchmark: str, classes: Sequence[str]) -> ExampleClasses:
    """The classes of a benchmark as labelled images show them, in the benchmark's own layout or that of classes_from.

    Args:
        folder: of the images.
        benchmark: its key.
        classes: names of all its classes in order; a folder with names of its own may show some of them.

    Raises DataError for what cannot be used and for other names.
    """
    place_of, own = place(str(folder)), (FOLDER, TINY_WORLD)
    named = any((place_of / name).is_file() for name in (CLASSES_FILE, CLASSES_JSON))
    shown = classes_from(folder, FOLDER if named or benchmark in own else benchmark)
    if foreign := [name for name in shown.names if name not in classes]:
        listed = f"the {CLASSES_FILE} of --data" if benchmark == FOLDER else f"gla-jax eval --list {benchmark}"
        raise DataError(
            f"{folder} shows {quote(foreign[0])}, which is no class of {benchmark}; name the classes there as in "
            f"{listed}."
        )
    if shown.names == tuple(classes):
        return shown
    table = np.full(shown.ignore + 1, shown.ignore, np.uint16)
    table[: len(shown.names)] = [classes.index(name) for name in shown.names]

    def read(index: int) -> Labelled:
        image, label = shown.read(index)
        return image, table[label]

    return replace(shown, names=tuple(classes), read=read)


def warn_of_measured_examples(shown: ExampleClasses, dataset: Dataset) -> None:
    """Warn where the images to be measured show the classes themselves: the figures would be too good."""
    if os.path.realpath(shown.origin) == os.path.realpath(dataset.origin):
        warnings.warn(
            f"the images in {shown.origin} both show the classes and are measured, so the figures are too good; name "
            "others with --classes-from, or let gla-jax ablate --folds split them",
            stacklevel=2,
        )


def _content(dataset: Dataset) -> str:
    """SHA-256 over the pixels of all images and their classes.

    Fingerprints of data sets miss images that change and keep their size, and other indices of the same names.
    """
    sha = hashlib.sha256()
    for image_id, *arrays in examples(dataset, range(len(dataset.ids))):
        sha.update(f"{image_id} {[array.shape for array in arrays]}\n".encode())
        for array in arrays:
            sha.update(np.ascontiguousarray(array))
    return sha.hexdigest()


def example_classes(dataset: Dataset, indices: Sequence[int] | None = None) -> ExampleClasses:
    """The classes that images of a data set show, all of them or those at some indices.

    Raises DataError when there is no image.
    """
    chosen = range(len(dataset.ids)) if indices is None else indices
    if not chosen:
        raise DataError(f"no labelled image of {dataset.origin} is left to show the classes; name other ones.")

    def read(index: int) -> Labelled:
        _, image, label = dataset.read(chosen[index])
        return image, label

    names = dataset.names.classes
    sha256 = _content(dataset) if indices is None else f"{dataset.fingerprint} {list(indices)}"
    own = dataset.origin, sha256, dataset.ignore, len(chosen), read
    return ExampleClasses(names, names, tuple(range(len(names))), *own)
