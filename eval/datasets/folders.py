"""Data sets as users have them: mmsegmentation's folder layouts, read directly."""

import hashlib
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gla_jax.eval.benchmarks import FOLDER, Benchmark, FolderLayout
from gla_jax.eval.datasets.ids import checked_id
from gla_jax.images.reading import files_below
from gla_jax.support.batches import read_ahead
from gla_jax.support.errors import DataError
from gla_jax.support.files import read_json, write_json
from gla_jax.support.places import THREADS, content_of, is_file, is_folder, is_remote, make_folder, objects_below, stamp

MAX_SPLIT_BYTES = 2**26  # a million names of images
COPY_NAME, COPY_VERSION = "gla_benchmark", "1.0.0"


@dataclass(frozen=True)
class Pair:
    """One image with its label, if it has one; image_id: its path below the image folder without its suffix."""

    image_id: str
    image: Path
    label: Path | None


@dataclass(frozen=True)
class DataFiles:
    """A data set on disk: its root, the layout it follows, and all its pairs in evaluation order."""

    root: Path
    layout: FolderLayout
    pairs: tuple[Pair, ...]

    def fingerprint(self, kept: Path | None = None) -> str:
        """SHA-256 over the names of all images, the sizes of their files and the content of their labels' files.

        Two copies of a data set have one; an image that changes and keeps its size goes unnoticed.
        kept: a file that keeps it, so that of many processes one reads all labels; for others their stamps are enough.
        """
        if kept is None:
            return self._fingerprint()
        sha = hashlib.sha256()
        for pair in self.pairs:
            sha.update(f"{pair.image_id} {pair.image.stat().st_size} {pair.label and stamp(pair.label)}\n".encode())
        listing = sha.hexdigest()
        if kept.exists():
            content = read_json(kept, "the fingerprint of the data", "remove it", DataError)
            if (
                isinstance(content, dict)
                and content.get("listing") == listing
                and isinstance(content.get("sha256"), str)
            ):
                return content["sha256"]
        fingerprint = self._fingerprint()
        make_folder(kept.parent)
        write_json(kept, {"listing": listing, "sha256": fingerprint})
        return fingerprint

    def _fingerprint(self) -> str:
        def facts(pair: Pair) -> tuple[str, int, int | None]:
            label = zlib.crc32(content_of(pair.label)) if pair.label else None
            return pair.image_id, pair.image.stat().st_size, label

        return fingerprint_of(read_ahead(self.pairs, facts, THREADS))


def fingerprint_of(facts: Iterable[tuple[str, int, int | None]]) -> str:
    """SHA-256 over (id, bytes of the image file, CRC-32 of the label file or None) of all pairs in order."""
    sha = hashlib.sha256()
    for image_id, size, label in facts:
        sha.update(f"{image_id} {size} {label}\n".encode())
    return sha.hexdigest()


def find_folders(benchmark: Benchmark, data: Path, labelled: bool = True) -> DataFiles:
    """The benchmark's files in `data`, which is its root or holds it under one of its usual names.

    labelled: with a label for every image. Raises DataError with the layout expected and the first path that is
    missing.
    """
    missing, own = list[Path](), benchmark.key == FOLDER
    for root in (*(data / name for name in benchmark.roots), data):
        for layout in benchmark.layouts:
            pairs = _pairs_of(root, layout, labelled, missing)
            if pairs:
                _check_complete(str(root) if own else f"{benchmark.key} in {root}", pairs)
                if own and labelled:
                    _warn_of_labels_alone(root, layout, pairs)
                return DataFiles(root, layout, pairs)
    # A path that is missing beside files that exist says more than the first guess at a root.
    beside = [path for path in missing if path.parent.is_dir() and path.parent != data]
    what = f"{data} holds no{' labelled' * labelled} images" if own else f"{benchmark.key} is not in {data}"
    raise DataError(
        f"{what}: {(beside or missing)[0]} does not exist or holds no such files; it expects {describe(benchmark)}."
    )


def has_images(benchmark: Benchmark, data: Path) -> bool:
    """True if there is a folder of images where one of the benchmark's layouts has it."""
    roots = (*(data / name for name in benchmark.roots), data)
    return any(is_folder(root / layout.images) for root in roots for layout in benchmark.layouts)


def describe(benchmark: Benchmark) -> str:
    """The layout a benchmark expects, in a few words."""
    layout = benchmark.layouts[0]
    root = f"{benchmark.roots[0]}/" if benchmark.roots else ""
    images = " or ".join(f"*{suffix}" for suffix in layout.image_suffixes)
    labels = dict.fromkeys(f"*{other.label_suffix} ({other.encoding})" for other in benchmark.layouts)
    _, *others = labels
    parts = [f"{root}{layout.images}/{images}", " or ".join((f"{root}{layout.labels}/*{layout.label_suffix}", *others))]
    return ", ".join(parts + ([f"{root}{layout.split}"] if layout.split else []))


def _pairs_of(root: Path, layout: FolderLayout, labelled: bool, missing: list[Path]) -> tuple[Pair, ...]:
    """All pairs of a layout if it is there, with at least one label; otherwise none, and `missing` grows by a path."""
    images, labels, split = root / layout.images, root / layout.labels, layout.split and root / layout.split
    for path, there in (
        (images, images.is_dir()),
        (labels, not labelled or labels.is_dir()),
        (split, split is None or split.is_file()),
    ):
        if not there:
            missing.append(path)
            return ()
    for folder in filter(is_remote, (images, labels)):
        list(objects_below(folder))  # one listing in place of a question about every object
    pairs = tuple(
        Pair(stem, image, labels / f"{stem}{layout.label_suffix}" if labelled else None)
        for stem, image in (_split_stems(split, images, layout) if split else _listed_stems(images, layout))
    )
    if not any(pair.label is None or is_file(pair.label) for pair in pairs):
        missing.append(pairs[0].label if pairs else images / f"*{layout.image_suffixes[0]}")
        return ()
    return pairs


def _split_stems(split: Path, images: Path, layout: FolderLayout) -> Iterator[tuple[str, Path]]:
    if split.stat().st_size > MAX_SPLIT_BYTES:
        raise DataError(f"{split} is larger than {MAX_SPLIT_BYTES >> 20} MiB, which no split is; fetch it again.")
    try:
        lines = split.read_text("utf-8-sig").splitlines()  # editors may put a byte order mark before the first name
    except UnicodeDecodeError:
        raise DataError(f"{split} is not UTF-8 text; fetch the data set again.") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            stem = checked_id(line.strip(), f"{split}, line {number},")
            candidates = [images / f"{stem}{suffix}" for suffix in layout.image_suffixes]
            yield stem, next(filter(is_file, candidates), candidates[0])


def _listed_stems(images: Path, layout: FolderLayout) -> Iterator[tuple[str, Path]]:
    for path in sorted(files_below(images)):
        name = path.relative_to(images).as_posix()
        suffix = next((suffix for suffix in layout.image_suffixes if name.lower().endswith(suffix.lower())), None)
        if suffix and not path.name.startswith("."):
            yield checked_id(name[: -len(suffix)], f"the folder {images}"), path


def _check_complete(name: str, pairs: tuple[Pair, ...]) -> None:
    for kind in ("image", "label"):
        lacking = [path for pair in pairs if (path := getattr(pair, kind)) and not is_file(path)]
        if lacking:
            raise DataError(
                f"{name} is incomplete: {len(lacking)} of {len(pairs)} {kind}s are missing; the first is {lacking[0]}."
            )
    seen: set[str] = set()
    for pair in pairs:
        if pair.image_id in seen:
            raise DataError(f"{name} names the image {pair.image_id} twice; keep one of the two.")
        seen.add(pair.image_id)


def _warn_of_labels_alone(root: Path, layout: FolderLayout, pairs: tuple[Pair, ...]) -> None:
    """Warn of labels that no image goes with, such as those of images of a kind that is not read."""
    there = (path for path in files_below(root / layout.labels) if not path.name.startswith("."))
    labels = {path for path in there if path.name.endswith(layout.label_suffix)}
    if alone := sorted(labels - {pair.label for pair in pairs}):
        warnings.warn(
            f"{len(alone)} of {len(labels)} labels in {root / layout.labels} are left out, as no image goes with them "
            f"({', '.join(layout.image_suffixes)}); the first is {alone[0].name}",
            stacklevel=2,
        )


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
            if content.get("version") != COPY_VERSION:  # its labels may be coded otherwise
                raise DataError(
                    f"{folder} is a copy of version {str(content.get('version'))[:40]}, and version {COPY_VERSION} is "
                    "read; remove it and prepare it again."
                )
            return folder
    return None
