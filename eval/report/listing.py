"""The text of `gla-jax eval --list`: protocols beside the paper's figures; of one benchmark classes and prompts too."""

from typing import TYPE_CHECKING

from gla_jax.config import METHODS, PRESETS
from gla_jax.eval.benchmarks import BENCHMARKS, FOLDER, PAPER_BENCHMARKS, class_names
from gla_jax.eval.paper import PAPER_MIOU, PAPER_SOURCE, paper_methods, paper_miou
from gla_jax.eval.protocols import Protocol, duplicates, protocol
from gla_jax.eval.report.page import render, text_table
from gla_jax.settings.options import check_choice

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

RIGHT = {"justify": "right", "no_wrap": True}
# One width in every table, so that columns stay below each other.
WIDTHS = {"preset": 20, "method": 13, "sizes": 11, "s": 2, "t": 8, "names": 7, "hash": 7}
DUPLICATE = """
{} is both a background prompt and a class: equal logits go to the
background, so the class is never predicted. The published lists are so;
--drop-duplicates drops the background prompt."""


def protocols_list(keys: list[str]) -> "Group":
    """The protocols of the named benchmarks with their classes and prompts; of all, without these, when none is named.

    Raises UserError for an unknown benchmark.
    """
    from rich.console import Group
    from rich.text import Text

    named = [check_choice(key, BENCHMARKS, "benchmark") for key in keys]
    parts: list[Table | Text] = []
    for key in named or BENCHMARKS:
        parts.append(_protocols(key))
        if key != FOLDER and (twice := duplicates(protocol(key))):
            parts.append(Text(DUPLICATE.format(", ".join(twice))))
        if named and key != FOLDER:
            parts.append(_prompts(key))
    return Group(
        *parts, *([] if named else [_paper()]), Text(render(__package__, "list_notes.txt", PAPER_SOURCE=PAPER_SOURCE))
    )


def _protocols(key: str) -> "Table":
    benchmark, rows = BENCHMARKS[key], []
    images = f", {benchmark.images} images" if benchmark.images else ""
    for preset in PRESETS:
        for method in [name for name in paper_methods(key, preset) if name in METHODS] or ["gla"]:
            row = protocol(key, preset, (("yours", ("yours",)),) if key == FOLDER else None, method)
            rows.append((preset, method, *_cells(row), _figure(paper_miou(key, preset, method))))
    columns = [(name, {"no_wrap": True, "min_width": width}) for name, width in WIDTHS.items()]
    title = f"\n{key}: {benchmark.title}{images}"
    return _dense(text_table(title, [*columns, ("paper", RIGHT | {"min_width": 5})], rows))


def _cells(row: Protocol) -> tuple[str, ...]:
    sizes, counts = row.windows, f"{len(row.classes)}/{sum(map(len, row.prompts))}"
    area = f"+a{row.area_threshold:g}" if row.area_threshold else ""
    return (
        f"{sizes.short_side}/{sizes.crop}/{sizes.stride}",
        f"{row.settings.logit_scale:g}",
        f"{row.settings.threshold:g}{area}",
        *(("yours", "") if row.benchmark == FOLDER else (counts, row.sha256[: WIDTHS["hash"]])),
    )


def _prompts(key: str) -> "Table":
    """Every class with its prompts, and the presets that have them where they differ."""
    lists, rows = {preset: protocol(key, preset).prompts for preset in PRESETS}, []
    for index, name in enumerate(class_names(key).classes):
        presets: dict[tuple[str, ...], list[str]] = {}
        for preset, prompts in lists.items():
            presets.setdefault(prompts[index], []).append(preset)
        shown = [
            ("" if len(presets) == 1 else f"{', '.join(of)}: ") + "; ".join(prompts) for prompts, of in presets.items()
        ]
        rows.append((str(index), name, "\n".join(shown)))
    columns = [(name, {"overflow": "fold"}) for name in ("index", "class", "prompts")]
    return _dense(text_table(f"\nClasses and prompts of {key}", columns, rows))


def _paper() -> "Table":
    """The paper's table, all rows with their averages."""
    short = ("V21", "C60", "Obj", "V20", "C59", "Stf", "City", "ADE", "mean")
    rows = [(preset, method, *map(_figure, figures)) for (preset, method), figures in PAPER_MIOU.items()]
    columns = [("preset", {"no_wrap": True}), ("method", {}), *((name, RIGHT) for name in short)]
    table = _dense(text_table(f"\nmIoU in the PAPER, not measured here ({PAPER_SOURCE})", columns, rows))
    table.caption = ", ".join(f"{name} {key}" for name, key in zip(short, PAPER_BENCHMARKS, strict=False))
    return table


def _dense(table: "Table") -> "Table":
    """The table with as little space as 80 characters a line ask for."""
    table.pad_edge, table.show_edge, table.padding = False, False, (0, 0)
    return table


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
