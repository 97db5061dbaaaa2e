"""gla-jax eval BENCHMARK...; gla-jax eval prepare, compare, overhead."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from gla_jax.cli import options
from gla_jax.cli.options import prepare_jax
from gla_jax.models.registry import DEFAULT_MODEL
from gla_jax.support.errors import UserError

if TYPE_CHECKING:
    from gla_jax.distributed.processes import Processes
    from gla_jax.eval.runner import Run


class _BenchmarksAreNoCommands(TyperGroup):
    """`eval voc21` means `eval run voc21`: what is no command of this group belongs to `run`."""

    def parse_args(self, context: typer.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(context, args)


app = typer.Typer(
    cls=_BenchmarksAreNoCommands,
    help="Measure a method on benchmarks, as mmsegmentation measures. A benchmark may stand in the place of a command: "
    "gla-jax eval voc21 ... is gla-jax eval run voc21 ...",
    add_completion=False,
    rich_markup_mode=None,
)


@app.command()
def run(
    benchmarks: Annotated[list[str] | None, typer.Argument(help="What to measure; --list names all.")] = None,
    every: Annotated[bool, typer.Option("--all", help="The eight benchmarks of the paper.")] = False,
    data: Annotated[Path | None, typer.Option(help="Folder of the data, or the folder that holds several.")] = None,
    model: options.BenchmarkModel = None,
    method: options.Method = "gla",
    preset: options.Preset = options.DEFAULT_PRESET,
    drop_duplicates: Annotated[
        bool, typer.Option("--drop-duplicates", help="Drop background prompts that are classes too (COCO-Object: bed).")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where results go; an interrupted run goes on there.")] = Path(
        "gla-jax-eval"
    ),
    limit: options.Limit = None,
    dtype: options.Dtype = "float32",
    precision: options.Precision = "highest",
    save_predictions: Annotated[
        bool,
        typer.Option("--save-predictions", help="Write index PNGs for a submission server; folder needs no labels."),
    ] = False,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads that read images.")] = 4,
    batch: options.Batch = 1,
    mesh: Annotated[
        str | None, typer.Option(help="DATAxWINDOW devices of each process: images, and windows of an image, at once.")
    ] = None,
    offline: options.Offline = False,
    distributed: options.Distributed = False,
    show_list: Annotated[
        bool, typer.Option("--list", help="Show all protocols; of named benchmarks with prompts.")
    ] = False,
) -> None:
    """Measure a method on benchmarks; the word run may be left out.

    Several processes share a run when JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID are set, or with
    --distributed under a cluster's launcher.
    """
    if show_list:
        from rich.console import Console

        from gla_jax.eval.report.listing import protocols_list

        Console().print(protocols_list(benchmarks or []))
        return
    from gla_jax.distributed.processes import joined
    from gla_jax.eval.benchmarks import PAPER_BENCHMARKS, TINY_WORLD

    keys = list(dict.fromkeys([*(benchmarks or ()), *(PAPER_BENCHMARKS if every else ())]))
    if not keys:
        raise UserError("no benchmark is named; gla-jax eval --list shows them, --all takes the paper's eight.")
    with joined(distributed, "finished images are kept, start all processes again to go on") as processes:
        prepare_jax()
        from gla_jax.distributed.mesh import read_mesh
        from gla_jax.eval.runner import Run, open_benchmark
        from gla_jax.segmenter import Segmenter
        from gla_jax.settings.options import with_fields

        # Every data set is there, and every setting right, before a model is loaded.
        asked = {"method": method, "drop_duplicates": drop_duplicates, "unlabelled": save_predictions}
        rows = {key: open_benchmark(key, data, preset, **asked) for key in keys}
        configs = {
            key: with_fields(row.config(method, dtype), {"precision": precision}) for key, (_, row) in rows.items()
        }
        devices = None if mesh is None else read_mesh(mesh, spanning=False)
        segmenters: dict[str, Segmenter] = {}
        runs = []
        for key, (dataset, row) in rows.items():
            name = model or (TINY_WORLD if key == TINY_WORLD else DEFAULT_MODEL)
            if name not in segmenters:
                segmenters[name] = Segmenter.from_pretrained(name, configs[key], offline=offline, mesh=devices)
            segmenter = segmenters[name].with_config(configs[key])
            runs.append(
                Run(
                    dataset,
                    row,
                    method,
                    segmenter,
                    out if len(rows) == 1 else out / key,
                    limit=limit,
                    save_predictions=save_predictions,
                    threads=threads,
                    batch=batch,
                    templates=segmenter.clip.templates,
                )
            )
        contents = [_measure(one, processes) for one in runs]
        if processes.is_first and len(contents) > 1:
            from rich.console import Console

            from gla_jax.eval.report.summary import summary, summary_table, write_summary

            content = summary(contents)
            write_summary(out, content)
            Console().print(summary_table(content))
            typer.echo(f"summary: {out / 'summary.md'}")


@app.command()
def prepare(
    benchmark: Annotated[str, typer.Argument(help="Which benchmark.")],
    data: Annotated[Path, typer.Option(help="Its folders, as mmsegmentation lays them out.")],
    out: Annotated[Path, typer.Option(help="Where the copy goes; --data takes it afterwards.")],
) -> None:
    """Build a TensorFlow Datasets copy of a benchmark (ArrayRecord, no TensorFlow needed)."""
    from gla_jax.eval.datasets.tfds_copy import prepare as build

    typer.echo(f"{benchmark}: {build(benchmark, data, out)}")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="The --out folder of a run.")],
    second: Annotated[Path, typer.Argument(help="The --out folder of another run of the same benchmark.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("gla-jax-compare.html"),
) -> None:
    """Print and draw how two runs differ: per class, and the images that changed most."""
    from rich.console import Console

    from gla_jax.eval.report.compare import compare as compared
    from gla_jax.eval.report.compare import comparison_html, comparison_tables
    from gla_jax.outputs.files import writing_to
    from gla_jax.support.files import write_text

    comparison = compared(first, second)
    Console().print(comparison_tables(comparison))
    with writing_to(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, comparison_html(comparison))
    typer.echo(f"page: {out}")


@app.command()
def overhead() -> None:
    """Measure the loop around the model: everything but the towers, which return zeros."""
    from rich.console import Console

    from gla_jax.bench.overhead import CASES, measure_overhead, overhead_table

    Console().print(overhead_table([measure_overhead(case) for case in CASES]))


def _measure(one: "Run", processes: "Processes") -> dict[str, Any]:
    """Measure one benchmark; the first process writes and prints the results, which every one returns."""
    from gla_jax.eval.report.page import NAMES, counted, figure, write_report
    from gla_jax.eval.report.pictures import report_pictures
    from gla_jax.eval.results import results, write_results
    from gla_jax.eval.runner import measure
    from gla_jax.support.progress import counter

    with counter(processes.named(one.row.benchmark)) as advance:
        outcome = measure(one, processes, advance)
    content = results(outcome)
    if not processes.is_first:
        return content
    write_results(one.out, content)
    write_report(one.out, content, report_pictures(outcome))
    for warning in content["warnings"]:
        typer.echo(f"warning: {one.row.benchmark}: {warning}", err=True)
    title = f"{one.row.benchmark}, {one.method}"
    rate = content["speed"]["images_per_second"]
    speed = f"{counted(len(outcome.records))}, {'' if rate is None else f'{rate:.2f} a second; '}{one.out}"
    if not content["images"]["labelled"]:
        typer.echo(f"{title}: no labels, so nothing is measured; the predictions are saved\n  {speed}")
        return content
    figures = ", ".join(f"{NAMES[key]} {figure(content['figures'][key])}" for key in ("miou", "macc", "aacc", "ber_1"))
    paper = f" (the paper's mIoU: {figure(content['paper']['miou'])})" if content["paper"] else ""
    if reasons := content["not_comparable_with_paper"]:
        paper = f" (not comparable with the paper: {', '.join(reasons)})"
    typer.echo(f"{title}: {figures}{paper}\n  {speed}")
    return content
