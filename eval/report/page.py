"""report.html and report.md: one self-contained page for a browser without a network, and the same figures as text."""

import base64
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gla_jax.eval.records import writing_to
from gla_jax.eval.report.pictures import Picture
from gla_jax.eval.results import BOUNDARY
from gla_jax.support.files import write_text

if TYPE_CHECKING:
    from jinja2 import Environment
    from rich.table import Table

NAMES = {
    "miou": "mIoU",
    "macc": "mAcc",
    "aacc": "aAcc",
    "ber_1": "BER, width 1",
    "ber_8": "BER, width 8",
    "control_1": "control, width 1",
    "control_8": "control, width 8",
}
METRICS = (
    "mIoU, mAcc and aAcc as mmsegmentation's IoUMetric; BER (boundary error rate): how often the prediction jumps "
    "across a window edge where the truth does not; the control counts the same half a stride away from the edges."
)


def figure(value: float | None) -> str:
    """A percentage with two decimals, as mmsegmentation rounds; a dash where there is none."""
    return "-" if value is None else f"{value:.2f}"


def difference(value: float | None) -> str:
    """A difference of percentages with its sign, which one that rounds to zero has not; a dash where there is none."""
    text = "-" if value is None else f"{value:+.2f}"
    return text[1:] if text in ("+0.00", "-0.00") else text


def counted(number: int, of: str = "image") -> str:
    """A number of things in words: 1 image, 2 images."""
    return f"{number} {of}{'' if number == 1 else 's'}"


def one_line(value: Any) -> str:
    """A value as text without line breaks."""
    return " ".join(str(value).splitlines())


def markdown(value: Any) -> str:
    """A value as Markdown that shows its text: no part of it is markup, and it cannot end a cell of a table."""
    if hasattr(value, "__html__"):  # by the filter `safe`
        return str(value)
    return re.sub(r"[\\`*\[\]<>|&~$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", one_line(value))


def render(package: str, template: str, **values: Any) -> str:
    """A page from a template in the folder `templates` of a package; every value is escaped, for HTML or Markdown."""
    return _environment(package, Path(template).suffix).get_template(template).render(values)


@cache
def _environment(package: str, suffix: str) -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package),
        autoescape=suffix == ".html",
        finalize={".md": markdown, ".txt": one_line}.get(suffix),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "figure": figure,
        "difference": difference,
        "base64": lambda data: base64.b64encode(data).decode(),
    }
    environment.globals |= {"NAMES": NAMES, "METRICS": METRICS, "BOUNDARY": BOUNDARY}
    return environment


def text_table(title: str, columns: Sequence[tuple[str, dict[str, Any]]], rows: Sequence[Sequence[str]]) -> "Table":
    """A table for a terminal in which no text is markup.

    Args:
        title: above the table.
        columns: names with rich's options of a column.
        rows: of text.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    for name, options in columns:
        table.add_column(Text(name), **options)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return table


def write_report(out: Path, content: dict[str, Any], pictures: Sequence[Picture]) -> None:
    """report.html and report.md of a run's results, each whole or not at all.

    Raises UserError when they cannot be written.
    """
    with writing_to(out):
        write_text(out / "report.html", report_html(content, pictures))
        write_text(out / "report.md", report_markdown(content))


def report_html(content: dict[str, Any], pictures: Sequence[Picture]) -> str:
    """The page: figures, settings, a bar for every class, pictures, speed."""
    return render(__package__, "report.html", pictures=pictures, **_values(content))


def report_markdown(content: dict[str, Any]) -> str:
    """Figures, classes and settings as Markdown tables."""
    return render(__package__, "report.md", **_values(content))


def _values(content: dict[str, Any]) -> dict[str, Any]:
    """The values of both templates: results, with what needs words."""
    images = content["images"]
    part = f"{images['measured']} of " if images["measured"] != images["in_data"] else ""
    notes, *tables = (render(__package__, f"report_{name}.txt", **content) for name in ("notes", "settings", "speed"))
    settings, speed = ([line.split(": ", 1) for line in table.splitlines()] for table in tables)
    return {
        "content": content,
        "title": f"{content['benchmark']}, {content['method']}",
        "subtitle": f"{content['model']['name']}; {part}{counted(images['in_data'])}; figures in percent",
        "notes": notes.splitlines(),
        "settings": settings,
        "speed": speed,
    }
