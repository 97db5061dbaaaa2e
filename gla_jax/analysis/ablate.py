"""Ablations: a method stage by stage, host by host or over a grid of settings, on one benchmark.

The towers run once an image; settings that differ in numbers alone go through the rest together by one vmap.
"""

import csv
import io
import json
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import jax
import numpy as np

from gla_jax.config import BASELINES, Host, MethodConfig, Number, SegmenterConfig, settings_as_dict, without_gla
from gla_jax.eval.benchmarks import BENCHMARKS
from gla_jax.eval.datasets.dataset import Dataset, examples
from gla_jax.eval.metrics.areas import Areas, image_areas
from gla_jax.eval.metrics.boundary import BoundaryCounts, boundary_counts
from gla_jax.eval.protocols import Protocol
from gla_jax.eval.report.page import counted
from gla_jax.images.windows import WindowGrid, Windows
from gla_jax.labels.label_map import label_map, layout
from gla_jax.support.files import write_png, write_text
from gla_jax.pictures.charts import BLUE, GREY, RED, Column, bars, figure, heat_maps, lines
from gla_jax.pictures.drawing import Entry
from gla_jax.pipeline import (
    SegmenterParams,
    WindowTokens,
    aggregate_windows,
    encode_windows,
    patch_features,
    token_logits,
)
from gla_jax.segmenter import Segmenter, check_settings
from gla_jax.settings.options import check_choice
from gla_jax.support.errors import UserError
from gla_jax.support.progress import track
from gla_jax.support.shapes import Array, Integer, UInt8
from gla_jax.support.version import VERSION
from gla_jax.text.prompts import Classes

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table

FORMAT = "gla-jax ablation 1"
# What may be swept: every field of the method, and what turns its logits into labels.
FIELDS: dict[str, Any] = get_type_hints(MethodConfig) | {"logit_scale": Number, "threshold": Number}
LABEL_FIELDS = ("logit_scale", "threshold")
ABOVE_ZERO = ("logit_scale", "temperature", "mask_temperature")
GLA_BASELINES = tuple(host for host, row in BASELINES.items() if row.features)
FIGURES = {"miou": "mIoU", "aacc": "accuracy", "ber_1": "boundary error", "control_1": "control"}
MAX_BYTES = 2**30
BARS_AT_MOST = 24


@dataclass(frozen=True)
class Setting:
    """One row of an ablation."""

    name: str
    config: SegmenterConfig

    def fields(self) -> dict[str, Any]:
        """Everything that may be swept, by name."""
        return vars(self.config.method) | {name: getattr(self.config, name) for name in LABEL_FIELDS}


@dataclass(frozen=True)
class Ablation:
    """What is compared: the settings in order; axes: the values of each field of a grid, empty for stages and hosts."""

    title: str
    settings: tuple[Setting, ...]
    axes: Mapping[str, tuple[Any, ...]]

    def varied(self) -> tuple[str, ...]:
        """The fields in which the settings differ."""
        rows = [setting.fields() for setting in self.settings]
        return tuple(name for name in FIELDS if any(row[name] != rows[0][name] for row in rows))


class Encoded(NamedTuple):
    """One image after the towers; size (h, w) of the image in pixels."""

    tokens: WindowTokens
    windows: Windows
    grid: WindowGrid
    size: tuple[int, int]


class Labelled(NamedTuple):
    """The label map of one setting: its index, labels [h w], and its share of the seconds of the pass."""

    index: int
    labels: Integer[np.ndarray, "h w"]
    seconds: float


class Tally(NamedTuple):
    """What the images add up to under one setting."""

    areas: Areas
    boundary: BoundaryCounts
    seconds: float

    def figures(self) -> dict[str, float]:
        """The figures by the names of FIGURES, percent, NaN where there is none."""
        scores, rates = self.areas.scores(), self.boundary.rates()
        return {"miou": scores.miou, "aacc": scores.aacc, "ber_1": rates["ber_1"], "control_1": rates["control_1"]}


class Measured(NamedTuple):
    """The tallies of all settings in order, the seconds of the towers, and how many images were measured."""

    tallies: tuple[Tally, ...]
    tower_seconds: float
    images: int


def stages(base: SegmenterConfig, host: Host) -> Ablation:
    """The paper's ablation: a host as published, then each part of GLA on top of the ones before."""
    published, whole = without_gla(host), MethodConfig(baseline=host)
    shared = replace(published, global_buffer=True)
    methods = {
        f"{host} as published": published,
        "+ global buffer": shared,
        "+ proxy anchors": replace(shared, proxy_anchors=True),
        "+ dynamic normalisation": whole,
    }
    settings = tuple(Setting(name, replace(base, method=method)) for name, method in methods.items())
    return Ablation(f"GLA on {host}, stage by stage", settings, {})


def hosts(base: SegmenterConfig) -> Ablation:
    """Every host as published and, where GLA is defined on it, with GLA."""
    settings = []
    for host in BASELINES:
        settings.append(Setting(host, replace(base, method=without_gla(host))))
        if host in GLA_BASELINES:
            settings.append(Setting(f"{host} + GLA", replace(base, method=MethodConfig(baseline=host))))
    return Ablation("Hosts without and with GLA", tuple(settings), {})


def grid(base: SegmenterConfig, host: Host, axes: Mapping[str, tuple[Any, ...]]) -> Ablation:
    """All combinations of the axes on top of GLA on a host, the last axis fastest.

    Raises UserError for a combination that the method does not allow.
    """
    settings = []
    for values in product(*axes.values()):
        changes = dict(zip(axes, values, strict=True))
        name = ", ".join(f"{field} {written(value)}" for field, value in changes.items())
        labels = {field: changes.pop(field) for field in LABEL_FIELDS if field in changes}
        try:
            settings.append(Setting(name, replace(base, method=MethodConfig(**{"host": host} | changes), **labels)))
        except ValueError as error:
            raise UserError(f"the grid holds {name}, but {error}.") from None
    base_host = "" if "host" in axes else f" on {host}"
    return Ablation(f"GLA{base_host} over {' and '.join(axes)}", tuple(settings), axes)


def parse_axes(texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """The axes of a grid from texts such as "anchor_threshold=0.4,0.5". Raises UserError."""
    axes: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        field, equals, values = (part.strip() for part in text.partition("="))
        if not (equals and values):
            raise UserError(f'{text!r} is not a grid; write FIELD=VALUE,VALUE, such as "anchor_threshold=0.4,0.5".')
        check_choice(field, FIELDS, "field of a grid")
        if field in axes:
            raise UserError(f"the field {field} has two grids; write all its values in one.")
        parsed = tuple(parse_value(field, value.strip()) for value in values.split(","))
        if len(set(parsed)) < len(parsed):
            raise UserError(f"the grid {text!r} names a value twice; name each value once.")
        axes[field] = parsed
    return axes


def parse_value(field: str, text: str) -> Any:
    """A value of a field as its type. Raises UserError, which says what the field takes."""
    kind = FIELDS[field]
    if get_origin(kind) is Literal:
        # Sharded attention runs inside a mesh of devices alone, and computes the same.
        return check_choice(text, [choice for choice in get_args(kind) if choice != "ring"], f"value of {field}")
    if kind is bool:
        return check_choice(text, ("true", "false"), f"value of {field}") == "true"
    optional = NoneType in get_args(kind)
    if optional and text == "none":
        return None
    try:
        value = int(text) if kind is int else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        wanted = "a whole number" if kind is int else "a number or none" if optional else "a number"
        raise UserError(f"{text!r} is not a value of {field}; give {wanted}.")
    if field in ABOVE_ZERO and value <= 0:
        raise UserError(f"{field} {text} is not above 0; give a larger number.")
    if field == "threshold" and not 0 <= value <= 1:
        raise UserError(f"threshold {text} is not a probability; give a number from 0 to 1.")
    return value


def written(value: Any) -> str:
    """A value as parse_value reads it."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower()


_encode = jax.jit(encode_windows)


@jax.jit
def _logits(
    tokens: WindowTokens, windows: Windows, params: SegmenterParams, bank: Array, configs: SegmenterConfig
) -> Array:
    """Token logits [settings W S Q] of configs whose numbers are stacked along the first axis."""

    def one(config: SegmenterConfig) -> Array:
        gathered = aggregate_windows(tokens, windows, params, config.method)
        return token_logits(patch_features(gathered, tokens, params, config), bank)

    return jax.vmap(one)(configs)


def encode(segmenter: Segmenter, image: UInt8[np.ndarray, "h w 3"], configs: Sequence[SegmenterConfig]) -> Encoded:
    """Run the towers over the windows of an image, both of them when one of the configs reads both."""
    reads_both = (config for config in configs if "vfm" in BASELINES[config.method.baseline].features)
    windows, grid = segmenter.prepare(image)
    with jax.default_matmul_precision("highest"):
        tokens = _encode(segmenter.params, windows, next(reads_both, configs[0]))
    return Encoded(jax.block_until_ready(tokens), windows, grid, image.shape[:2])


def by_structure(configs: Sequence[SegmenterConfig]) -> list[dict[SegmenterConfig, list[int]]]:
    """Groups of configs that one compiled program serves: the distinct ones with the indices of those they stand for.

    Configs that differ in how logits become labels stand for each other.
    """
    groups: dict[Any, dict[SegmenterConfig, list[int]]] = {}
    for index, config in enumerate(configs):
        shared = replace(config, **dict.fromkeys(LABEL_FIELDS, 0.0))
        groups.setdefault(jax.tree.structure(shared), {}).setdefault(shared, []).append(index)
    return list(groups.values())


def settings_at_once(tokens: WindowTokens, queries: int, method: MethodConfig) -> int:
    """How many settings of a method's structure go through a vmap together, so that its arrays stay bounded."""
    values = tokens.qkv.values[:, 1:]
    features = tokens.features if "vfm" in BASELINES[method.baseline].features else values
    windows, count, width = features.shape
    buffer = windows * count if method.global_buffer else count
    block = buffer if method.attention == "dense" else min(buffer, method.most_of_a_block)
    # Queries and sums of anchors, gathered values and sums; similarities, logits, mask and weights of a block.
    numbers = windows * count * (3 * width + 3 * values.shape[2] + queries) + 4 * block**2
    return max(1, MAX_BYTES // (4 * numbers))


def stack_numbers(configs: Sequence[SegmenterConfig]) -> SegmenterConfig:
    """Configs of one structure as one, whose numbers are float32 [settings]."""
    return jax.tree.map(lambda *numbers: np.array(numbers, np.float32), *configs)


def label_settings(
    segmenter: Segmenter, encoded: Encoded, configs: Sequence[SegmenterConfig], bank: Array, classes: Classes
) -> Iterator[Labelled]:
    """The label map of an image under every config, group by group; what lies below a threshold becomes class 0."""
    tokens, windows, window_grid, size = encoded
    class_of_prompt = np.asarray(classes.class_of_prompt, np.int32)
    with jax.default_matmul_precision("highest"):
        for group in by_structure(configs):
            distinct = list(group)
            most = settings_at_once(tokens, bank.shape[0], distinct[0].method)
            chunk = -(-len(distinct) // -(-len(distinct) // most))
            for start in range(0, len(distinct), chunk):
                part = distinct[start : start + chunk]
                begun = time.perf_counter()
                # The last chunk repeats its last setting: one size compiles once.
                stacked = stack_numbers(part + part[-1:] * (chunk - len(part)))
                logits = jax.block_until_ready(_logits(tokens, windows, segmenter.params, bank, stacked))
                where = layout(window_grid, logits.shape[2], size)
                share = (time.perf_counter() - begun) / sum(len(group[config]) for config in part)
                for row, config in enumerate(part):
                    for index in group[config]:
                        begun = time.perf_counter()
                        own = configs[index]
                        labels = label_map(logits[row], where, class_of_prompt, own.logit_scale, own.threshold)
                        yield Labelled(index, labels, share + time.perf_counter() - begun)


def measure(
    segmenter: Segmenter, ablation: Ablation, dataset: Dataset, row: Protocol, limit: int | None = None
) -> Measured:
    """Figures of every setting over the first images of a data set, as `gla-jax eval` counts them."""
    configs = [setting.config for setting in ablation.settings]
    bank, classes = segmenter.text_embeddings(row.vocabulary), len(row.classes)
    tallies = [Tally(Areas.zeros(classes), BoundaryCounts.zeros(), 0.0)] * len(configs)
    images = range(min(limit or len(dataset.ids), len(dataset.ids)))
    tower_seconds = 0.0
    for _, example in zip(track(images, "images measured"), examples(dataset, images), strict=True):
        begun = time.perf_counter()
        encoded = encode(segmenter, example.image, configs)
        tower_seconds += time.perf_counter() - begun
        resized = encoded.grid.height, encoded.grid.width
        for index, labels, seconds in label_settings(segmenter, encoded, configs, bank, row.vocabulary):
            before = tallies[index]
            tallies[index] = Tally(
                before.areas.merge(image_areas(labels, example.label, classes, dataset.ignore)),
                before.boundary.merge(boundary_counts(labels, example.label, resized, row.windows, dataset.ignore)),
                before.seconds + seconds,
            )
    return Measured(tuple(tallies), tower_seconds, len(images))


def document(
    segmenter: Segmenter, ablation: Ablation, dataset: Dataset, row: Protocol, measured: Measured
) -> dict[str, Any]:
    """ablation.json: figures in percent, None where there is none; seconds are shares of what settings do together."""
    rows = [
        {
            "name": setting.name,
            "figures": {name: None if math.isnan(value) else value for name, value in tally.figures().items()},
            "seconds": tally.seconds,
            "settings": settings_as_dict(setting.config),
        }
        for setting, tally in zip(ablation.settings, measured.tallies, strict=True)
    ]
    return {
        "format": FORMAT,
        "version": VERSION,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "title": ablation.title,
        "benchmark": row.benchmark,
        "preset": row.setting,
        "protocol_sha256": row.sha256,
        "model": {"name": segmenter.name, "sha256": segmenter.model_hash},
        "data": {"origin": dataset.origin, "sha256": dataset.fingerprint},
        "images": {"measured": measured.images, "in_data": len(dataset.ids)},
        "tower_seconds": measured.tower_seconds,
        "axes": {field: list(values) for field, values in ablation.axes.items()},
        "settings": rows,
    }


def as_csv(ablation: Ablation, measured: Measured) -> str:
    """One line a setting: its name, the fields in which settings differ, figures in percent, seconds."""
    varied = ablation.varied()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["setting", *varied, *FIGURES, "seconds"])
    for setting, tally in zip(ablation.settings, measured.tallies, strict=True):
        fields = setting.fields()
        figures = ("" if math.isnan(value) else f"{value:.4f}" for value in tally.figures().values())
        writer.writerow([setting.name, *(written(fields[name]) for name in varied), *figures, f"{tally.seconds:.3f}"])
    return text.getvalue()


def as_table(ablation: Ablation, measured: Measured, note: str) -> "Table":
    """The figures for a terminal, percent; the best of mIoU, accuracy and boundary error rate are bold."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=ablation.title,
        caption=note,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        padding=(0, 1, 0, 0),
    )
    names = tuple(ablation.axes) or ("setting",)
    for name in names:
        table.add_column(
            name.replace("_", "_\n"), justify="right" if ablation.axes else "left", no_wrap=not ablation.axes
        )
    for title in (*FIGURES.values(), "seconds"):
        table.add_column(title, justify="right", no_wrap=True)
    columns = [column(name, measured) for name in FIGURES]
    for index, (setting, tally) in enumerate(zip(ablation.settings, measured.tallies, strict=True)):
        fields = setting.fields()
        given = [written(fields[name]) for name in ablation.axes] or [setting.name]
        # The control rate is there to be compared with: none is best.
        best = [index == one.best and name != "control_1" for name, one in zip(FIGURES, columns, strict=True)]
        shown = [figure(one.values[index]) for one in columns]
        bold = [f"[bold]{text}[/]" if marked else text for text, marked in zip(shown, best, strict=True)]
        table.add_row(*given, *bold, f"{tally.seconds:.1f}")
    return table


def column(name: str, measured: Measured, order: Sequence[int] | None = None) -> Column:
    """One of FIGURES over the settings, or over some of them in an order."""
    rows = [tally.figures() for tally in measured.tallies]
    rows = rows if order is None else [rows[index] for index in order]
    higher = name in ("miou", "aacc")
    marks = tuple(row["control_1"] for row in rows) if name == "ber_1" else ()
    title = f"{FIGURES[name]}, %"
    return Column(title, tuple(row[name] for row in rows), higher, BLUE if higher else RED, marks)


def picture(ablation: Ablation, measured: Measured, note: str) -> "Image.Image":
    """mIoU and boundary error rate: lines over one field, maps over two, otherwise bars."""
    drawn = [column(name, measured) for name in ("miou", "ber_1")]
    several = {
        field: [written(value) for value in values] for field, values in ablation.axes.items() if len(values) > 1
    }
    if len(several) == 1:
        ((field, names),) = several.items()
        return lines(ablation.title, note, field, names, drawn)
    if len(several) == 2:
        return heat_maps(ablation.title, f"{note}; darker is better", tuple(several), tuple(several.values()), drawn)

    order, title = list(range(len(ablation.settings))), ablation.title
    if ablation.axes and len(order) > BARS_AT_MOST:
        values = drawn[0].values
        order = sorted(order, key=lambda index: -values[index] if values[index] == values[index] else math.inf)
        title = f"{title}: the {BARS_AT_MOST} best of {len(order)}"
        order = order[:BARS_AT_MOST]
    shown = [ablation.settings[index] for index in order]
    methods = [setting.config.method for setting in shown]
    with_gla = [method != without_gla(method.baseline) for method in methods]
    key = [Entry("with GLA: mIoU", BLUE), Entry("with GLA: boundary error", RED)]
    if not all(with_gla):
        key.append(Entry("host as published", GREY))
    drawn = [column(name, measured, order) for name in ("miou", "ber_1")]
    names = [setting.name for setting in shown]
    return bars(title, f"{note}; black stroke: control rate, away from edges", names, with_gla, drawn, key)


def has_background(row: Protocol) -> bool:
    """Whether class 0 is a background, which pixels below a threshold become."""
    return BENCHMARKS[row.benchmark].background or row.classes[0] == "background"


def warn_of_what_labels_ignore(ablation: Ablation, row: Protocol) -> None:
    """Warn where a grid over the label fields cannot mean what its user hopes."""
    thresholds = {setting.config.threshold for setting in ablation.settings}
    if "logit_scale" in ablation.varied() and thresholds == {0.0}:
        warnings.warn("logit_scale moves no label while the threshold is 0: add a grid of threshold", stacklevel=2)
    if thresholds != {0.0} and not has_background(row):
        first = row.classes[0]
        warnings.warn(f"{row.benchmark} has no background: pixels below the threshold become {first!r}", stacklevel=2)


def run_ablation(
    segmenter: Segmenter, ablation: Ablation, dataset: Dataset, row: Protocol, folder: Path, limit: int | None = None
) -> "Table":
    """Measure an ablation and write ablation.json, ablation.csv and ablation.png into a folder that exists.

    Returns the table. Raises UserError when a setting does not fit the model.
    """
    for setting in ablation.settings:
        check_settings(setting.config, segmenter.clip, segmenter.vfm)
    warn_of_what_labels_ignore(ablation, row)
    measured = measure(segmenter, ablation, dataset, row, limit)
    note = f"{row.benchmark}, {counted(measured.images)}, model {segmenter.name}"
    content = document(segmenter, ablation, dataset, row, measured)
    write_text(folder / "ablation.json", json.dumps(content, indent=1) + "\n")
    write_text(folder / "ablation.csv", as_csv(ablation, measured))
    write_png(folder / "ablation.png", picture(ablation, measured, note))
    return as_table(ablation, measured, note)
