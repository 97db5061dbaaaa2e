"""The figures of an ablation as JSON, CSV, a picture and a table for a terminal."""

import csv
import io
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gla_jax.analysis.ablation import Ablation, value_text
from gla_jax.config import settings_as_dict
from gla_jax.eval.metrics.areas import Areas
from gla_jax.eval.metrics.boundary import BoundaryCounts
from gla_jax.pictures.charts import GREY, Column, are_numbers, bars, figure, heat_maps, lines
from gla_jax.pictures.drawing import BLUE, RED, Entry
from gla_jax.predict.one_key import ADVICE, MANY, one_key_percent
from gla_jax.support.files import write_json, write_png, write_text
from gla_jax.support.version import VERSION

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table

FORMAT = "gla-jax ablation 1"
FIGURES = {"miou": "mIoU", "aacc": "accuracy", "ber_1": "boundary error", "control_1": "control", "one_key": "one key"}
MAX_BARS = 24
GLA_PARTS = ("global_buffer", "proxy_anchors", "row_mean", "dynamic_shift", "dynamic_scale")


class Tally(NamedTuple):
    """Counts of all images under one setting, their seconds, tokens that keep one single key, and all that could."""

    areas: Areas
    boundary: BoundaryCounts
    seconds: float
    one_key: tuple[int, int] = (0, 0)

    def figures(self) -> dict[str, float]:
        """The figures by the names of FIGURES, percent, NaN where there is none."""
        scores, rates = self.areas.scores(), self.boundary.rates()
        one_key = one_key_percent(*self.one_key)
        figures = {"miou": scores.miou, "aacc": scores.aacc, "ber_1": rates["ber_1"]}
        return figures | {"control_1": rates["control_1"], "one_key": math.nan if one_key is None else one_key}


def write_files(folder: Path, ablation: Ablation, tallies: Sequence[Tally], note: str, about: dict[str, Any]) -> None:
    """Write ablation.json, ablation.csv and ablation.png.

    Args:
        folder: an existing one.
        ablation: the settings.
        tallies: of every setting.
        note: below the picture's title.
        about: model, data and protocol, for ablation.json.
    """
    rows = [
        {
            "name": setting.name,
            "figures": {name: None if math.isnan(value) else value for name, value in tally.figures().items()},
            "seconds": tally.seconds,  # a share of what settings do together
            "settings": settings_as_dict(setting.config),
        }
        | ({} if setting.model is None else {"model": setting.model})
        for setting, tally in zip(ablation.settings, tallies, strict=True)
    ]
    axes = {field: list(values) for field, values in ablation.axes.items()}
    head = {"format": FORMAT, "version": VERSION, "finished": datetime.now(UTC).isoformat(timespec="seconds")}
    content = head | {"title": ablation.title} | about | {"axes": axes, "settings": rows}

    text, varied = io.StringIO(), ablation.varied()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["setting", *varied, *FIGURES, "seconds"])
    for setting, tally in zip(ablation.settings, tallies, strict=True):
        figures = ("" if math.isnan(value) else f"{value:.4f}" for value in tally.figures().values())
        fields = (value_text(setting.fields()[name]) for name in varied)
        writer.writerow([setting.name, *fields, *figures, f"{tally.seconds:.3f}"])

    write_json(folder / "ablation.json", content)
    write_text(folder / "ablation.csv", text.getvalue())
    write_png(folder / "ablation.png", _picture(ablation, tallies, note))


def as_table(ablation: Ablation, tallies: Sequence[Tally], note: str) -> "Table":
    """The figures for a terminal, percent; the best of mIoU, accuracy and boundary error rate are bold.

    Settings under which many tokens keep one single key are named below.
    """
    from rich import box
    from rich.table import Table

    left = {"title_justify": "left", "caption_justify": "left"}
    shares = [tally.figures()["one_key"] for tally in tallies]
    names = [setting.name for setting, share in zip(ablation.settings, shares, strict=True) if share > MANY]
    if names:
        note += f"\nmore than {MANY:.0f}% of the tokens keep one single key under {'; '.join(names)}: {ADVICE}"
    shown = {name: title for name, title in FIGURES.items() if name != "one_key"}
    table = Table(title=ablation.title, caption=note, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), **left)
    for name in ablation.axes:
        table.add_column(name.replace("_", "_\n"), justify="right")
    if not ablation.axes:
        table.add_column("setting", no_wrap=True)
    for title in (*shown.values(), "seconds"):
        table.add_column(title, justify="right", no_wrap=True)
    columns = {name: _column(name, tallies) for name in shown}
    for index, (setting, tally) in enumerate(zip(ablation.settings, tallies, strict=True)):
        cells = [value_text(setting.fields()[name]) for name in ablation.axes] or [setting.name]
        for name, column in columns.items():
            cell = figure(column.values[index])
            # The control rate is there to be compared with: none is best.
            cells.append(f"[bold]{cell}[/]" if index in column.ties and name != "control_1" else cell)
        table.add_row(*cells, f"{tally.seconds:.1f}")
    return table


def _column(name: str, tallies: Sequence[Tally]) -> Column:
    rows = [tally.figures() for tally in tallies]
    higher = name in ("miou", "aacc")
    marks = tuple(row["control_1"] for row in rows) if name == "ber_1" else ()
    return Column(f"{FIGURES[name]}, %", tuple(row[name] for row in rows), higher, BLUE if higher else RED, marks)


def _picture(ablation: Ablation, tallies: Sequence[Tally], note: str) -> "Image.Image":
    """mIoU and boundary error rate: lines over one field of numbers, maps over two fields, otherwise bars."""
    columns = [_column(name, tallies) for name in ("miou", "ber_1")]
    axes = {name: [value_text(value) for value in values] for name, values in ablation.axes.items() if len(values) > 1}
    field, names = next(iter(axes.items()), ("", []))
    if len(axes) == 1 and are_numbers(names):
        return lines(ablation.title, note, field, names, columns)
    if len(axes) == 2:
        return heat_maps(ablation.title, f"{note}; darker is better", tuple(axes), tuple(axes.values()), columns)

    rows, title = list(zip(ablation.settings, tallies, strict=True)), ablation.title
    if axes and len(rows) > MAX_BARS:
        # Best first; settings without a figure come last.
        rows.sort(key=lambda row: -math.inf if math.isnan(miou := row[1].figures()["miou"]) else miou, reverse=True)
        title = f"{title}: the {MAX_BARS} best of {len(rows)}"
        rows = rows[:MAX_BARS]
    settings, tallies = zip(*rows, strict=True)
    methods = [setting.config.method for setting in settings]
    off = (False, False, False, None, None)
    with_gla = [tuple(getattr(method, part) for part in GLA_PARTS) != off for method in methods]
    key = [Entry("with GLA: mIoU", BLUE), Entry("with GLA: boundary error", RED)]
    key += [Entry("baseline as published", GREY)] if not all(with_gla) else []
    columns = [_column(name, tallies) for name in ("miou", "ber_1")]
    note = f"{note}; black stroke: control rate, away from edges"
    return bars(title, note, [setting.name for setting in settings], with_gla, columns, key)
