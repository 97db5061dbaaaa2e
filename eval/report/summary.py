"""Several benchmarks of one call in one table, with their average, beside the paper's figures where they compare."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gla_jax.eval.benchmarks import PAPER_BENCHMARKS
from gla_jax.eval.paper import PAPER_SOURCE, paper_average
from gla_jax.eval.records import writing_to
from gla_jax.eval.report.page import NAMES, figure, render, text_table
from gla_jax.eval.results import FIGURES
from gla_jax.support.files import write_json, write_text

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = "gla-jax summary 1"
SHOWN = ("miou", "macc", "aacc", "ber_1", "control_1")
NOTE = f"Every figure in percent. The paper's are not measured here: {PAPER_SOURCE}."


def summary(contents: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of several results with their averages; an average is there when every benchmark has the figure.

    The paper's average stands beside one over exactly its benchmarks, all of them comparable.
    """
    first = contents[0]
    rows = [
        {key: content[key] for key in ("benchmark", "model", "figures", "images", "paper", "not_comparable_with_paper")}
        | {"protocol_sha256": content["protocol"]["sha256"]}
        for content in contents
    ]
    compares = all(row["paper"] for row in rows) and {row["benchmark"] for row in rows} == set(PAPER_BENCHMARKS)
    columns = {key: [row["figures"][key] for row in rows] for key in FIGURES}
    return {
        "format": FORMAT,
        "method": first["method"],
        "setting": first["protocol"]["setting"],
        "benchmarks": rows,
        "average": {key: None if None in values else sum(values) / len(values) for key, values in columns.items()},
        "paper_average": paper_average(first["protocol"]["setting"], first["method"]) if compares else None,
    }


def summary_rows(content: dict[str, Any]) -> list[tuple[str, ...]]:
    """Head and lines of the table: benchmark, figures, the paper's mIoU, images; the last one has the averages."""
    lines = [
        (row["benchmark"], row["figures"], row["paper"] and row["paper"]["miou"], str(row["images"]["measured"]))
        for row in content["benchmarks"]
    ]
    lines.append(("average", content["average"], content["paper_average"], ""))
    head = ("benchmark", *(NAMES[key] for key in SHOWN), "paper's mIoU", "images")
    return [head, *((name, *(figure(row[key]) for key in SHOWN), figure(own), of) for name, row, own, of in lines)]


def summary_table(content: dict[str, Any]) -> "Table":
    """The summary for a terminal."""
    head, *lines, average = summary_rows(content)
    columns = [(head[0], {"no_wrap": True}), *((name, {"justify": "right"}) for name in head[1:])]
    table = text_table(f"{content['method']}, {content['setting']}", columns, lines)
    table.caption = NOTE
    table.add_section()
    table.add_row(*average)
    return table


def summary_markdown(content: dict[str, Any]) -> str:
    """The summary as a Markdown table."""
    return render(__package__, "summary.md", rows=summary_rows(content), note=NOTE, **content)


def write_summary(out: Path, content: dict[str, Any]) -> None:
    """summary.json and summary.md, each whole or not at all. Raises UserError when they cannot be written."""
    with writing_to(out):
        write_json(out / "summary.json", content)
        write_text(out / "summary.md", summary_markdown(content))
