"""What `gla-jax segment` leaves behind: pictures and records of each image, every file whole or not there."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gla_jax.config import settings_as_dict
from gla_jax.errors import ImageError
from gla_jax.progress import steps
from gla_jax.segmenter import Segmentation, Segmenter
from gla_jax.text.prompts import Classes
from gla_jax.visualize import index_image, palette_image


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


def segment_files(
    segmenter: Segmenter,
    paths: Iterable[Path],
    names: Iterable[str],
    classes: Classes,
    folder: Path,
    complain: Callable[[str], None],
    **options: Any,
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Segment image files one after the other: (records, failures). A bad image is complained about and skipped.

    options are those of Segmenter.__call__. Writes pictures into folder, which must exist.
    """
    records, failed = [], []
    for path, name in zip(paths, names, strict=True):
        begun = time.perf_counter()
        try:
            with steps(str(path)) as progress:
                result = segmenter(path, classes, progress=progress, **options)
        except ImageError as error:
            complain(str(error))
            failed.append({"image": str(path), "error": str(error)})
            continue
        seconds = time.perf_counter() - begun
        write_pictures(result, folder, name)
        records.append(record(result, path, name, seconds))
    return records, failed
