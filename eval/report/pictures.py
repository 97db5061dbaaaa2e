"""Pictures for reports: an image with its window grid, its truth and its predictions, as JPEG bytes."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from gla_jax.eval.benchmarks import ClassNames
from gla_jax.eval.datasets.dataset import Example
from gla_jax.eval.runner import Run, labels_of
from gla_jax.images.windows import WindowGrid
from gla_jax.pictures.drawing import palette, with_window_grid
from gla_jax.support.arrays import Float, Integer, UInt8

PANEL_WIDTH = 800  # pixels: a page shows half of it, and all of it after a click
OPACITY = 0.62
MAX_LEGEND = 12
BACKGROUND = "background"  # this class keeps the colours of the photo
UNLABELLED = np.array([255, 255, 255], np.uint8)


@dataclass(frozen=True)
class Picture:
    """One image of a report: why it is shown, its mIoU, its JPEGs, and (name, colour) of the classes in it."""

    kind: str
    image_id: str
    miou: float
    jpegs: tuple[bytes, ...]
    legend: tuple[tuple[str, str], ...]


def palette_of(names: ClassNames) -> UInt8[np.ndarray, "L 3"]:
    """The benchmark's own colours, or the package's where it has none."""
    return palette(names.classes) if names.palette is None else np.array(names.palette, np.uint8)


def chosen(miou: Float[np.ndarray, " images"], each: int = 2) -> list[tuple[str, int]]:
    """(kind, index) of the best, median and worst images by their own mIoU, up to `each` of a kind, no image twice."""
    order = [int(index) for index in np.argsort(-miou, kind="stable") if not np.isnan(miou[index])]
    if len(order) == 1:
        return [("the only one", order[0])]
    ends = min(each, (len(order) + 1) // 3)
    middle = order[ends : len(order) - ends]
    skipped = max(len(middle) - each, 0) // 2
    picks = {"best": order[:ends], "median": middle[skipped : skipped + each], "worst": order[::-1][:ends]}
    return [(kind, index) for kind, indices in picks.items() for index in indices]


def report_pictures(run: Run, miou: Float[np.ndarray, " images"], each: int = 2) -> list[Picture]:
    """Pictures of the chosen images of a run, whose mIoU are in evaluation order; they are segmented once more."""
    pictures = []
    for kind, index in chosen(miou, each):
        example, labels, grid = labels_of(run, index)
        shown = panels(example, [labels], grid, run.dataset.names)
        pictures.append(Picture(kind, example.image_id, float(miou[index]), *shown))
    return pictures


def panels(
    example: Example, predictions: Sequence[Integer[np.ndarray, "h w"]], grid: WindowGrid | None, names: ClassNames
) -> tuple[tuple[bytes, ...], tuple[tuple[str, str], ...]]:
    """Image, truth and predictions as JPEGs of one size, and (name, "#rrggbb") of the classes, the largest first.

    Args:
        example: image and truth.
        predictions: labels of the image.
        grid: windows whose edges are drawn over the image, None for none.
        names: classes of the benchmark.
    """
    height, width = example.label.shape
    shown_width = min(width, PANEL_WIDTH)
    size = (shown_width, max(round(height * shown_width / width), 1))
    colours, maps = palette_of(names), (example.label, *predictions)
    views = [with_window_grid(example.image, grid) if grid else example.image]
    # Class colours over the grey image; the background stays as it is, what is not labelled becomes white.
    grey = example.image.mean(2, keepdims=True, dtype=np.float32)
    for labels in maps:
        labels = np.minimum(labels, len(colours))
        tinted = OPACITY * np.vstack([colours, UNLABELLED])[labels] + (1 - OPACITY) * grey
        plain = np.array([name == BACKGROUND for name in (*names.classes, "")])[labels]
        views.append(np.where(plain[..., None], example.image, tinted).astype(np.uint8))
    jpegs = []
    for view in views:
        stream = io.BytesIO()
        Image.fromarray(view).resize(size, Image.Resampling.LANCZOS).save(stream, format="JPEG", quality=88)
        jpegs.append(stream.getvalue())

    pixels = np.concatenate([labels.ravel() for labels in maps])
    counts = np.bincount(pixels[pixels < len(colours)], minlength=len(colours))
    tinted = [index for index in np.argsort(-counts, kind="stable") if names.classes[index] != BACKGROUND]
    order = [index for index in tinted if counts[index]][:MAX_LEGEND]
    return tuple(jpegs), tuple((names.classes[index], "#" + bytes(colours[index]).hex()) for index in order)
