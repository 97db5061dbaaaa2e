"""Pictures for reports: an image with its window grid beside truth and prediction, as JPEG bytes."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from gla_jax.eval.benchmarks import ClassNames
from gla_jax.eval.datasets.dataset import Example
from gla_jax.eval.predict import Prediction, Ready, Stopwatch, predictor
from gla_jax.eval.results import image_miou
from gla_jax.eval.runner import Outcome
from gla_jax.images.windows import WindowGrid, window_grid
from gla_jax.pictures.drawing import palette, with_window_grid
from gla_jax.support.shapes import Integer, UInt8

PANEL_WIDTH = 400
OPACITY = 0.62
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


def chosen(outcome: Outcome, each: int = 2) -> list[tuple[str, int]]:
    """(kind, index) of the best, median and worst images by their own mIoU, up to `each` of a kind, no image twice."""
    miou = image_miou(outcome.records, len(outcome.run.row.classes))
    order = [int(index) for index in np.argsort(-miou, kind="stable") if not np.isnan(miou[index])]
    if len(order) == 1:
        return [("the only one", order[0])]
    ends = min(each, (len(order) + 1) // 3)
    middle = order[ends : len(order) - ends]
    skipped = max(len(middle) - each, 0) // 2
    picks = (
        ("best", order[:ends]),
        ("median", middle[skipped : skipped + each]),
        ("worst", order[::-1][:ends]),
    )
    return [(kind, index) for kind, indices in picks for index in indices]


def report_pictures(outcome: Outcome, each: int = 2) -> list[Picture]:
    """Pictures of the chosen images; they are segmented once more."""
    run = outcome.run
    picks = chosen(outcome, each)
    predict = predictor(run.segmenter, run.row) if picks else None
    miou = image_miou(outcome.records, len(run.row.classes))
    pictures = []
    for kind, index in picks:
        example = run.dataset.read(index)
        (prediction,) = predict([Ready(example, run.segmenter.prepare(example.image))], Stopwatch())
        grid = window_grid(*prediction.resized, run.row.windows)
        jpeg = panels(example, [prediction.labels], grid, run.dataset.names)
        legend = legend_of(example, prediction, run.dataset.names)
        pictures.append(Picture(kind, example.image_id, float(miou[index]), jpeg, legend))
    return pictures


def panels(
    example: Example, predictions: list[Integer[np.ndarray, "h w"]], grid: WindowGrid | None, names: ClassNames
) -> bytes:
    """Image with window grid, truth and predictions side by side."""
    height, width = example.label.shape
    scale = PANEL_WIDTH / width
    size = (PANEL_WIDTH, max(round(height * scale), 1))
    colours = palette_of(names)
    views = [with_window_grid(example.image, grid) if grid else example.image]
    views += [blended(example.image, labels, colours) for labels in (example.label, *predictions)]
    small = [np.asarray(Image.fromarray(view).resize(size, Image.Resampling.LANCZOS)) for view in views]
    gap = np.full((size[1], 6, 3), 255, np.uint8)
    row = np.concatenate([part for view in small for part in (view, gap)][:-1], axis=1)
    stream = io.BytesIO()
    Image.fromarray(row).save(stream, format="JPEG", quality=88)
    return stream.getvalue()


def blended(
    image: UInt8[np.ndarray, "h w 3"], labels: Integer[np.ndarray, "h w"], colours: UInt8[np.ndarray, "L 3"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Class colours over the grey image; what is not labelled stays white."""
    shown = np.vstack([colours, UNLABELLED])[np.minimum(labels, len(colours))]
    grey = image.mean(2, keepdims=True, dtype=np.float32)
    return (OPACITY * shown + (1 - OPACITY) * grey).astype(np.uint8)


def legend_of(example: Example, prediction: Prediction, names: ClassNames) -> tuple[tuple[str, str], ...]:
    """(name, "#rrggbb") of the classes that truth or prediction hold, the largest first."""
    colours = palette_of(names)
    both = np.concatenate([example.label.ravel(), prediction.labels.ravel()])
    counts = np.bincount(both[both < len(colours)], minlength=len(colours))
    order = [index for index in np.argsort(-counts, kind="stable") if counts[index]][:12]
    return tuple((names.classes[index], "#" + bytes(colours[index].tolist()).hex()) for index in order)
