"""Pictures for reports: an image with its window grid beside truth and prediction, as JPEG bytes."""

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

PANEL_WIDTH = 400
OPACITY = 0.62
MAX_LEGEND = 12
UNLABELLED = np.array([255, 255, 255], np.uint8)


@dataclass(frozen=True)
class Picture:
    """One image of a report: why it is shown, its mIoU, its JPEG, and (name, colour) of the classes in it."""

    kind: str
    image_id: str
    miou: float
    jpeg: bytes
    legend: tuple[tuple[str, str], ...]


def palette_of(names: ClassNames) -> UInt8[np.ndarray, "L 3"]:
    """The benchmark's own colours, or the package's where it has none."""
    return palette(len(names.classes)) if names.palette is None else np.array(names.palette, np.uint8)


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
) -> tuple[bytes, tuple[tuple[str, str], ...]]:
    """Image, truth and predictions side by side as a JPEG, and (name, "#rrggbb") of the classes, the largest first.

    Args:
        example: image and truth.
        predictions: labels of the image.
        grid: windows whose edges are drawn over the image, None for none.
        names: classes of the benchmark.
    """
    height, width = example.label.shape
    size = (PANEL_WIDTH, max(round(height * PANEL_WIDTH / width), 1))
    colours, maps = palette_of(names), (example.label, *predictions)
    views = [with_window_grid(example.image, grid) if grid else example.image]
    # Class colours over the grey image; what is not labelled stays white.
    grey = example.image.mean(2, keepdims=True, dtype=np.float32)
    for labels in maps:
        shown = np.vstack([colours, UNLABELLED])[np.minimum(labels, len(colours))]
        views.append((OPACITY * shown + (1 - OPACITY) * grey).astype(np.uint8))
    row = Image.new("RGB", (len(views) * (PANEL_WIDTH + 6) - 6, size[1]), "white")
    for place, view in enumerate(views):
        small = Image.fromarray(view).resize(size, Image.Resampling.LANCZOS)
        row.paste(small, (place * (PANEL_WIDTH + 6), 0))
    stream = io.BytesIO()
    row.save(stream, format="JPEG", quality=88)

    pixels = np.concatenate([labels.ravel() for labels in maps])
    counts = np.bincount(pixels[pixels < len(colours)], minlength=len(colours))
    order = [index for index in np.argsort(-counts, kind="stable") if counts[index]][:MAX_LEGEND]
    return stream.getvalue(), tuple((names.classes[index], "#" + bytes(colours[index]).hex()) for index in order)
