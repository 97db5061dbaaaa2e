"""What `gla-jax segment` leaves behind: pictures and records of each image, every file whole or not there."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from gla_jax.batches import grouped
from gla_jax.config import settings_as_dict
from gla_jax.cost import estimate
from gla_jax.errors import ImageError
from gla_jax.images import read_image
from gla_jax.processes import Processes
from gla_jax.progress import steps
from gla_jax.segmenter import Segmentation, Segmenter, image_grid
from gla_jax.shapes import UInt8
from gla_jax.text.prompts import Classes
from gla_jax.visualize import index_image, palette_image
from gla_jax.windows import bucket


def write_beside(path: Path, write: Callable[[Any], None]) -> None:
    """Write a file beside its place and rename it: readers see the old one or the new one, never a part."""
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not there."""
    write_beside(path, lambda file: file.write(text.encode()))


def write_png(path: Path, image: Image.Image) -> None:
    """A PNG file, whole or not there."""
    write_beside(path, lambda file: image.save(file, format="PNG", optimize=False))


def output_names(paths: Sequence[Path]) -> list[str]:
    """A file name for each image: its stem, with its ending or its folders where two stems are equal."""
    names = [path.stem for path in paths]
    for spelling in (lambda path: path.name.replace(".", "_"), lambda path: "_".join(path.absolute().parts[1:])):
        taken = {name for name in names if names.count(name) > 1}
        names = [spelling(path) if name in taken else name for name, path in zip(names, paths, strict=True)]
    return names


def write_pictures(result: Segmentation, folder: Path, name: str) -> None:
    """NAME.index.png, NAME.palette.png, NAME.overlay.png and, with scores, NAME.scores.npz (float16 [L h w])."""
    write_png(folder / f"{name}.index.png", index_image(result.labels))
    write_png(folder / f"{name}.palette.png", palette_image(result.labels, len(result.classes)))
    write_png(folder / f"{name}.overlay.png", result.overlay())
    if result.scores is not None:
        arrays = {"scores": result.scores.astype(np.float16), "classes": np.array(result.classes)}
        write_beside(folder / f"{name}.scores.npz", lambda file: np.savez_compressed(file, **arrays))


def record(result: Segmentation, path: Path, name: str, seconds: float) -> dict[str, Any]:
    """What results.json says of an image: pixel shares of the classes that occur, size [h, w], seconds."""
    shares = {label: round(share, 6) for label, share in result.shares().items() if share > 0}
    size = list(result.labels.shape)
    return {"image": str(path), "name": name, "size": size, "seconds": round(seconds, 3), "shares": shares}


def summary(
    segmenter: Segmenter,
    classes: Classes,
    images: Sequence[dict[str, Any]],
    failed: Sequence[dict[str, str]],
    **options: Any,
) -> dict[str, Any]:
    """The whole of results.json; options are those of the call that came on top of the settings."""
    return {
        "model": segmenter.name,
        "model_hash": segmenter.model_hash,
        "classes": list(classes.names),
        "queries": list(classes.queries),
        "settings": settings_as_dict(segmenter.config) | options,
        "images": list(images),
        "failed": list(failed),
    }


def as_lines(document: dict[str, Any]) -> str:
    """JSON with one line for each image."""
    head = json.dumps({key: value for key, value in document.items() if key not in ("images", "failed")}, indent=1)
    lists = []
    for key in ("images", "failed"):
        rows = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in document[key])
        lists.append(f' "{key}": [\n{rows}\n ]' if rows else f' "{key}": []')
    return head.removesuffix("\n}") + ",\n" + ",\n".join(lists) + "\n}\n"


class _Read(NamedTuple):
    """An image that was read: its place among those asked for, and the seconds that took."""

    index: int
    path: Path
    pixels: UInt8[np.ndarray, "h w 3"]
    seconds: float


class Segmented(NamedTuple):
    """What became of some images: records and failures, each under its index among those asked for."""

    records: dict[int, dict[str, Any]]
    failed: dict[int, dict[str, str]]


def segment_files(
    segmenter: Segmenter,
    files: Iterable[tuple[int, Path, str]],
    classes: Classes,
    folder: Path | None,
    complain: Callable[[str], None],
    *,
    batch: int = 1,
    **options: Any,
) -> Segmented:
    """Segment image files, given as (index, path, name of the results).

    A bad image is complained about and skipped; of a large one it is said before what it will cost. batch: images with
    one number of windows that go through together; options are those of Segmenter.__call__. Writes pictures into
    folder, which must exist, or nowhere when it is None.
    """
    done = Segmented({}, {})
    names: dict[int, str] = {}

    def readable() -> Iterator[_Read]:
        for index, path, name in files:
            begun, names[index] = time.perf_counter(), name
            try:
                pixels = read_image(path)
            except ImageError as error:
                complain(str(error))
                done.failed[index] = {"image": str(path), "error": str(error)}
                continue
            yield _Read(index, path, pixels, time.perf_counter() - begun)

    def windows(image: _Read) -> int:
        return image_grid(image.pixels.shape[:2], segmenter.config.windows).count

    for group in grouped(readable(), lambda image: bucket(windows(image)), batch):
        announce(segmenter, group[0].path, group[0].pixels.shape[:2], complain)
        begun = time.perf_counter()
        with steps(str(group[0].path)) as progress:
            results = segmenter.batch([image.pixels for image in group], classes, progress=progress, **options)
        seconds = (time.perf_counter() - begun) / len(group)
        for image, result in zip(group, results, strict=True):
            name = names[image.index]
            if folder is not None:
                write_pictures(result, folder, name)
            done.records[image.index] = record(result, image.path, name, image.seconds + seconds)
    return done


def announce(segmenter: Segmenter, path: Path, size: tuple[int, int], say: Callable[[str], None]) -> None:
    """Say what an image of size (h, w) will cost, if it is one that goes through in steps."""
    windows = segmenter.steps_through(size)
    if windows:
        cost = estimate(segmenter.params, segmenter.config, windows)
        say(f"{path}: {windows} windows, {cost}")


def gathered(done: Segmented, processes: Processes) -> Segmented:
    """What became of the images of all processes, at every process, in the order they were asked for."""
    payload = json.dumps([list(part.items()) for part in done]).encode()
    everything = Segmented({}, {})
    for part in processes.gather("records", payload):
        for into, items in zip(everything, json.loads(part), strict=True):
            into.update((index, row) for index, row in items)
    return Segmented(*(dict(sorted(part.items())) for part in everything))
