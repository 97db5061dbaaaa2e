"""One label for each mask of regions that come from elsewhere."""

from collections.abc import Iterable

import numpy as np

from gla_jax.labels.background import leads
from gla_jax.support.arrays import Bool, Float, Integer, typed


@typed
def label_masks(
    labels: Integer[np.ndarray, "h w"],
    scores: Float[np.ndarray, "L h w"],
    masks: Iterable[Bool[np.ndarray, "h w"]],
    threshold: float = 0.0,
    background: int = 0,
    margin: float = 0.0,
) -> Integer[np.ndarray, "h w"]:
    """Labels of pixels by the masks that cover them: the class of the highest mean probability over the whole mask.

    Of several masks a pixel takes the smallest, of equally large ones the first; without a mask it keeps its label.

    Args:
        labels: of every pixel by itself.
        scores: probability of every class.
        masks: regions, which may overlap; an empty one labels nothing.
        threshold: a mask whose best mean is below it takes the label background.
        background: index of a class.
        margin: a mask whose best class leads the second by less takes the label background.
    """
    result, smallest = labels.copy(), np.full(labels.shape, labels.size + 1)
    for mask in masks:
        area = int(mask.sum())
        if not area:
            continue
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        # Rows in float32, their sum in float64: no copy of the scores, and no error that grows with the mask.
        sums = np.einsum("lhw,hw->lh", scores[:, *box], mask[box].astype(np.float32)).sum(1, dtype=np.float64)
        unsure = sums.max() / area < threshold or (margin > 0 and leads(sums) / area < margin)
        label = background if unsure else int(sums.argmax())
        taken = mask & (area < smallest)
        result[taken], smallest[taken] = label, area
    return result
