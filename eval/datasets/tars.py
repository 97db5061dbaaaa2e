"""Data sets in tars as WebDataset lays them out: the files of a sample share their name up to its first dot.

An image is KEY.jpg, KEY.png and the like, its label KEY.label.png, KEY.seg.png or KEY.mask.png, or KEY.png where the
image is none; labels hold class indices. Order is that of the tars' names and of the members in each: nothing is
shuffled. An image is read by its place in the tar, from an object store by one request.
"""

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gla_jax.eval.benchmarks import ClassNames
from gla_jax.eval.datasets.examples import Dataset, Example, example_reader
from gla_jax.eval.datasets.folders import fingerprint_of
from gla_jax.eval.datasets.ids import checked_id
from gla_jax.eval.datasets.labels import NAMED, label_code
from gla_jax.support.batches import read_ahead
from gla_jax.support.errors import DataError
from gla_jax.support.places import THREADS, is_remote

IMAGES = ("jpg", "jpeg", "webp", "image.png", "image.jpg", "img.png", "img.jpg")
LABELS = ("label.png", "seg.png", "mask.png")
EITHER = "png"


@dataclass(frozen=True)
class Member:
    """A file in a tar: bytes from `start` on."""

    tar: Path
    start: int
    size: int

    def read(self) -> bytes:
        """Its content. Raises DataError when the tar ends before it does."""
        if is_remote(self.tar):
            content = self.tar.fs.cat_file(self.tar.path, start=self.start, end=self.start + self.size)
        else:
            with self.tar.open("rb") as file:
                file.seek(self.start)
                content = file.read(self.size)
        if len(content) < self.size:
            raise DataError(f"{self.tar} is cut off; fetch it again.")
        return content


@dataclass(frozen=True)
class Sample:
    """An image with its label, if it has one."""

    image_id: str
    image: Member
    label: Member | None


def find_tars(data: Path) -> list[Path]:
    """The tars of a folder in order of their names; `data` may be a single one."""
    return [data] if data.suffix == ".tar" else sorted(data.glob("*.tar"), key=lambda path: path.name)


def open_tars(benchmark: str, tars: list[Path], names: ClassNames, labelled: bool) -> Dataset:
    """Tars as examples. Raises DataError for tars that are damaged, compressed or lack an image or a label."""
    parts = read_ahead(tars, lambda tar: list(_samples(tar)), THREADS)
    samples = [sample for part in parts for sample in part]
    labelled = labelled or any(sample.label for sample in samples)
    _check(tars, samples, labelled)
    code = label_code(NAMED if NAMED in names.tables else "plain", len(names.classes), names.tables)
    read_example = example_reader(benchmark, code)

    def read(index: int) -> Example:
        sample = samples[index]
        return read_example(sample.image_id, sample.image.read(), sample.label.read() if labelled else None)

    def facts(sample: Sample) -> tuple[str, int, int | None]:
        return sample.image_id, sample.image.size, zlib.crc32(sample.label.read()) if labelled else None

    ids = tuple(sample.image_id for sample in samples)
    fingerprint = fingerprint_of(read_ahead(samples, facts, THREADS))
    origin = str(tars[0] if len(tars) == 1 else tars[0].parent)
    return Dataset(benchmark, origin, ids, read, fingerprint, names, code.ignore, labelled)


def _samples(tar: Path) -> Iterator[Sample]:
    fields: dict[str, dict[str, Member]] = {}
    for name, member in _members(tar):
        base = name.rpartition("/")[2]
        stem, _, field = base.partition(".")
        key = name.removesuffix(base) + stem
        if field.lower() in (*IMAGES, *LABELS, EITHER) and stem:
            sample = fields.setdefault(checked_id(key, f"the tar {tar}"), {})
            if field.lower() in sample:
                raise DataError(f"{tar} holds {name} twice; write it again.")
            sample[field.lower()] = member
    for key, sample in fields.items():
        images = [sample[field] for field in IMAGES if field in sample]
        labels = [sample[field] for field in LABELS if field in sample]
        (labels if images else images).extend([sample[EITHER]] if EITHER in sample else [])
        if len(images) != 1 or len(labels) > 1:
            raise DataError(f"{tar} holds {len(images)} images and {len(labels)} labels of {key}; keep one of each.")
        yield Sample(key, images[0], labels[0] if labels else None)


def _members(tar: Path) -> Iterator[tuple[str, Member]]:
    """Names and places of the regular files, of which only the headers are read."""
    try:
        with tar.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.isfile():
                    yield member.name.removeprefix("./"), Member(tar, member.offset_data, member.size)
    except (tarfile.TarError, EOFError, ValueError) as fault:
        raise DataError(f"{tar} cannot be read as a tar ({fault}); write a plain one, not compressed.") from None


def _check(tars: list[Path], samples: list[Sample], labelled: bool) -> None:
    if not samples:
        raise DataError(f"{tars[0]} holds no images ({', '.join(f'KEY.{field}' for field in IMAGES)}).")
    lacking = [sample for sample in samples if labelled and sample.label is None]
    if lacking:
        raise DataError(
            f"{len(lacking)} of {len(samples)} images have no label; the first is {lacking[0].image_id} in "
            f"{lacking[0].image.tar}, which should hold KEY.label.png too."
        )
    seen: dict[str, Path] = {}
    for sample in samples:
        if sample.image_id in seen:
            raise DataError(
                f"{sample.image_id} is in {seen[sample.image_id]} and in {sample.image.tar}; keep one of them."
            )
        seen[sample.image_id] = sample.image.tar
