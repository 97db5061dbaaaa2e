"""What `gla-jax explain` is asked for, and the files it leaves behind."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gla_jax.analysis.explain import (
    check_point,
    explain,
    object_at,
    parse_point,
    read_mask,
)
from gla_jax.analysis.explain_pictures import explanation_picture, stage_note
from gla_jax.analysis.seams import boundary_picture, compare_methods, flip_note, label_flips
from gla_jax.images.reading import read_image
from gla_jax.support.files import write_png
from gla_jax.segmenter import Segmenter, image_grid
from gla_jax.support.errors import UserError
from gla_jax.support.shapes import Integer, UInt8
from gla_jax.text.prompts import Classes, parse_classes


@dataclass(frozen=True)
class Request:
    """What `gla-jax explain` is asked for, read and checked.

    image [h w 3] uint8 RGB; at (x, y): a pixel; mask [h w]: values of a mask file; classes; boundaries: whether the
    labels at window edges are compared.
    """

    image: UInt8[np.ndarray, "h w 3"]
    at: tuple[int, int] | None
    mask: Integer[np.ndarray, "h w"] | None
    classes: Classes | None
    boundaries: bool


def read_request(
    image: Path, at: str | None, mask: Path | None, classes: Sequence[str], boundaries: bool, out: Path
) -> Request:
    """What was typed, read and checked before the weights are loaded. Raises UserError."""
    if at is None and not boundaries:
        raise UserError("there is nothing to explain; name a pixel with --at X,Y, or ask for --boundaries.")
    if boundaries and not classes:
        raise UserError('labels at window edges need classes; name some with --classes "cat; tabby".')
    if out.suffix.lower() != ".png":
        raise UserError(f"{out} is not the name of a PNG file; end it with .png.")
    pixels = read_image(image)
    point = None if at is None else parse_point(at)
    if point is not None:
        check_point(point, pixels.shape[:2])
    values = None if mask is None else read_mask(mask, pixels.shape[:2])
    return Request(pixels, point, values, parse_classes(classes) if classes else None, boundaries)


def write_pictures(segmenter: Segmenter, request: Request, out: Path) -> list[str]:
    """Write the pictures of a request and return what they say in lines.

    The attention goes to `out`, the labels at window edges to NAME.boundaries.png beside it.
    """
    lines = []
    if request.at is not None:
        explanation = explain(segmenter, request.image, request.at, request.classes)
        mask = None if request.mask is None else object_at(request.mask, request.at)
        write_png(out, explanation_picture(explanation, mask))
        shares = explanation.shares_on(mask) if mask is not None else (None,) * len(explanation.stages)
        for stage, share in zip(explanation.stages, shares, strict=True):
            lines.append(f"{stage.name}: {stage_note(stage, share)}".replace("\n", "; "))
        lines.append(str(out))
    if request.boundaries:
        path = out.with_suffix(".boundaries.png")
        results = compare_methods(segmenter, request.image, request.classes)
        grid = image_grid(request.image.shape[:2], segmenter.config.windows)
        write_png(path, boundary_picture(results, grid, segmenter.config.windows, request.mask))
        for name, result in results.items():
            flips = label_flips(result.labels, (grid.height, grid.width), segmenter.config.windows, request.mask)
            lines.append(f"{name}: {flip_note(flips, request.mask is not None)}".replace("\n", "; "))
        lines.append(str(path))
    return lines
