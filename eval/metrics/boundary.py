"""Boundary error rate: how often the prediction jumps across a window edge where the ground truth does not.

The paper says it in one sentence ("the proportion of pixels near adjacent window boundaries where predicted labels
differ despite identical ground truth"); the rest is this project's reading. Edges are all window starts and ends inside
the resized image. Pixels that mirror each other at an edge, up to `width` resized pixels away, form a pair; it is valid
when both have the same label, not the ignored one, and an error when their predictions differ. Errors and valid pairs
are summed over edges, axes and images, and divided once. The control rate counts the same at lines moved by half a
stride, which tells window artefacts from ordinary borders between predicted classes.
"""

from typing import NamedTuple

import numpy as np

from gla_jax.config import WindowConfig
from gla_jax.eval.metrics.areas import IGNORE
from gla_jax.images.edges import mirrored_pairs
from gla_jax.support.arrays import Int, Integer, typed

WIDTHS = (1, 8)  # resized pixels: the seam itself, and one patch of DINO ViT-B/8


class BoundaryCounts(NamedTuple):
    """Errors and valid pairs, each int64 [4]: width 1 and 8 at the edges, then width 1 and 8 at the control lines."""

    errors: Int[np.ndarray, "4"]
    pairs: Int[np.ndarray, "4"]

    @classmethod
    def zeros(cls) -> "BoundaryCounts":
        """The counts of no image."""
        return cls(np.zeros(2 * len(WIDTHS), np.int64), np.zeros(2 * len(WIDTHS), np.int64))

    def merge(self, other: "BoundaryCounts") -> "BoundaryCounts":
        """The counts of both sets of images together."""
        return BoundaryCounts(self.errors + other.errors, self.pairs + other.pairs)

    def rates(self) -> dict[str, float]:
        """Errors in percent of the valid pairs, NaN without any: ber_1, ber_8, control_1, control_8."""
        names = [f"{kind}_{width}" for kind in ("ber", "control") for width in WIDTHS]
        shares = np.divide(100.0 * self.errors, self.pairs, out=np.full(len(names), np.nan), where=self.pairs > 0)
        return dict(zip(names, shares.tolist(), strict=True))


@typed
def boundary_counts(
    prediction: Integer[np.ndarray, "h w"],
    label: Integer[np.ndarray, "h w"],
    resized: tuple[int, int],
    windows: WindowConfig,
    ignore: int = IGNORE,
) -> BoundaryCounts:
    """The counts of one image; an image of a single window has no edge and adds nothing.

    Args:
        prediction: class of every pixel.
        label: true class of every pixel.
        resized: (height, width) of the image that was cut into windows.
        windows: the edge set, the same for every method that is to be compared.
        ignore: label of pixels that form no pair.
    """
    table = np.zeros((2, 2 * len(WIDTHS)), np.int64)
    lines = [(width, offset) for offset in (0, windows.stride // 2) for width in WIDTHS]
    for column, (width, offset) in enumerate(lines):
        for p, g, length in ((prediction, label, resized[1]), (prediction.T, label.T, resized[0])):
            left, right = mirrored_pairs(g.shape[1], length, windows, width, offset)
            valid = (g[:, left] == g[:, right]) & (g[:, left] != ignore)
            table[:, column] += ((valid & (p[:, left] != p[:, right])).sum(), valid.sum())
    return BoundaryCounts(*table)
