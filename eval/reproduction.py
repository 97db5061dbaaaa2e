"""The paper's table beside one's own figures: which benchmarks are there, what is missing, and a page to send."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gla_jax.eval.benchmarks import BENCHMARKS, PAPER_BENCHMARKS
from gla_jax.eval.datasets.dataset import Dataset
from gla_jax.eval.job import Job, open_data
from gla_jax.eval.paper import PAPER_MIOU, PAPER_SOURCE, paper_average, paper_miou
from gla_jax.eval.protocols import Protocol
from gla_jax.eval.report.page import difference, figure, render, text_table
from gla_jax.outputs.files import writing_to
from gla_jax.settings.options import method_name, preset_name
from gla_jax.support.errors import DataError, UserError
from gla_jax.support.files import write_json, write_text
from gla_jax.support.places import is_folder, place
from gla_jax.support.version import VERSION

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = "gla-jax reproduction 1"
OF_A_BENCHMARK = ("windows", "threshold", "logit_scale")  # settings in which protocols differ
HEAD = ("benchmark", "paper", "ours", "difference", "images")


def check_row(preset: str, method: str) -> tuple[str, str]:
    """Names of a preset and a method for which the paper has figures. Raises UserError for others."""
    preset, method = preset_name(preset), method_name(method)
    if (preset, method) not in PAPER_MIOU:
        rows = ", ".join(f"{name} with {of}" for of, name in PAPER_MIOU if " " not in name)
        raise UserError(f"the paper's table has no figures of {method} with {preset}; it has {rows}.")
    return preset, method


def open_present(
    jobs: Sequence[Job], out: Path
) -> tuple[list[Job], list[tuple[Dataset, Protocol, Path]], dict[str, str]]:
    """The jobs whose data is there, their data, and for the other benchmarks a sentence on what is missing.

    Each has a folder of `out` for its results. Raises UserError when no data is there.
    """
    present, opened, missing = [], [], {}
    if not is_folder(place(jobs[0].data)):
        raise UserError(f"{jobs[0].data} is not a folder; name the one that holds the benchmarks with --data.")
    for job in jobs:
        try:
            opened += open_data([job], out / job.benchmark, sharded=False)
            present.append(job)
        except DataError as error:
            missing[job.benchmark] = f"{error} It comes as {BENCHMARKS[job.benchmark].origin}."
    if not present:
        raise UserError(
            f"none of the benchmarks {', '.join(missing)} is in {jobs[0].data}; name the folder that holds some with "
            "--data.\n" + "\n".join(missing.values())
        )
    return present, opened, missing


def reproduction(
    contents: Sequence[dict[str, Any]], missing: dict[str, str], weights: Sequence[dict[str, str]]
) -> dict[str, Any]:
    """The paper's row beside the results of those of its benchmarks that were measured, in percent.

    An average is there when all eight were.

    Args:
        contents: results of benchmarks under one preset and method.
        missing: a sentence for each of the others.
        weights: models.pretrained.origins of the model.
    """
    first = contents[0]
    preset, method = first["protocol"]["setting"], first["method"]
    measured = {content["benchmark"]: content for content in contents}
    rows = [_row(key, paper_miou(key, preset, method), measured.get(key)) for key in PAPER_BENCHMARKS]
    ours = [row["ours"] for row in rows]
    average = None if None in ours else sum(ours) / len(ours)
    return {
        "format": FORMAT,
        "version": VERSION,
        "finished": max(content["finished"] for content in contents),
        "paper": PAPER_SOURCE,
        "preset": preset,
        "method": method,
        "rows": [*rows, _compared("average", paper_average(preset, method), average)],
        "missing": missing,
        "model": first["model"],
        "weights": list(weights),
        "settings": {name: value for name, value in first["settings"].items() if name not in OF_A_BENCHMARK},
        "machine": first["machine"],
    }


def _row(key: str, paper: float | None, content: dict[str, Any] | None) -> dict[str, Any]:
    row = _compared(key, paper, content and content["figures"]["miou"])
    if content:
        row |= {
            "images": content["images"],
            "not_comparable": content["not_comparable_with_paper"] or [],
            "protocol_sha256": content["protocol"]["sha256"],
            **{name: content["protocol"][name] for name in OF_A_BENCHMARK},
            "data_sha256": content["data"]["sha256"],
        }
    return row


def _compared(name: str, paper: float | None, ours: float | None) -> dict[str, Any]:
    difference = None if None in (paper, ours) else round(ours - paper, 4)
    return {"benchmark": name, "paper": paper, "ours": ours, "difference": difference}


def reproduction_rows(content: dict[str, Any]) -> list[tuple[str, ...]]:
    """Lines of the table under HEAD; a star marks figures that are not of the paper's model, protocol or images."""
    rows = []
    for row in content["rows"]:
        images = row.get("images")
        star = "*" if row.get("not_comparable") else ""
        counted = f"{images['measured']} of {BENCHMARKS[row['benchmark']].images}" if images else ""
        rows.append(
            (row["benchmark"], figure(row["paper"]), figure(row["ours"]), difference(row["difference"]) + star, counted)
        )
    return rows


def reproduction_table(content: dict[str, Any]) -> "Table":
    """The table for a terminal."""
    columns = [(HEAD[0], {"no_wrap": True}), *((name, {"justify": "right"}) for name in HEAD[1:])]
    *lines, average = reproduction_rows(content)
    table = text_table(f"mIoU, {content['method']}, {content['preset']}", columns, lines)
    table.add_section()
    table.add_row(*average)
    return table


def reasons(content: dict[str, Any]) -> list[str]:
    """Sentences for the stars: why figures are not comparable with the paper's, and of which benchmarks."""
    of: dict[str, list[str]] = {}
    for row in content["rows"]:
        for reason in row.get("not_comparable", ()):
            of.setdefault(reason, []).append(row["benchmark"])
    return [f"* {', '.join(names)}: not comparable with the paper, {reason}" for reason, names in of.items()]


def write_reproduction(out: Path, content: dict[str, Any]) -> None:
    """reproduction.json and reproduction.md, each whole or not at all. Raises UserError."""
    with writing_to(out):
        write_json(out / "reproduction.json", content)
        page = render(
            "gla_jax.eval.report",
            "reproduction.md",
            head=HEAD,
            lines=reproduction_rows(content),
            reasons=reasons(content),
            **content,
        )
        write_text(out / "reproduction.md", page)
