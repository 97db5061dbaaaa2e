"""The figures of `gla-jax bench` as a table in Markdown, as JSON and, of a sweep, as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gla_jax.bench.measure import Report, Row
from gla_jax.bench.memory import GIB
from gla_jax.eval.report.page import render
from gla_jax.pictures.charts import LogPanel, Series, log_lines
from gla_jax.pictures.drawing import FIRST_COLOURS
from gla_jax.support.files import write_json, write_png, write_text

if TYPE_CHECKING:
    from PIL import Image

COLUMNS = (
    "part", "", "windows", "seconds", "a second", "TFLOP", "GFLOP/s", "of ceiling", "compile s", "program", "host",
    "device",
)  # fmt: skip
DASH, WORDS = "-", 2  # for no figure; columns of words


def markdown(report: Report) -> str:
    """The figures as a page: what they were measured on, then a table."""
    lines = table([COLUMNS, *(cells(row) for row in (*report.parts, *report.sweep))])
    values = {"head": report.head, "on": report.head["machine"], "GIB": GIB, "table": "\n".join(lines)}
    return render("gla_jax.bench", "bench.md", **values)


def cells(row: Row) -> tuple[str, ...]:
    """A measurement as it stands in the table."""
    grown = None if row.host_peak is None else max(row.host_peak - row.host_before, 0)
    seconds, speed = ("stopped: memory", DASH), (DASH, DASH)
    if not row.stopped:
        seconds = (f"{row.median:.4g}", f"{1 / row.median:.4g}")
        speed = (f"{row.total_flops / row.median / 1e9:.4g}", f"{row.share_of_ceiling:.0%}")
    compiling = DASH if row.compile_seconds is None else f"{row.compile_seconds:.1f}"
    sizes = map(size_text, (row.program and row.program.total, grown, row.device_peak))
    return row.part, row.name, str(row.windows), *seconds, f"{row.total_flops / 1e12:.4g}", *speed, compiling, *sizes


def size_text(size: int | None) -> str:
    """Bytes as people read them."""
    if size is None:
        return DASH
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose source is aligned too; words to the left, figures to the right."""
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * width if place < WORDS else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    signs = ["<" if place < WORDS else ">" for place in range(len(widths))]
    cells = ([f"{cell:{sign}{width}}" for cell, sign, width in zip(row, signs, widths, strict=True)] for row in rows)
    head, *body = [f"| {' | '.join(row)} |" for row in cells]
    return [head, f"| {' | '.join(rule)} |", *body]


def sweep_picture(report: Report) -> "Image.Image":
    """Seconds and memory of every form of attention over the number of windows, on logarithmic axes."""
    rows, on = report.sweep, report.head["machine"]
    forms = list(dict.fromkeys(row.name for row in rows))
    limit = report.head["memory_limit"]
    by_time, by_memory = [], []
    for form, colour in zip(forms, FIRST_COLOURS, strict=False):
        measured = [row for row in rows if row.name == form]
        timed = tuple((row.windows, row.median) for row in measured if not row.stopped)
        sizes = [(row.windows, row.program.total / GIB) for row in measured if row.program is not None]
        stopped = sizes.pop() if measured[-1].stopped else None
        by_time.append(Series(form, colour, timed))
        by_memory.append(Series(form, colour, tuple(sizes), stopped))
    tokens = rows[0].tokens // rows[0].windows
    return log_lines(
        "The attention alone, by the number of windows",
        f"{on['device']}, {on['processor']}, {on['cores']} cores; {tokens} tokens a window; {report.head['date'][:10]}",
        "windows",
        sorted({row.windows for row in rows}),
        (
            LogPanel("seconds", "s", tuple(by_time)),
            LogPanel("memory of the program, as XLA plans it", "GiB", tuple(by_memory), (limit / GIB, "memory limit")),
        ),
    )


def write_report(report: Report, folder: Path) -> list[Path]:
    """bench.json, bench.md and, after a sweep, bench.png; returns their paths."""
    paths = [folder / "bench.json", folder / "bench.md"]
    write_json(paths[0], report.as_dict())
    write_text(paths[1], markdown(report))
    if report.sweep:
        paths.append(folder / "bench.png")
        write_png(paths[-1], sweep_picture(report))
    return paths
