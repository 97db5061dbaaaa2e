"""Frozen protocols: for every benchmark and setting of the paper the prompts, sizes, threshold and logit scale.

The hash of a protocol stands in every result file, so that figures of different protocols are never put side by side.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from gla_jax.config import METHODS, PRESETS, SegmenterConfig, WindowConfig
from gla_jax.eval.benchmarks import BENCHMARKS, FOLDER, PAPER_BENCHMARKS, class_names
from gla_jax.settings import DTYPES, one_of

if TYPE_CHECKING:
    from rich.table import Table

    from gla_jax.text.prompts import Classes

# Which query lists a setting uses: the paper's CLIP-DINOiser setting renames nothing, as ClearCLIP.
QUERIES = {"sclip": "sclip", "proxyclip": "proxyclip", "clearclip": "clearclip", "clip-dinoiser": "clearclip"}
# CLIP-DINOiser's thresholds are not published for this method: GLA's own stand in.
THRESHOLDS = {
    "sclip": {"voc21": 0.1, "context60": 0.1, "coco_object": 0.1},
    "proxyclip": {"voc21": 0.2, "context60": 0.15, "coco_object": 0.25},
    "clearclip": {"voc21": 0.5, "context60": 0.15, "coco_object": 0.4},
    "clip-dinoiser": {"voc21": 0.1, "context60": 0.1, "coco_object": 0.1},
}
# The released configurations treat Cityscapes by itself.
CITYSCAPES = {"sclip": {"short_side": 560}, "proxyclip": {"crop": 224}, "clearclip": {"crop": 224}}

# mIoU as the paper reports it (ViT-B/16, Table 1), in the order of PAPER_BENCHMARKS. Not measured by this project.
PAPER_MIOU: dict[tuple[str, str], tuple[float, ...]] = {
    ("sclip", "gla"): (66.3, 36.1, 37.7, 84.2, 39.9, 26.9, 40.8, 20.0),
    ("proxyclip", "proxyclip"): (61.3, 35.3, 37.5, 80.3, 39.1, 26.5, 38.1, 20.2),
    ("proxyclip", "gla"): (63.2, 35.8, 37.7, 81.5, 39.7, 26.8, 38.5, 20.3),
    ("clearclip", "clearclip"): (51.8, 32.6, 33.0, 80.9, 35.9, 23.9, 30.0, 16.7),
    ("clearclip", "gla-clearclip"): (55.6, 33.2, 34.6, 79.7, 36.5, 24.6, 32.7, 17.4),
    ("sclip", "sclip"): (59.1, 30.4, 30.5, 80.4, 34.2, 22.4, 32.2, 16.1),
    ("clip-dinoiser", "gla"): (63.4, 35.8, 37.3, 80.4, 39.4, 26.3, 33.5, 19.1),
}
PAPER_SOURCE = "Lee et al., arXiv 2603.23030, Table 1, ViT-B/16"


@dataclass(frozen=True)
class Protocol:
    """One row: queries holds the prompts of every class; a threshold above 0 sends pixels below it to class 0."""

    benchmark: str
    setting: str
    classes: tuple[str, ...]
    queries: tuple[tuple[str, ...], ...]
    windows: WindowConfig
    threshold: float
    logit_scale: float

    @property
    def sha256(self) -> str:
        """The hash of the whole row."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def prompts(self) -> "Classes":
        """Classes and queries as the segmenter takes them."""
        from gla_jax.text.prompts import Classes

        flat = [(query, index) for index, synonyms in enumerate(self.queries) for query in synonyms]
        return Classes(
            names=self.classes,
            queries=tuple(query for query, _ in flat),
            class_of_query=tuple(index for _, index in flat),
        )

    def config(self, method: str, dtype: str = "float32") -> SegmenterConfig:
        """The settings of a method under this protocol. Raises UserError for an unknown method or dtype."""
        return SegmenterConfig(
            method=METHODS[one_of(method, METHODS, "method")],
            windows=self.windows,
            logit_scale=self.logit_scale,
            threshold=self.threshold,
            dtype=one_of(dtype, DTYPES, "dtype"),
        )


def protocol(
    benchmark: str, setting: str = "sclip", classes: tuple[tuple[str, tuple[str, ...]], ...] | None = None
) -> Protocol:
    """The row of a benchmark under a setting of the paper.

    classes: (name, queries) of every class for the benchmark `folder`, which has none of its own. Raises UserError for
    an unknown benchmark or setting.
    """
    one_of(benchmark, BENCHMARKS, "benchmark")
    one_of(setting, PRESETS, "preset")
    if benchmark == FOLDER:
        names, queries = zip(*classes, strict=True)
    else:
        lists = class_names(benchmark)
        names, queries = lists.classes, lists.queries.get(QUERIES[setting], lists.queries["sclip"])
    windows = PRESETS[setting].windows
    if benchmark == "cityscapes":
        windows = replace(windows, **CITYSCAPES.get(setting, {}))
    threshold = THRESHOLDS[setting].get(benchmark, 0.0)
    return Protocol(benchmark, setting, names, queries, windows, threshold, PRESETS[setting].logit_scale)


def paper_miou(benchmark: str, setting: str, method: str) -> float | None:
    """The paper's mIoU for one cell of its table, None where it has none."""
    row = PAPER_MIOU.get((setting, method))
    return row[PAPER_BENCHMARKS.index(benchmark)] if row and benchmark in PAPER_BENCHMARKS else None


def protocols_table() -> "Table":
    """Every protocol beside the paper's figures, as `gla-jax eval --list` prints it."""
    from rich import box
    from rich.table import Table

    table = Table(
        title="Benchmarks and protocols",
        caption="host, + GLA: mIoU as the PAPER reports it, not measured here\n"
        f"({PAPER_SOURCE}).\n"
        "sizes: short side/window/stride in pixels; t: probability below which a pixel\n"
        "is background; names: classes/queries",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in ("benchmark", "setting", "sizes", "t", "names", "hash"):
        table.add_column(column, no_wrap=True)
    table.add_column("host", justify="right", no_wrap=True)
    table.add_column("+ GLA", justify="right", no_wrap=True)
    for key, benchmark in BENCHMARKS.items():
        table.add_section()
        if key == FOLDER:
            table.add_row(f"[bold]{key}", "any", "", "0", "yours")
            continue
        for line, setting in enumerate(PRESETS if key in PAPER_BENCHMARKS else ("sclip",)):
            row = protocol(key, setting)
            sizes = row.windows
            table.add_row(
                ("[bold]" + key, f"[dim]{benchmark.images} images", "", "")[line],
                setting if key in PAPER_BENCHMARKS else "any",
                f"{sizes.short_side}/{sizes.crop}/{sizes.stride}",
                f"{row.threshold:g}",
                f"{len(row.classes)}/{sum(map(len, row.queries))}",
                row.sha256[:8],
                _figure(paper_miou(key, setting, setting)),
                _figure(paper_miou(key, setting, "gla-clearclip" if setting == "clearclip" else "gla")),
            )
    return table


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
