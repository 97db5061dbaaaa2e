"""Per-class areas and the three figures of mmsegmentation's IoUMetric: mIoU, mAcc, aAcc.

Areas are integers that add up over images, devices and processes; the one division happens in `scores`.
"""

from typing import NamedTuple

import numpy as np

from gla_jax.support.arrays import Float, Int, Integer, typed

IGNORE = 255


class Scores(NamedTuple):
    """Figures in percent, NaN where there is nothing to divide by.

    iou [L]: NaN for a class neither predicted nor labelled; accuracy [L]: NaN for a class never labelled; miou and macc
    are their means over what is left, aacc is the share of labelled pixels that are right.
    """

    iou: Float[np.ndarray, " L"]
    accuracy: Float[np.ndarray, " L"]
    miou: float
    macc: float
    aacc: float


class Areas(NamedTuple):
    """Pixels counted per class, each int64 [L]: predicted and labelled so, predicted so, labelled so."""

    intersection: Int[np.ndarray, " L"]
    prediction: Int[np.ndarray, " L"]
    label: Int[np.ndarray, " L"]

    @classmethod
    def zeros(cls, classes: int) -> "Areas":
        """The areas of no image."""
        return cls(*(np.zeros(classes, np.int64) for _ in cls._fields))

    def merge(self, other: "Areas") -> "Areas":
        """The areas of both sets of images together."""
        return Areas(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def scores(self) -> Scores:
        """The figures of these areas."""
        iou = _percent(self.intersection, self.prediction + self.label - self.intersection)
        accuracy = _percent(self.intersection, self.label)
        overall = _percent(self.intersection.sum(keepdims=True), self.label.sum(keepdims=True))
        return Scores(iou, accuracy, mean_present(iou), mean_present(accuracy), float(overall[0]))


@typed
def image_areas(
    prediction: Integer[np.ndarray, "h w"], label: Integer[np.ndarray, "h w"], classes: int, ignore: int = IGNORE
) -> Areas:
    """The areas of one image.

    Args:
        prediction: class of every pixel.
        label: true class of every pixel.
        classes: L.
        ignore: label of pixels that count nowhere.

    Pixels labelled `ignore` count nowhere; values outside 0..classes-1 count for no class, as in mmsegmentation: such a
    prediction is a miss of its label, such a label a false alarm of its prediction. Raises ValueError when a value
    is negative or `ignore` is the index of a class.
    """
    if ignore < classes:
        raise ValueError(f"ignore {ignore} is one of the {classes} classes")
    if any(array.size and array.min() < 0 for array in (prediction, label) if array.dtype.kind == "i"):
        raise ValueError("labels count from 0; there is a negative one")
    # One pass over joint codes: row L holds foreign predictions, column L foreign labels, column L + 1 the ignored.
    row_length = classes + 2
    code_type = np.min_scalar_type((classes + 1) * row_length)
    codes = np.minimum(prediction, classes).astype(code_type)
    codes *= code_type.type(row_length)
    columns = np.minimum(label, classes).astype(code_type)
    columns[label == ignore] = classes + 1
    codes += columns
    counts = np.bincount(codes.ravel(), minlength=(classes + 1) * row_length).reshape(classes + 1, row_length)
    return Areas(
        counts.diagonal()[:classes].astype(np.int64),
        counts[:classes, : classes + 1].sum(1, dtype=np.int64),
        counts[:, :classes].sum(0, dtype=np.int64),
    )


def _percent(part: Int[np.ndarray, " L"], whole: Int[np.ndarray, " L"]) -> Float[np.ndarray, " L"]:
    return np.divide(100.0 * part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def mean_present(figures: Float[np.ndarray, " L"]) -> float:
    """The mean of the figures that are not NaN, NaN without any."""
    present = figures[~np.isnan(figures)]
    return float(present.mean()) if present.size else float("nan")
