"""A benchmark as a TensorFlow Datasets copy: ArrayRecord files, built and read without TensorFlow.

Images keep their original bytes; labels are stored as PNGs that already hold class indices, so that a reader needs to
know nothing about the benchmark's own encoding.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from gla_jax.eval.benchmarks import BENCHMARKS, FOLDER, TINY_WORLD, class_names
from gla_jax.eval.datasets.dataset import COPY_NAME, COPY_VERSION, Dataset, Example, checked_example, find_copy
from gla_jax.eval.datasets.folders import find_folders
from gla_jax.eval.datasets.labels import label_code, read_image, read_label, write_label
from gla_jax.eval.records import writing_to
from gla_jax.support.errors import DataError

SPLIT = "validation"
IDS, FINGERPRINT = "image_ids", "fingerprint"
COPIED = tuple(key for key in BENCHMARKS if key not in (FOLDER, TINY_WORLD))


class GlaBenchmark(tfds.core.GeneratorBasedBuilder):
    """Image and label, in class indices, of a benchmark in evaluation order; the names stand in its metadata."""

    name = COPY_NAME
    VERSION = tfds.core.Version(COPY_VERSION)
    RELEASE_NOTES = {COPY_VERSION: "Labels hold class indices, 255 is ignored."}  # noqa: RUF012 - TFDS reads a plain dict
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Name the folder of the benchmark as mmsegmentation lays it out."
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=key) for key in COPIED]  # noqa: RUF012 - as TFDS declares it

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            }
        )
        # Shuffling would change the order of evaluation.
        return tfds.core.DatasetInfo(
            builder=self, features=features, disable_shuffling=True, metadata=tfds.core.MetadataDict()
        )

    def _split_generators(self, manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {SPLIT: self._generate_examples(Path(manager.manual_dir))}

    def _generate_examples(self, data: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        benchmark = BENCHMARKS[self.builder_config.name]
        names = class_names(benchmark.key)
        found = find_folders(benchmark, data)
        code = label_code(found.layout.encoding, len(names.classes), names.tables)
        # Kept apart, so that the names are known without reading the images through.
        self.info.metadata[IDS] = [pair.image_id for pair in found.pairs]
        self.info.metadata[FINGERPRINT] = found.fingerprint()
        for index, pair in enumerate(found.pairs):
            png = io.BytesIO()
            write_label(png, read_label(pair.label, code, str(pair.label)))
            yield index, {"image": str(pair.image), "label": png.getvalue()}


def prepare(benchmark: str, data: Path, out: Path) -> Path:
    """Build the copy of a benchmark's folders in `out` and return its folder; a copy of the same data is kept.

    Raises DataError when the benchmark has no copy, its folders are missing, or `out` holds a copy of other data;
    UserError when `out` cannot be written.
    """
    if benchmark not in COPIED:
        raise DataError(f"{benchmark} has no TensorFlow Datasets copy; prepare one of {', '.join(COPIED)}.")
    found = find_folders(BENCHMARKS[benchmark], data)  # a missing folder is named before anything is written
    if (copy := find_copy(benchmark, out)) and open_copy(benchmark, copy).fingerprint != found.fingerprint():
        raise DataError(
            f"{copy} is a copy of other data than {found.root} holds now; remove it or choose another --out."
        )
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        builder = GlaBenchmark(config=benchmark, data_dir=str(out), file_format="array_record")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=str(data)))
    return Path(builder.data_dir)


def open_copy(benchmark: str, folder: Path) -> Dataset:
    """A copy as examples; nothing but ArrayRecord is needed to read it. Raises DataError for a damaged one."""
    try:
        builder = tfds.builder_from_directory(folder)
        metadata = json.loads((folder / "metadata.json").read_text("utf-8"))
        ids, fingerprint = tuple(metadata[IDS]), metadata[FINGERPRINT]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"the copy in {folder} is damaged ({error}); remove it and prepare it again.") from error
    undecoded = {name: tfds.decode.SkipDecoding() for name in ("image", "label")}
    records = builder.as_data_source(SPLIT, decoders=undecoded)
    names = class_names(benchmark)
    code = label_code("plain", len(names.classes))

    def read(index: int) -> Example:
        record = records[index]
        image = read_image(record["image"], ids[index])
        return checked_example(ids[index], image, read_label(record["label"], code, f"of {ids[index]}"))

    return Dataset(benchmark, str(folder), ids, read, fingerprint, names, code.ignore)
