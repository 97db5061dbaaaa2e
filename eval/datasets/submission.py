"""The values that saved predictions hold: those of the benchmark's own label files, as submission servers expect."""

import numpy as np

from gla_jax.eval.benchmarks import BENCHMARKS
from gla_jax.eval.datasets.dataset import Dataset
from gla_jax.support.arrays import Integer


def submission_values(dataset: Dataset) -> Integer[np.ndarray, " L"]:
    """The value of every class, uint8 (uint16 above 256 values): k + 1 where 0 is ignored, Cityscapes' raw ids."""
    classes = np.arange(len(dataset.names.classes))
    if table := dataset.names.tables.get("labelIds"):
        raw = {index: value for value, index in table.items()}
        classes = np.array([raw[index] for index in classes])
    elif any(layout.encoding == "zero_ignored" for layout in BENCHMARKS[dataset.benchmark].layouts):
        classes = classes + 1
    return classes.astype(np.uint8 if classes.max() < 256 else np.uint16)
