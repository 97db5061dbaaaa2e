"""A benchmark as a TensorFlow Datasets copy: ArrayRecord files, built and read without TensorFlow.

Images keep their original bytes; labels are stored as PNGs that already hold class indices, so that a reader needs to
know nothing about the benchmark's own encoding.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from gla_jax.eval.benchmarks import BENCHMARKS, FOLDER, TINY_WORLD, class_names
from gla_jax.eval.datasets.examples import Dataset, Example, example_reader
from gla_jax.eval.datasets.folders import COPY_NAME, COPY_VERSION, find_copy, find_folders
from gla_jax.eval.datasets.ids import checked_id
from gla_jax.eval.datasets.labels import label_code, read_label, write_label
from gla_jax.outputs.files import writing_to
from gla_jax.support.errors import DataError
from gla_jax.support.files import read_json
from gla_jax.support.places import content_of, make_folder, on_disk, written_on_disk

SPLIT = "validation"
TFDS_FEATURES = "tensorflow_datasets.core.features."
IDS, FINGERPRINT = "image_ids", "fingerprint"
COPIED = tuple(key for key in BENCHMARKS if key not in (FOLDER, TINY_WORLD))


class GlaBenchmark(tfds.core.GeneratorBasedBuilder):
    """Image and label, in class indices, of a benchmark in evaluation order; the names stand in its metadata."""

    name = COPY_NAME
    VERSION = tfds.core.Version(COPY_VERSION)
    RELEASE_NOTES = {COPY_VERSION: "Labels hold class indices, 255 is ignored."}  # noqa: RUF012 - TFDS reads a plain dict
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=key) for key in COPIED]  # noqa: RUF012 - as TFDS declares it
    source: Path  # the benchmark as mmsegmentation lays it out; TFDS's own manual_dir takes paths on disk alone

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(None, None, 3))
        label = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        # Shuffling would change the order of evaluation.
        return tfds.core.DatasetInfo(
            builder=self, features=features, disable_shuffling=True, metadata=tfds.core.MetadataDict()
        )

    def _split_generators(self, manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {SPLIT: self._generate_examples(self.source)}

    def _generate_examples(self, data: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        benchmark = BENCHMARKS[self.builder_config.name]
        names = class_names(benchmark.key)
        files = find_folders(benchmark, data)
        code = label_code(files.layout.encoding, len(names.classes), names.tables)
        # Kept apart, so that the names are known without reading the images through.
        self.info.metadata[IDS] = [pair.image_id for pair in files.pairs]
        self.info.metadata[FINGERPRINT] = files.fingerprint()
        for index, pair in enumerate(files.pairs):
            png = io.BytesIO()
            write_label(png, read_label(pair.label, code, str(pair.label)))
            yield index, {"image": content_of(pair.image), "label": png.getvalue()}


def prepare(benchmark: str, data: Path, out: Path) -> Path:
    """Build the copy of a benchmark's folders in `out` and return its folder; a copy of the same data is kept.

    Raises DataError when the benchmark has no copy, its folders are missing, or `out` holds a copy of other data;
    UserError when `out` cannot be written.
    """
    if benchmark not in COPIED:
        raise DataError(f"{benchmark} has no TensorFlow Datasets copy; prepare one of {', '.join(COPIED)}.")
    files = find_folders(BENCHMARKS[benchmark], data)  # a missing folder is named before anything is written
    if copy := find_copy(benchmark, out):
        with on_disk(copy) as here:
            if open_copy(benchmark, here).fingerprint == files.fingerprint():
                return copy
        raise DataError(
            f"{copy} is a copy of other data than {files.root} holds now; remove it or choose another --out."
        )
    folder = f"{COPY_NAME}/{benchmark}/{COPY_VERSION}"
    with writing_to(out), written_on_disk(out, last=f"{folder}/dataset_info.json") as here:
        make_folder(here)
        builder = GlaBenchmark(config=benchmark, data_dir=str(here), file_format="array_record")
        builder.source = data
        builder.download_and_prepare()
    return out / folder


def open_copy(benchmark: str, folder: Path) -> Dataset:
    """A copy as examples; nothing but ArrayRecord is needed to read it. Raises DataError for a damaged one."""
    for path in folder.iterdir():
        _check_file(folder, path)
    _check_features(folder)
    with _damage(folder, folder / "dataset_info.json"):
        builder = tfds.builder_from_directory(folder)
        undecoded = {name: tfds.decode.SkipDecoding() for name in ("image", "label")}
        records = builder.as_data_source(SPLIT, decoders=undecoded)
        shards = [Path(path) for path in builder.info.splits[SPLIT].filepaths]
        last_records = np.cumsum(builder.info.splits[SPLIT].shard_lengths)
    path = folder / "metadata.json"
    metadata = read_json(path, "the copy is damaged:", f"remove {folder} and prepare it again", DataError)
    with _damage(folder, path):
        ids = tuple(checked_id(image_id, str(path)) for image_id in metadata[IDS])
        fingerprint = str(metadata[FINGERPRINT])
        if len(ids) != last_records[-1] or len(set(ids)) < len(ids):
            raise ValueError(f"{len(set(ids))} ids of {last_records[-1]} images")
    names = class_names(benchmark)
    code = label_code("plain", len(names.classes))
    read_example = example_reader(benchmark, code)

    def record(index: int) -> tuple[bytes, bytes]:
        with _damage(folder, shards[np.searchsorted(last_records, index, side="right")]):
            content = records[index]
            return bytes(content["image"]), bytes(content["label"])

    def read(index: int) -> Example:
        return read_example(ids[index], *record(index))

    for shard, last in zip(shards, last_records, strict=True):
        _check_file(folder, shard)
        record(last - 1)  # opens the file: one that is cut off shows before a run begins
    return Dataset(benchmark, str(folder), ids, read, fingerprint, names, code.ignore)


def _check_features(folder: Path) -> None:
    """Raise DataError where features.json names classes that are not TFDS's own: it would import and call them."""
    path, advice = folder / "features.json", f"remove {folder} and prepare it again"
    waiting = [read_json(path, "the copy is damaged:", advice, DataError)]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            name = part.get("pythonClassName", TFDS_FEATURES)
            if not str(name).startswith(TFDS_FEATURES):
                raise DataError(f"{path} names the Python class {name}, which no copy of this program does; {advice}.")
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)


def _check_file(folder: Path, path: Path) -> None:
    with _damage(folder, path):
        if not path.is_file():  # ArrayRecord would wait for a pipe without end, and no signal ends that
            raise FileNotFoundError("it is missing or no regular file")


@contextmanager
def _damage(folder: Path, path: Path) -> Iterator[None]:
    """Make whatever TensorFlow Datasets and ArrayRecord raise a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except Exception as fault:
        reason = str(fault).partition("\n")[0] or type(fault).__name__
        raise DataError(
            f"the copy is damaged: {path} cannot be read ({reason}); remove {folder} and prepare it again."
        ) from None
