"""What `gla-jax segment` leaves behind: pictures and records of each image, every file whole or not there."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gla_jax.config import settings_as_dict
from gla_jax.distributed.processes import Processes
from gla_jax.images.reading import read_image
from gla_jax.images.windows import bucket
from gla_jax.pictures.drawing import index_image, palette_image
from gla_jax.predict.cost import estimate
from gla_jax.segmenter import Segmentation, Segmenter, image_grid, with_background
from gla_jax.support.batches import grouped
from gla_jax.support.errors import ImageError
from gla_jax.support.files import write_beside, write_png
from gla_jax.support.progress import steps
from gla_jax.support.shapes import UInt8
from gla_jax.text.prompts import Classes

# Of the 255 bytes of a file name: the rest is for the ending and for the file that is written beside.
NAME_BYTES = 200
SECONDS_BETWEEN_RECORDS = 5.0


def output_names(paths: Sequence[Path]) -> list[str]:
    """A name for the results of each image, at most 200 bytes and no two alike on any file system.

    Its stem; where stems are equal its ending too, then its folders below those that all share, then a number.
    """
    places = [Path(os.path.abspath(path)) for path in paths]
    shared = len(Path(os.path.commonpath([place.parent for place in places])).parts)
    spellings = (
        lambda place: place.name.replace(".", "_"),
        lambda place: "_".join((*place.parent.parts[shared:], place.stem)),
        lambda place: "_".join((*place.parent.parts[shared:], place.name.replace(".", "_"))),
    )
    names = [_shortened(place.stem) for place in places]
    for spelling in spellings:
        taken = Counter(map(str.casefold, names))
        names = [
            _shortened(spelling(place)) if taken[name.casefold()] > 1 else name
            for name, place in zip(names, places, strict=True)
        ]
    return numbered(names)


def _shortened(name: str) -> str:
    """The end of a name, where paths differ most, of as many bytes as leave room for the endings of the results."""
    return os.fsencode(name)[-NAME_BYTES:].decode(errors="ignore") if len(os.fsencode(name)) > NAME_BYTES else name


def numbered(names: Sequence[str]) -> list[str]:
    """Names of which no two are alike: the second of some that are equal but for case gets _2 and so on."""
    taken = Counter(map(str.casefold, names))
    found: list[str] = []
    seen: set[str] = set()
    for name in names:
        number, unlike = 1, name
        # A number must not make it the name of another image.
        while unlike.casefold() in seen or (number > 1 and unlike.casefold() in taken):
            number += 1
            unlike = f"{name}_{number}"
        seen.add(unlike.casefold())
        found.append(unlike)
    return found


def write_pictures(result: Segmentation, folder: Path, name: str) -> None:
    """NAME.index.png, NAME.palette.png, NAME.overlay.png and, with scores, NAME.scores.npz (float16 [L h w])."""
    write_png(folder / f"{name}.index.png", index_image(result.labels, len(result.classes)))
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


class Segmented(NamedTuple):
    """What became of some images: records and failures, each under its index among those asked for."""

    records: dict[int, dict[str, Any]]
    failed: dict[int, dict[str, str]]


def summary(
    segmenter: Segmenter,
    classes: Classes,
    done: Segmented,
    *,
    complete: bool,
    background: str | None,
    threshold: float,
) -> dict[str, Any]:
    """The whole of results.json, whose classes are in the order of the index PNG's pixels.

    complete: whether all images that were asked for are in it.
    """
    names, _, _ = with_background(classes, background, threshold)
    return {
        "complete": complete,
        "model": segmenter.name,
        "model_hash": segmenter.model_hash,
        "classes": list(names),
        "queries": list(classes.prompts),
        "settings": settings_as_dict(segmenter.config) | {"background": background, "threshold": threshold},
        "images": [done.records[index] for index in sorted(done.records)],
        "failed": [done.failed[index] for index in sorted(done.failed)],
    }


def as_lines(document: dict[str, Any]) -> str:
    """JSON with one line for each image."""
    head = json.dumps({key: value for key, value in document.items() if key not in ("images", "failed")}, indent=1)
    lists = []
    for key in ("images", "failed"):
        rows = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in document[key])
        lists.append(f' "{key}": [\n{rows}\n ]' if rows else f' "{key}": []')
    text = head.removesuffix("\n}") + ",\n" + ",\n".join(lists) + "\n}\n"
    # A file name that is not UTF-8 has letters that no encoding holds; JSON spells them as Python does.
    return text.encode(errors="backslashreplace").decode()


class _Read(NamedTuple):
    """An image that was read: its place among those asked for, and the seconds that took."""

    index: int
    path: Path
    pixels: UInt8[np.ndarray, "h w 3"]
    seconds: float


def segment_files(
    segmenter: Segmenter,
    files: Iterable[tuple[int, Path, str]],
    classes: Classes,
    folder: Path | None,
    complain: Callable[[str], None],
    *,
    batch: int = 1,
    keep: Callable[[Segmented], object] = lambda _: None,
    **options: Any,
) -> Segmented:
    """Segment image files, given as (index, path, name of the results).

    A bad image is complained about and skipped; of a large one it is said before what it will cost. batch: images with
    one number of windows that go through together; keep is told what is done so far, first, every few seconds and when
    the work is cut short; options are those of Segmenter.__call__. Writes pictures into folder, which must exist, or
    nowhere when it is None.
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

    keep(done)
    kept = time.monotonic()
    try:
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
            if time.monotonic() - kept > SECONDS_BETWEEN_RECORDS:
                keep(done)
                kept = time.monotonic()
    except BaseException:  # Ctrl-C above all
        keep(done)
        raise
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
