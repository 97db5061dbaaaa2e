"""Two runs side by side: figures, the difference of every class, and the images that changed most."""

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gla_jax.eval.report.page import NAMES, bar, bar_chart, chips, figure, page, picture_html
from gla_jax.eval.results import BOUNDARY, FIGURES, read_results
from gla_jax.support.errors import DataError, UserError

if TYPE_CHECKING:
    from rich.console import Group

    from gla_jax.eval.datasets.dataset import Dataset


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
        """What to call the two: the folder names, and the methods behind them."""
        first, second = (
            f"{path.name} ({r['method']}, {r['protocol']['setting']})"
            for path, r in zip(self.folders, self.results, strict=True)
        )
        return first, second

    def figures(self) -> list[tuple[str, float | None, float | None]]:
        """(name, first, second) of every figure; boundary figures are counted at one set of edges for both."""

        def of(results: dict[str, Any], key: str) -> float | None:
            part = "figures" if self.same_edges or key not in BOUNDARY else "common_edges"
            return results[part][key]

        return [(key, *(of(r, key) for r in self.results)) for key in FIGURES]

    def notes(self) -> list[str]:
        """What a reader has to know beside the figures."""
        notes = []
        for what, of in (
            ("methods", lambda r: r["method"]),
            ("protocols", lambda r: f"{r['protocol']['sha256'][:12]} ({r['protocol']['setting']})"),
            ("models", lambda r: f"{r['model']['name']} ({r['model']['sha256'][:12]})"),
            ("types of the towers", lambda r: r["settings"]["dtype"]),
        ):
            first, second = map(of, self.results)
            if first != second:
                notes.append(f"The {what} differ: {first} and {second}.")
        if not self.same_edges:
            sizes = self.results[0]["common_edges"]["windows"]
            own = " and ".join(figure(r["figures"]["ber_1"]) for r in self.results)
            at = f"{sizes['crop']} pixels every {sizes['stride']}, short side {sizes['short_side']}"
            notes.append(
                "The windows of the two runs have different edges: both boundary figures are counted at those of GLA's "
                f"windows ({at}). Window artefacts lie at a run's own edges: there BER, width 1, is {own}."
            )
        return notes

    def changed(self, count: int) -> list[tuple[str, float, float]]:
        """The images whose mIoU changed most, either way."""
        return sorted(self.images, key=lambda row: -abs(row[2] - row[1]))[:count]


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
    classes = [
        (row["class"], row["iou"], other["iou"]) for row, other in zip(a["per_class"], b["per_class"], strict=True)
    ]
    images = [(name, value, b["per_image"][name]) for name, value in a["per_image"].items()]
    same_edges = a["protocol"]["windows"] == b["protocol"]["windows"]
    return Comparison((first, second), (a, b), _both(classes), _both(images), same_edges)


def comparison_tables(comparison: Comparison, count: int = 10) -> "Group":
    """The figures, the classes that changed most and the images that changed most, for a terminal."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def table(title: str, rows: list[tuple[str, float | None, float | None]]) -> Table:
        made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
        made.add_column("")
        for name in (*comparison.titles, "change"):
            made.add_column(name, justify="right")
        for name, one, other in rows:
            made.add_row(name, figure(one), figure(other), _signed(one, other))
        return made

    by_change = sorted(comparison.classes, key=lambda row: -abs(row[2] - row[1]))[:count]
    parts = [
        table("Figures, percent", [(NAMES[key], a, b) for key, a, b in comparison.figures()]),
        table(f"Classes that changed most, IoU ({len(comparison.classes)} in all)", by_change),
        table("Images that changed most, mIoU", comparison.changed(count)),
    ]
    return Group(*parts, *map(Text, comparison.notes()))


def comparison_html(comparison: Comparison, count: int = 6) -> str:
    """The same as one self-contained page, with pictures where both runs saved their predictions."""
    first, second = map(escape, comparison.titles)
    rows = "".join(
        f"<tr><th>{NAMES[key]}</th><td>{figure(a)}</td><td>{figure(b)}</td><td>{_signed(a, b)}</td></tr>"
        for key, a, b in comparison.figures()
    )
    ordered = sorted(comparison.classes, key=lambda row: row[1] - row[2])
    # Zero lies in the middle of the track, and the largest change reaches its end.
    reach = max((abs(b - a) for _, a, b in ordered), default=0.0) or 1.0
    bars = "".join(bar(name, 50, 50 + 50 * (b - a) / reach, _signed(a, b), b < a) for name, a, b in ordered)
    images = "".join(
        f"<tr><th>{escape(name)}</th><td>{figure(a)}</td><td>{figure(b)}</td><td>{_signed(a, b)}</td></tr>"
        for name, a, b in comparison.changed(2 * count)
    )
    head = f"<tr><th></th><th>{first}</th><th>{second}</th><th>change</th></tr>"
    notes = "".join(f"<p class=soft>{escape(note)}</p>" for note in comparison.notes())
    return page(
        f"{first} and {second}",
        f"<h1>{escape(comparison.results[0]['benchmark'])}</h1><p class=soft>{first}, then {second}; percent</p>"
        f"<table>{head}{rows}</table>{notes}<h2>IoU of every class: change from the first to the second</h2>"
        f"{bar_chart([name for name, _, _ in ordered], bars)}"
        f"<h2>Images that changed most, mIoU</h2><table>{head}{images}</table>"
        f"{_pictures(comparison, count)}",
    )


def _pictures(comparison: Comparison, count: int) -> str:
    """Image, truth and both predictions of the images that changed most."""
    dataset = _dataset(comparison.results[0])
    saved = [folder / "predictions" for folder in comparison.folders]
    if dataset is None or not all(folder.is_dir() for folder in saved):
        return "<p class=soft>Pictures appear here when both runs had --save-predictions and the data is in place.</p>"
    from gla_jax.eval.predict import Prediction
    from gla_jax.eval.report.pictures import legend_of, panels

    shown = []
    for name, a, b in comparison.changed(count):
        example = dataset.read(dataset.ids.index(name))
        labels = [_read_prediction(folder.parent, dataset, name) for folder in saved]
        legend = legend_of(example, Prediction(np.concatenate(labels), example.label.shape), dataset.names)
        caption = (
            f"<b>{escape(name)}</b>, mIoU {figure(a)} and {figure(b)}. Left to right: image, truth, "
            f"{escape(comparison.titles[0])}, {escape(comparison.titles[1])}.<br>{chips(legend)}"
        )
        shown.append(picture_html(panels(example, labels, None, dataset.names), caption))
    return "".join(shown)


def _dataset(results: dict[str, Any]) -> "Dataset | None":
    from gla_jax.eval.datasets.dataset import open_dataset

    try:
        dataset = open_dataset(results["benchmark"], Path(results["data"]["origin"]))
    except DataError:
        return None
    return dataset if dataset.fingerprint == results["data"]["sha256"] else None


def _read_prediction(out: Path, dataset: "Dataset", name: str) -> np.ndarray:
    """A saved prediction as class indices."""
    from PIL import Image

    from gla_jax.eval.datasets.submission import submission_values
    from gla_jax.eval.runner import prediction_path

    values = submission_values(dataset)
    index_of = np.zeros(int(values.max()) + 1, np.int32)
    index_of[values] = np.arange(len(values))
    with Image.open(prediction_path(out, name)) as picture:
        return index_of[np.asarray(picture)]


def _both(rows: list[tuple[str, float | None, float | None]]) -> tuple[tuple[str, float, float], ...]:
    return tuple((name, a, b) for name, a, b in rows if a is not None and b is not None)


def _signed(first: float | None, second: float | None) -> str:
    return "-" if first is None or second is None else f"{second - first:+.2f}"
