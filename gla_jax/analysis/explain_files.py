"""The request of `gla-jax explain`, read and checked, and the files that it writes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gla_jax.analysis.explain import check_point, explain
from gla_jax.analysis.explain_pictures import explanation_picture, stage_note
from gla_jax.analysis.seams import boundary_picture, compare_methods, flip_note, label_flips
from gla_jax.eval.datasets.labels import stored_values
from gla_jax.images.reading import opened, read_image
from gla_jax.pictures.charts import require_matplotlib
from gla_jax.predict.model import image_grid
from gla_jax.segmenter import Segmenter
from gla_jax.support.arrays import Integer, UInt8
from gla_jax.support.errors import ImageError, UserError
from gla_jax.support.files import write_png
from gla_jax.text.prompts import Classes, parse_classes


@dataclass(frozen=True)
class Request:
    """The pictures that `gla-jax explain` draws.

    image [h w 3] uint8 RGB; at (x, y): a pixel; mask [h w]: values of a mask file; classes; boundaries: whether the
    labels at window edges are compared.
    """

    image: UInt8[np.ndarray, "h w 3"]
    at: tuple[int, int] | None
    mask: Integer[np.ndarray, "h w"] | None
    classes: Classes | None
    boundaries: bool


def parse_point(text: str) -> tuple[int, int]:
    """(x, y) of "X,Y". Raises UserError."""
    match = re.fullmatch(r"\s*(\d{1,9})\s*,\s*(\d{1,9})\s*", text)
    if not match:
        raise UserError(
            f"{text[:40]!r} is not a pixel of the image; give --at X,Y in whole numbers, as in --at 120,80."
        )
    return int(match[1]), int(match[2])


def read_mask(path: Path | str, size: tuple[int, int]) -> Integer[np.ndarray, "h w"]:
    """The values of an index or binary mask of an image of size (h, w), turned as its EXIF says. Raises UserError."""
    with opened(path) as picture:
        values = stored_values(picture, f"the mask {path}", upright=True)
    if values.ndim != 2 or values.dtype.kind not in "bui":
        raise ImageError(f"the mask {path} holds colours; give one channel, an index or a black and white PNG.")
    if values.shape != tuple(size):
        raise ImageError(
            f"the mask {path} has {values.shape[1]} x {values.shape[0]} pixels, but the image has {size[1]} x "
            f"{size[0]}; give a mask of the image's size."
        )
    return values.astype(np.int32)


def read_request(
    image: Path, at: str | None, mask: Path | None, classes: Sequence[str], boundaries: bool, out: Path
) -> Request:
    """The words of the command line, read and checked before the weights are loaded.

    Args:
        image: a file.
        at: "X,Y" or None.
        mask: a file or None.
        classes: names with their synonyms.
        boundaries: whether the labels at window edges are compared.
        out: the PNG file to write.

    Raises UserError.
    """
    if at is None and not boundaries:
        raise UserError("there is nothing to explain; name a pixel with --at X,Y, or ask for --boundaries.")
    if boundaries and not classes:
        raise UserError('labels at window edges need classes; name them with --classes "cat; tabby".')
    if out.suffix.lower() != ".png":
        raise UserError(f"{out} is not the name of a PNG file; end it with .png.")
    pixels = read_image(image)
    point = None if at is None else parse_point(at)
    if point is not None:
        check_point(point, pixels.shape[:2])
        require_matplotlib()
    values = None if mask is None else read_mask(mask, pixels.shape[:2])
    return Request(pixels, point, values, parse_classes(classes) if classes else None, boundaries)


def write_pictures(segmenter: Segmenter, request: Request, out: Path) -> list[str]:
    """Write the pictures of a request and return their figures in lines.

    The attention goes to `out`, the labels at window edges to NAME.boundaries.png beside it.
    """
    notes: list[str] = []
    if request.at is not None:
        explanation = explain(segmenter, request.image, request.at, request.classes)
        # The object is where the mask has the value that it has at the point.
        mask = None if request.mask is None else request.mask == request.mask[request.at[::-1]]
        write_png(out, explanation_picture(explanation, mask))
        shares = explanation.shares_on(mask) if mask is not None else (None,) * len(explanation.stages)
        for stage, share in zip(explanation.stages, shares, strict=True):
            notes.append(f"{stage.name}: {stage_note(stage, share)}")
        notes.append(str(out))
    if request.boundaries:
        path, windows = out.with_suffix(".boundaries.png"), segmenter.config.windows
        results = compare_methods(segmenter, request.image, request.classes)
        grid = image_grid(request.image.shape[:2], windows)
        write_png(path, boundary_picture(results, grid, windows, request.mask))
        for name, result in results.items():
            flips = label_flips(result.labels, (grid.height, grid.width), windows, request.mask)
            notes.append(f"{name}: {flip_note(flips, request.mask is not None)}")
        notes.append(str(path))
    return [note.replace("\n", "; ") for note in notes]
