"""Labels that flip at window edges, method by method, and the picture of it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from gla_jax.config import BASELINES, WindowConfig, without_gla
from gla_jax.eval.metrics.boundary import WIDTHS, boundary_counts
from gla_jax.images.edges import mirrored_pairs
from gla_jax.images.windows import WindowGrid
from gla_jax.pictures.drawing import (
    INK,
    NARROWEST,
    PAPER,
    Entry,
    Panel,
    blend,
    centred,
    pale,
    palette,
    panels,
    scaled,
    shown_size,
    with_window_grid,
)
from gla_jax.results.segmentation import Segmentation
from gla_jax.segmenter import Segmenter
from gla_jax.support.arrays import Bool, Integer, UInt8
from gla_jax.text.prompts import Classes

NO_TRUTH = -1  # no label is negative, so nothing is ignored


class Flips(NamedTuple):
    """Labels of one method at window edges.

    at_edges [h w]: pixels on both sides of an edge whose labels differ; share and control: percent of the pairs that
    differ at the edges and half a stride away from them, NaN where there are no edges.
    """

    at_edges: Bool[np.ndarray, "h w"]
    share: float
    control: float


def label_flips(
    labels: Integer[np.ndarray, "h w"],
    resized: tuple[int, int],
    windows: WindowConfig,
    truth: Integer[np.ndarray, "h w"] | None = None,
) -> Flips:
    """Labels that differ across a window edge, as `gla-jax eval` pairs pixels; with a truth only where that does not.

    Without truth every border of an object that crosses an edge is counted as well: compare with the control, and
    between methods.

    Args:
        labels: of the image.
        resized: (h, w) of the image that was cut into windows, in pixels.
        windows: their side and stride.
        truth: the right labels, where they are known.
    """
    truth = np.zeros(labels.shape, np.int32) if truth is None else truth
    rates = boundary_counts(labels, truth, resized, windows, NO_TRUTH).rates()
    marks = np.zeros(labels.shape, bool)
    # Across columns, then across rows by the transposed views.
    for marked, shown, true, length in ((marks, labels, truth, resized[1]), (marks.T, labels.T, truth.T, resized[0])):
        left, right = mirrored_pairs(shown.shape[1], length, windows, WIDTHS[0])
        differ = (shown[:, left] != shown[:, right]) & (true[:, left] == true[:, right])
        marked[:, left] |= differ
        marked[:, right] |= differ
    return Flips(marks, rates[f"ber_{WIDTHS[0]}"], rates[f"control_{WIDTHS[0]}"])


def compare_methods(
    segmenter: Segmenter, image: UInt8[np.ndarray, "h w 3"], classes: Sequence[str] | Classes
) -> dict[str, Segmentation]:
    """The image segmented by the baseline as published and by the segmenter's own method, with GLA."""
    config = segmenter.config
    published = replace(config, method=without_gla(config.method.baseline))
    name = BASELINES[config.method.baseline].title
    return {name: segmenter.with_config(published)(image, classes), f"{name} + GLA": segmenter(image, classes)}


def boundary_picture(
    results: dict[str, Segmentation],
    grid: WindowGrid,
    windows: WindowConfig,
    truth: Integer[np.ndarray, "h w"] | None = None,
) -> Image.Image:
    """The label maps of methods side by side, label flips along window edges in black, their shares below.

    Args:
        results: by the name of the method.
        grid: of the image's windows.
        windows: their side and stride.
        truth: the right labels, where they are known.
    """
    first = next(iter(results.values()))
    size = shown_size(*first.image.shape[:2])
    image, width = pale(scaled(first.image, size)), max(size[1], NARROWEST)
    present, colours = np.unique([result.labels for result in results.values()]), palette(first.classes)
    row = []
    for name, result in results.items():
        flips = label_flips(result.labels, (grid.height, grid.width), windows, truth)
        small = np.asarray(Image.fromarray(result.labels.astype(np.int32)).resize(size[::-1], Image.Resampling.NEAREST))
        shown = with_window_grid(blend(image, small, colours), grid)
        shown = np.asarray(centred(with_flips(shown, flips.at_edges), width))
        row.append(Panel(shown, name, flip_note(flips, truth is not None)))
    entries = [Entry(first.classes[label], tuple(colours[label].tolist())) for label in present]
    return panels(row, [Entry("labels differ across a window edge", INK), *entries])


def with_flips(pixels: UInt8[np.ndarray, "h w 3"], flips: Bool[np.ndarray, "a b"]) -> Image.Image:
    """A picture with pixels of the image marked in black, large enough to see."""
    marks = np.zeros(pixels.shape[:2], np.uint8)
    places = np.argwhere(flips)
    rows, columns = ((places + 0.5) * np.array(marks.shape) / flips.shape).astype(int).T
    marks[rows, columns] = 255
    mask, picture = Image.fromarray(marks), Image.fromarray(pixels)
    picture.paste(PAPER, mask=mask.filter(ImageFilter.MaxFilter(7)))
    picture.paste(INK, mask=mask.filter(ImageFilter.MaxFilter(5)))
    return picture


def flip_note(flips: Flips, has_truth: bool) -> str:
    """The figures of a method in lines."""
    if np.isnan(flips.share):
        return "one window: there are no edges"
    what = "boundary error" if has_truth else "labels differ"
    return f"{what} at {flips.share:.1f}% of the edges' pixels\n{flips.control:.1f}% half a stride away from them"
