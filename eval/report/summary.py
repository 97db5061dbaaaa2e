"""Several benchmarks of one call in one table, with their average, beside the paper's figures where they compare."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gla_jax.eval.benchmarks import PAPER_BENCHMARKS
from gla_jax.eval.paper import PAPER_SOURCE, paper_average
from gla_jax.eval.records import writing_to
from gla_jax.eval.report.page import NAMES, figure
from gla_jax.eval.results import FIGURES
from gla_jax.support.files import write_text

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = "gla-jax summary 1"
SHOWN = ("miou", "macc", "aacc", "ber_1", "control_1")
NOTE = f"Every figure in percent. The paper's are not measured here: {PAPER_SOURCE}."


def summary(contents: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of some results with their averages; an average is there when every benchmark has the figure.

    The paper's average stands beside one over exactly its benchmarks, all of them comparable.
    """
    first = contents[0]
    rows = [
        {key: content[key] for key in ("benchmark", "model", "figures", "images", "paper", "not_comparable_with_paper")}
        | {"protocol_sha256": content["protocol"]["sha256"]}
        for content in contents
    ]
    compares = {row["benchmark"] for row in rows if row["paper"]} == set(PAPER_BENCHMARKS) and all(
        row["paper"] for row in rows
    )
    return {
        "format": FORMAT,
        "method": first["method"],
        "setting": first["protocol"]["setting"],
        "benchmarks": rows,
        "average": {key: _mean([row["figures"][key] for row in rows]) for key in FIGURES},
        "paper_average": paper_average(first["protocol"]["setting"], first["method"]) if compares else None,
    }


def summary_rows(content: dict[str, Any]) -> list[tuple[str, ...]]:
    """Head and lines of the table: benchmark, figures, the paper's mIoU, images."""
    head = ("benchmark", *(NAMES[key] for key in SHOWN), "paper's mIoU", "images")
    lines = [
        (
            row["benchmark"],
            *(figure(row["figures"][key]) for key in SHOWN),
            figure(row["paper"] and row["paper"]["miou"]),
            str(row["images"]["measured"]),
        )
        for row in content["benchmarks"]
    ]
    average = (figure(content["average"][key]) for key in SHOWN)
    return [head, *lines, ("average", *average, figure(content["paper_average"]), "")]


def summary_table(content: dict[str, Any]) -> "Table":
    """The summary for a terminal."""
    from rich import box
    from rich.table import Table

    head, *lines, average = summary_rows(content)
    title = f"{content['method']}, {content['setting']}"
    table = Table(title=title, caption=NOTE, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    for name in head:
        first = name == head[0]
        table.add_column(name, justify="left" if first else "right", no_wrap=first)
    for line in lines:
        table.add_row(*line)
    table.add_section()
    table.add_row(*average)
    return table


def summary_markdown(content: dict[str, Any]) -> str:
    """The summary as a Markdown table."""
    head, *lines = summary_rows(content)
    rule = ("---", *("---:" for _ in head[1:]))
    table = "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))
    left_out = "".join(
        f"{row['benchmark']} is not comparable with the paper's figure: {', '.join(reasons)}.\n\n"
        for row in content["benchmarks"]
        if (reasons := row["not_comparable_with_paper"])
    )
    return f"# {content['method']}, {content['setting']}\n\n{table}\n\n{left_out}{NOTE}\n"


def write_summary(out: Path, content: dict[str, Any]) -> None:
    """summary.json and summary.md, each whole or not at all. Raises UserError when they cannot be written."""
    with writing_to(out):
        write_text(out / "summary.json", json.dumps(content, indent=1) + "\n")
        write_text(out / "summary.md", summary_markdown(content))


def _mean(values: list[float | None]) -> float | None:
    return None if any(value is None for value in values) else sum(values) / len(values)
