"""What `gla-jax eval --list` prints: protocols beside the paper's figures; of one benchmark classes and prompts too."""

from typing import TYPE_CHECKING

from gla_jax.config import METHODS, PRESETS
from gla_jax.eval.benchmarks import BENCHMARKS, FOLDER, PAPER_BENCHMARKS, class_names
from gla_jax.eval.paper import PAPER_MIOU, PAPER_SOURCE, paper_methods, paper_miou
from gla_jax.eval.protocols import QUERIES, Protocol, duplicates, protocol
from gla_jax.settings.options import check_choice

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

COLUMNS = ("setting", "method", "sizes", "scale", "t", "names", "hash")
NOTE = f"""\
paper   mIoU as the PAPER reports it, not measured here
        ({PAPER_SOURCE});
        a run shows it only with the paper's model and all images
method  whose figure it is; other methods run under the numbers of gla
sizes   short side/window/stride in pixels;  scale  of the logits
t       probability below which a pixel is background; +a: a class with at most
        this share of an image's foreground is taken away
names   classes/prompts;  hash  of the whole row, names and prompts included
sclip and gla-sclip have the numbers of SCLIP's own release under the setting
sclip; for gla-sclip, whose code is not published, that is our reading. The
paper names no thresholds for clip-dinoiser: those of gla stand in."""
DUPLICATE = """\
{} is both a background prompt and a class: equal logits go to the background, so
the class is never predicted. The published lists are so; --drop-duplicates drops
the background prompt.
"""


def protocols_list(keys: list[str]) -> "Group":
    """The protocols of some benchmarks with their classes and prompts; of all, without these, when none is named.

    Raises UserError for an unknown benchmark.
    """
    from rich.console import Group

    named = [check_choice(key, BENCHMARKS, "benchmark") for key in keys]
    parts: list[Table | str] = []
    for key in named or BENCHMARKS:
        parts.append(_protocols(key))
        if key != FOLDER and (twice := duplicates(protocol(key))):
            parts.append(DUPLICATE.format(", ".join(twice)))
        if named and key != FOLDER:
            parts.append(_prompts(key))
    return Group(*parts, *([] if named else [_paper()]), NOTE)


def _table(title: str) -> "Table":
    from rich import box
    from rich.table import Table

    return Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, padding=0)


def _protocols(key: str) -> "Table":
    benchmark = BENCHMARKS[key]
    images = f", {benchmark.images} images" if benchmark.images else ""
    table = _table(f"[bold]{key}[/]: {benchmark.title}{images}")
    # One width in every table, so that columns stay below each other.
    for name, width in zip(COLUMNS, (13, 13, 11, 5, 9, 7, 8), strict=True):
        table.add_column(name, no_wrap=True, min_width=width)
    table.add_column("paper", justify="right", no_wrap=True, min_width=5)
    for setting in PRESETS:
        for method in [name for name in paper_methods(key, setting) if name in METHODS] or ["gla"]:
            classes = (("yours", ("yours",)),) if key == FOLDER else None
            row = protocol(key, setting, classes, method)
            table.add_row(setting, method, *_cells(row), _figure(paper_miou(key, setting, method)))
    return table


def _cells(row: Protocol) -> tuple[str, ...]:
    sizes = row.windows
    threshold = f"{row.threshold:g}" + (f"+a{row.area_threshold:g}" if row.area_threshold else "")
    own = row.benchmark == FOLDER
    return (
        f"{sizes.short_side}/{sizes.crop}/{sizes.stride}",
        f"{row.logit_scale:g}",
        threshold,
        "yours" if own else f"{len(row.classes)}/{sum(map(len, row.prompts))}",
        "" if own else row.sha256[:8],
    )


def _prompts(key: str) -> "Table":
    """Every class with its prompts, and which settings have them where they differ."""
    lists = {name: protocol(key, setting) for setting, name in QUERIES.items()}
    table = _table(f"Classes and prompts of {key}")
    for name in ("index", "class", "prompts"):
        table.add_column(name, overflow="fold")
    for index, name in enumerate(class_names(key).classes):
        settings: dict[tuple[str, ...], list[str]] = {}
        for setting, own in QUERIES.items():
            settings.setdefault(lists[own].prompts[index], []).append(setting)
        shown = "\n".join(
            ("" if len(settings) == 1 else f"[dim]{', '.join(owners)}:[/] ") + "; ".join(prompts)
            for prompts, owners in settings.items()
        )
        table.add_row(str(index), name, shown)
    return table


def _paper() -> "Table":
    """The paper's table, all rows with their averages."""
    table = _table(f"[bold]mIoU in the PAPER[/], not measured here ({PAPER_SOURCE})")
    for name in ("setting", "method"):
        table.add_column(name, min_width=13)
    short = ("V21", "C60", "Obj", "V20", "C59", "Stf", "City", "ADE", "mean")
    for name in short:
        table.add_column(name, justify="right", no_wrap=True)
    for (setting, method), figures in PAPER_MIOU.items():
        table.add_row(setting, method, *map(_figure, figures))
    table.caption = ", ".join(f"{name} {key}" for name, key in zip(short, PAPER_BENCHMARKS, strict=False))
    table.caption_justify = "left"
    return table


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
