"""Data sets as users have them: mmsegmentation's folder layouts, read directly."""

import hashlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gla_jax.eval.benchmarks import Benchmark, FolderLayout
from gla_jax.support.errors import DataError


@dataclass(frozen=True)
class Pair:
    """One image with its label, if it has one; image_id: its path below the image folder without its suffix."""

    image_id: str
    image: Path
    label: Path | None


@dataclass(frozen=True)
class Found:
    """A data set on disk: its root, the layout it follows, and all its pairs in evaluation order."""

    root: Path
    layout: FolderLayout
    pairs: tuple[Pair, ...]

    def fingerprint(self) -> str:
        """SHA-256 over the names of all images, the sizes of their files and the content of their labels' files.

        Two copies of a data set have one; an image that changes and keeps its size goes unnoticed.
        """
        sha = hashlib.sha256()
        for pair in self.pairs:
            label = zlib.crc32(pair.label.read_bytes()) if pair.label else None
            sha.update(f"{pair.image_id} {pair.image.stat().st_size} {label}\n".encode())
        return sha.hexdigest()


def find_folders(benchmark: Benchmark, data: Path) -> Found:
    """The benchmark's files in `data`, which is its root or holds it under one of its usual names.

    Raises DataError with the layout expected and the first path that was looked for.
    """
    missing: list[Path] = []
    for root in (*(data / name for name in benchmark.roots), data):
        for layout in benchmark.layouts:
            found = _pairs_of(root, layout, missing)
            if found:
                return _complete(benchmark, root, layout, found)
    # What is missing beside files that are there says more than the first guess at a root.
    beside = [path for path in missing if path.parent.is_dir() and path.parent != data]
    raise DataError(
        f"{benchmark.key} is not in {data}: {(beside or missing)[0]} does not exist or holds no such files; it expects "
        f"{describe(benchmark)}."
    )


def find_images(benchmark: Benchmark, data: Path) -> Found:
    """The images alone of a benchmark whose root is `data`. Raises DataError when there are none."""
    (layout,) = benchmark.layouts
    folder = data / layout.images
    pairs = tuple(Pair(stem, image, None) for stem, image in _listed_stems(folder, layout)) if folder.is_dir() else ()
    if not pairs:
        raise DataError(
            f"{benchmark.key} is not in {data}: {folder} does not exist or holds no images; it expects "
            f"{describe(benchmark)}."
        )
    return _complete(benchmark, data, layout, pairs)


def describe(benchmark: Benchmark) -> str:
    """The layout a benchmark expects, in a few words."""
    layout = benchmark.layouts[0]
    root = f"{benchmark.roots[0]}/" if benchmark.roots else ""
    images = " or ".join(f"*{suffix}" for suffix in layout.image_suffixes)
    parts = [f"{root}{layout.images}/{images}", f"{root}{layout.labels}/*{layout.label_suffix}"]
    suffixes = dict.fromkeys(f"*{other.label_suffix} ({other.encoding})" for other in benchmark.layouts[1:])
    others = [suffix for suffix in suffixes if suffix != f"*{layout.label_suffix} ({layout.encoding})"]
    if others:
        parts[-1] += f" or {' or '.join(others)}"
    if layout.split:
        parts.append(f"{root}{layout.split}")
    return ", ".join(parts)


def _pairs_of(root: Path, layout: FolderLayout, missing: list[Path]) -> tuple[Pair, ...]:
    """All pairs of a layout if at least one label is there; otherwise none, and what was looked for joins missing."""
    images, labels = root / layout.images, root / layout.labels
    for path in (images, labels, *([root / layout.split] if layout.split else [])):
        if not path.exists():
            missing.append(path)
            return ()
    stems = _split_stems(root / layout.split, images, layout) if layout.split else _listed_stems(images, layout)
    pairs = tuple(Pair(stem, image, labels / f"{stem}{layout.label_suffix}") for stem, image in stems)
    if not any(pair.label.is_file() for pair in pairs):
        missing.append(pairs[0].label if pairs else images / f"*{layout.image_suffixes[0]}")
        return ()
    return pairs


def _split_stems(split: Path, images: Path, layout: FolderLayout) -> Iterator[tuple[str, Path]]:
    for line in split.read_text("utf-8").splitlines():
        if stem := line.strip():
            candidates = [images / f"{stem}{suffix}" for suffix in layout.image_suffixes]
            yield stem, next((path for path in candidates if path.is_file()), candidates[0])


def _listed_stems(images: Path, layout: FolderLayout) -> Iterator[tuple[str, Path]]:
    for path in sorted(_files_below(images)):
        name = path.relative_to(images).as_posix()
        suffix = next((suffix for suffix in layout.image_suffixes if name.lower().endswith(suffix.lower())), None)
        if suffix and not path.name.startswith("."):
            yield name[: -len(suffix)], path


def _files_below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Every file below a folder; links to folders are followed, except to one of those above them."""
    real = folder.resolve()
    if real in above:
        return
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from _files_below(Path(entry.path), above | {real})
        else:
            yield Path(entry.path)


def _complete(benchmark: Benchmark, root: Path, layout: FolderLayout, pairs: tuple[Pair, ...]) -> Found:
    for kind in ("image", "label"):
        lacking = [path for pair in pairs if (path := getattr(pair, kind)) is not None and not path.is_file()]
        if lacking:
            raise DataError(
                f"{benchmark.key} in {root} is incomplete: {len(lacking)} of {len(pairs)} {kind}s are missing; the "
                f"first is {lacking[0]}."
            )
    names = [pair.image_id for pair in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{benchmark.key} in {root} names the image {twice} twice; keep one of the two.")
    return Found(root, layout, pairs)
