"""Labelled images that show classes, in place of names: a folder of one's own or a part of a benchmark."""

from collections.abc import Sequence
from pathlib import Path

from gla_jax.eval.benchmarks import FOLDER
from gla_jax.eval.datasets.dataset import Dataset, open_dataset
from gla_jax.predict.examples import ExampleClasses, Labelled
from gla_jax.support.errors import DataError
from gla_jax.support.places import place


def classes_from(folder: Path | str, benchmark: str = FOLDER) -> ExampleClasses:
    """The classes that the labelled images of a folder show, for Segmenter in place of names.

    Args:
        folder: images/, labels/ with an index PNG of the same name for each (255: no class) and classes.txt, one name a
            line in the order of the indices, or classes.json, {"index": "name"}; indices that it does not name count
            as 255.
        benchmark: its images in the layout of `gla-jax eval` instead.

    Raises DataError for what cannot be used, ClassesError for names.
    """
    return example_classes(open_dataset(benchmark, place(str(folder))))


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

    names, sha256 = dataset.names.classes, dataset.fingerprint
    if indices is not None:
        sha256 += f" {list(indices)}"
    own = dataset.origin, sha256, dataset.ignore, len(chosen), read
    return ExampleClasses(names, names, tuple(range(len(names))), *own)
