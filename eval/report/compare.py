"""Two runs side by side: figures, the difference of every class, and the images that changed most."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gla_jax.eval.report.page import NAMES, difference, figure, render, text_table
from gla_jax.eval.results import BOUNDARY, FIGURES, read_results
from gla_jax.support.arrays import Float
from gla_jax.support.errors import DataError, UserError
from gla_jax.support.places import place

if TYPE_CHECKING:
    from rich.console import Group

BOOTSTRAP_SAMPLES = 2000
MAX_PICKS = 2**20  # images of samples that are in memory together
Row = tuple[str, float | None, float | None]


@dataclass(frozen=True)
class Comparison:
    """Both results; classes and images hold (name, first, second) of those that both runs measured.

    same_edges: whether the windows of both have the same edges, at which boundary figures are then counted.
    """

    folders: tuple[Path, Path]
    results: tuple[dict[str, Any], dict[str, Any]]
    classes: tuple[tuple[str, float, float], ...]
    images: tuple[tuple[str, float, float], ...]
    same_edges: bool

    @property
    def titles(self) -> tuple[str, str]:
        """Names of the two: the folders, and the methods behind them."""
        first, second = (
            f"{path.name} ({r['method']}, {r['protocol']['setting']})"
            for path, r in zip(self.folders, self.results, strict=True)
        )
        return first, second

    def figures(self) -> list[Row]:
        """(name, first, second) of every figure; boundary figures are counted at one set of edges for both."""

        def of(results: dict[str, Any], key: str) -> float | None:
            part = "figures" if self.same_edges or key not in BOUNDARY else "common_edges"
            return results[part][key]

        return [(key, *(of(r, key) for r in self.results)) for key in FIGURES]

    def notes(self) -> list[str]:
        """Sentences that a reader needs beside the figures."""
        a, b = self.results
        changes = np.array([second - first for _, first, second in self.images])
        words = {
            "same_edges": self.same_edges,
            "interval": paired_interval(changes),
            "mean": changes.sum() / max(len(changes), 1),
        }
        counts = {"won": int((changes > 0).sum()), "lost": int((changes < 0).sum()), "images": len(changes)}
        return render(__package__, "compare_notes.txt", a=a, b=b, **words, **counts).splitlines()

    def changed(self, count: int) -> list[tuple[str, float, float]]:
        """The images whose mIoU changed most, either way."""
        return sorted(self.images, key=lambda row: -abs(row[2] - row[1]))[:count]


def paired_interval(changes: Float[np.ndarray, " images"]) -> tuple[float, float]:
    """The 95 % interval of the mean change of an image, from bootstrap samples of the images; NaN below two images."""
    if len(changes) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(0)  # a page that is made again shows the same interval
    at_once = max(MAX_PICKS // len(changes), 1)
    sizes = [min(at_once, BOOTSTRAP_SAMPLES - done) for done in range(0, BOOTSTRAP_SAMPLES, at_once)]
    means = [changes[rng.integers(len(changes), size=(size, len(changes)))].mean(1) for size in sizes]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(low), float(high)


def compare(first: Path, second: Path) -> Comparison:
    """Read two runs. Raises UserError when they do not measure the same images of the same classes."""
    a, b = read_results(first), read_results(second)
    for what, of in (
        ("benchmark", lambda r: r["benchmark"]),
        ("classes", lambda r: [row["class"] for row in r["per_class"]]),
        ("data", lambda r: r["data"]["sha256"]),
        ("images", lambda r: list(r["per_image"])),
    ):
        if of(a) != of(b):
            raise UserError(f"{first} and {second} differ in their {what}, so their figures cannot be compared.")
    classes = ((one["class"], one["iou"], two["iou"]) for one, two in zip(a["per_class"], b["per_class"], strict=True))
    images = ((name, value, b["per_image"][name]) for name, value in a["per_image"].items())
    measured = (tuple(row for row in rows if None not in row) for rows in (classes, images))
    return Comparison((first, second), (a, b), *measured, a["protocol"]["windows"] == b["protocol"]["windows"])


def _texts(rows: list[Row]) -> list[tuple[str, ...]]:
    """Names, both values and their difference as they are shown."""
    return [(name, figure(a), figure(b), difference(None if None in (a, b) else b - a)) for name, a, b in rows]


def comparison_tables(comparison: Comparison, count: int = 10) -> "Group":
    """The figures, the classes that changed most and the images that changed most, for a terminal."""
    from rich.console import Group
    from rich.text import Text

    by_change = sorted(comparison.classes, key=lambda row: -abs(row[2] - row[1]))[:count]
    tables = {
        "Figures, percent": [(NAMES[key], *pair) for key, *pair in comparison.figures()],
        f"Classes that changed most, IoU ({len(comparison.classes)} in all)": by_change,
        "Images that changed most, mIoU": comparison.changed(count),
    }
    columns = [("", {}), *((name, {"justify": "right"}) for name in (*comparison.titles, "change"))]
    parts = (text_table(title, columns, _texts(rows)) for title, rows in tables.items())
    return Group(*parts, *map(Text, comparison.notes()))


def comparison_html(comparison: Comparison, count: int = 6) -> str:
    """The same as one self-contained page, with pictures where both runs saved their predictions."""
    ordered = sorted(comparison.classes, key=lambda row: row[1] - row[2])
    classes = [(name, b - a, text[-1]) for (name, a, b), text in zip(ordered, _texts(ordered), strict=True)]
    return render(
        __package__,
        "compare.html",
        title=" and ".join(comparison.titles),
        titles=comparison.titles,
        benchmark=comparison.results[0]["benchmark"],
        head=("", *comparison.titles, "change"),
        reports=[str((folder / "report.html").resolve().as_uri()) for folder in comparison.folders],
        figures=_texts([(NAMES[key], *pair) for key, *pair in comparison.figures()]),
        notes=comparison.notes(),
        classes=classes,
        reach=max((abs(change) for _, change, _ in classes), default=0.0) or 1.0,
        images=_texts(comparison.changed(2 * count)),
        pictures=list(_pictures(comparison, count)),
    )


def _pictures(comparison: Comparison, count: int) -> Iterator[tuple[Any, ...]]:
    """(name, first, second, JPEGs, legend) of the images that changed most; none without saved predictions.

    Without the data of the runs there are none either, of which a warning says why. Raises UserError for a prediction
    that cannot be read.
    """
    from gla_jax.eval.datasets.dataset import open_dataset
    from gla_jax.eval.datasets.submission import submission_values
    from gla_jax.eval.report.pictures import panels
    from gla_jax.eval.runner import prediction_path
    from gla_jax.images.reading import opened

    results = comparison.results[0]
    if not all((folder / "predictions").is_dir() for folder in comparison.folders):
        return
    try:
        dataset = open_dataset(results["benchmark"], place(results["data"]["origin"]))
    except DataError as error:
        warnings.warn(f"the page has no pictures, as {error}", stacklevel=2)
        return
    same = list(dataset.names.classes) == [row["class"] for row in results["per_class"]]
    if not same or dataset.fingerprint != results["data"]["sha256"]:
        warnings.warn(f"the page has no pictures, as {dataset.origin} holds other data than the runs had", stacklevel=2)
        return
    values = submission_values(dataset)
    index_of = np.zeros(int(values.max()) + 1, np.int32)
    index_of[values] = np.arange(len(values))
    for name, a, b in comparison.changed(count):
        if name not in dataset.ids:
            continue
        example, labels = dataset.read(dataset.ids.index(name)), []
        for folder in comparison.folders:
            path = prediction_path(folder, name)
            with opened(path) as picture:
                pixels = np.asarray(picture)
            is_labels = pixels.shape == example.label.shape and pixels.dtype.kind == "u"
            if not is_labels or pixels.max() >= len(index_of):
                raise UserError(f"{path} is no label map of this benchmark; run the evaluation again.")
            labels.append(index_of[pixels])
        yield name, a, b, *panels(example, labels, None, dataset.names)
