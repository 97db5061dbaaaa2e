"""gla-jax eval BENCHMARK...; gla-jax eval merge, prepare, compare, overhead."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from gla_jax.cli import options
from gla_jax.cli.options import prepare_jax
from gla_jax.support.errors import UserError

if TYPE_CHECKING:
    from gla_jax.distributed.processes import Processes
    from gla_jax.eval.job import Job
    from gla_jax.eval.report.pictures import Picture
    from gla_jax.eval.runner import Outcome, Run


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
    data: Annotated[
        Path | None, typer.Option(**options.URL, help="Folder of the data, or the folder that holds several.")
    ] = None,
    model: options.BenchmarkModel = None,
    method: options.Method = "gla",
    preset: options.Preset = options.DEFAULT_PRESET,
    classes_from: options.ClassesFrom = None,
    drop_duplicates: Annotated[
        bool, typer.Option("--drop-duplicates", help="Drop background prompts that are classes too (COCO-Object: bed).")
    ] = False,
    prune_below: options.PruneBelow = 0.0,
    background_margin: options.BackgroundMargin = 0.0,
    out: Annotated[
        Path, typer.Option(**options.URL, help="Where results go; an interrupted run goes on there.")
    ] = Path("gla-jax-eval"),
    limit: options.Limit = None,
    dtype: options.Dtype = "float32",
    precision: options.Precision = None,
    merge_overlaps: options.MergeOverlaps = False,
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
    shard: options.Shard = None,
    log: Annotated[
        Path | None, typer.Option(**options.URL, help="Add a JSON line for every image to this file.")
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(**options.URL, help="Write TensorBoard's scalars to this folder.")
    ] = None,
    ray: options.Ray = None,
    actors: options.Actors = None,
    cpus_per_actor: options.CpusPerActor = None,
    show_list: Annotated[
        bool, typer.Option("--list", help="Show all protocols; of named benchmarks with prompts.")
    ] = False,
) -> None:
    """Measure a method on benchmarks; the word run may be left out.

    Several processes share a run when JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID are set, or with
    --distributed under a cluster's launcher. With --shard any number of runs that know nothing of each other measure
    the parts of one, which gla-jax eval merge puts together.
    """
    if show_list:
        from rich.console import Console

        from gla_jax.eval.report.listing import protocols_list

        Console().print(protocols_list(benchmarks or []))
        return
    from gla_jax.distributed.processes import joined
    from gla_jax.distributed.shards import read_shard
    from gla_jax.eval.benchmarks import PAPER_BENCHMARKS

    keys = list(dict.fromkeys([*(benchmarks or ()), *(PAPER_BENCHMARKS if every else ())]))
    if not keys:
        raise UserError("no benchmark is named; gla-jax eval --list shows them, --all takes the paper's eight.")
    options.check_actors(ray, actors, cpus_per_actor)
    part = shard and read_shard(shard)
    values = {
        "data": data and str(data),
        "model": model,
        "method": method,
        "preset": preset,
        "drop_duplicates": drop_duplicates,
        "limit": limit,
        "dtype": dtype,
        "precision": precision,
        "merge_overlaps": merge_overlaps,
        "save_predictions": save_predictions,
        "threads": threads,
        "batch": batch,
        "mesh": mesh,
        "offline": offline,
        "classes_from": classes_from and str(classes_from),
        "prune_below": prune_below,
        "background_margin": background_margin,
    }
    if ray:
        if part or distributed:
            raise UserError("--ray deals shards by itself; leave out --shard and --distributed.")
        from gla_jax.cluster.pool import Cluster
        from gla_jax.cluster.workers import evaluate
        from gla_jax.support.progress import counter

        address = None if ray == options.RAY_HERE else ray
        with counter(", ".join(keys)) as advance:
            evaluate(_jobs(keys, values), out, Cluster(address, actors, cpus_per_actor), advance, (log, tensorboard))
        _merge([out], out)
        return
    with joined(distributed, "finished images are kept, start all processes again to go on") as processes:
        prepare_jax()
        from gla_jax.eval.job import open_runs

        jobs = _jobs(keys, values)
        runs = open_runs(jobs, out, sharded=part is not None)
        if part:
            for order, (job, one) in enumerate(zip(jobs, runs, strict=True)):
                _measure_shard(job, order, replace(one, shard=part), processes, log, tensorboard)
            return
        contents = [measure_run(one, processes, log, tensorboard) for one in runs]
        if processes.is_first:
            _summarize(contents, out)


@app.command()
def merge(
    outs: Annotated[list[Path], typer.Argument(**options.URL, help="The --out folders of runs with --shard I/N.")],
    out: Annotated[
        Path | None, typer.Option(**options.URL, help="Where the results go. [default: the one folder named]")
    ] = None,
) -> None:
    """Put the shards of a run together: the results of one run over all images, or why there are none.

    Pictures need the model and the data; where they are not, the report goes without.
    """
    if out is None and len(outs) > 1:
        raise UserError("several folders are merged; name one for the results with --out.")
    _merge(outs, out or outs[0])


@app.command()
def prepare(
    benchmark: Annotated[str, typer.Argument(help="Which benchmark.")],
    data: Annotated[Path, typer.Option(**options.URL, help="Its folders, as mmsegmentation lays them out.")],
    out: Annotated[Path, typer.Option(**options.URL, help="Where the copy goes; --data takes it afterwards.")],
) -> None:
    """Build a TensorFlow Datasets copy of a benchmark (ArrayRecord, no TensorFlow needed)."""
    from gla_jax.eval.datasets.tfds_copy import prepare as build

    typer.echo(f"{benchmark}: {build(benchmark, data, out)}")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(**options.URL, help="The --out folder of a run.")],
    second: Annotated[
        Path, typer.Argument(**options.URL, help="The --out folder of another run of the same benchmark.")
    ],
    out: Annotated[Path, typer.Option(**options.URL, help="The page to write.")] = Path("gla-jax-compare.html"),
) -> None:
    """Print and draw how two runs differ: per class, and the images that changed most."""
    from rich.console import Console

    from gla_jax.eval.report.compare import compare as compared
    from gla_jax.eval.report.compare import comparison_html, comparison_tables
    from gla_jax.outputs.files import writing_to
    from gla_jax.support.files import write_text

    reports = [folder / "report.html" for folder in (first, second)]
    options.results_file(out, begins=b"<!doctype html>", inputs=reports)
    if out.suffix.lower() not in (".html", ".htm"):  # a browser would show its source
        raise UserError(f"{out} is not the name of a page; end it with .html.")
    comparison = compared(first, second)
    Console().print(comparison_tables(comparison))
    with writing_to(out):
        write_text(out, comparison_html(comparison))
    typer.echo(f"page: {out}")


@app.command()
def overhead() -> None:
    """Measure the loop around the model: everything but the towers, which return ones."""
    from rich.console import Console

    from gla_jax.bench.overhead import CASES, measure_overhead, overhead_table

    Console().print(overhead_table([measure_overhead(case) for case in CASES]))


def _jobs(keys: list[str], values: dict[str, Any]) -> "list[Job]":
    """The jobs of several benchmarks, of which tiny-world is the one that --data is not for."""
    from gla_jax.eval.benchmarks import TINY_WORLD
    from gla_jax.eval.job import Job

    without = {"data": None} if len(keys) > 1 else {}
    return [Job(key, **values | (without if key == TINY_WORLD else {})) for key in keys]


def _merge(outs: list[Path], out: Path) -> None:
    """Write and print the results of shards."""
    from gla_jax.eval.merge import find_shards, merge, pictures_of
    from gla_jax.support.places import make_folder

    found = find_shards(outs)
    merged = {key: merge(shards) for key, shards in found.items()}  # all are checked before one is written
    prepare_jax()
    for key, (content, tally) in merged.items():
        try:
            pictures = pictures_of(found[key][0], tally)
        except UserError as error:
            typer.echo(f"warning: {key}: the report has no pictures, as {error}", err=True)
            pictures = []
        home = out if len(merged) == 1 else out / key
        make_folder(home)
        _finish(content, home, pictures)
    _summarize([content for content, _ in merged.values()], out)


def _watched(
    name: str, one: "Run", processes: "Processes", log: Path | None = None, tensorboard: Path | None = None
) -> "Outcome":
    """Measure a run, with progress under a name and the logs that are wanted."""
    from gla_jax.eval.logs import logs
    from gla_jax.eval.runner import measure
    from gla_jax.support.progress import counter

    written = logs(log, tensorboard, one.row.benchmark, len(one.row.classes))
    with written as write, counter(processes.named(name)) as advance:
        return measure(one, processes, advance, log=write)


def measure_run(one: "Run", processes: "Processes", *logs: Path | None) -> dict[str, Any]:
    """Measure one benchmark; the first process writes and prints the results, which every one returns.

    logs: a file of JSON lines and a folder of TensorBoard's scalars, None or left out where none is wanted.
    """
    from gla_jax.eval.report.pictures import report_pictures
    from gla_jax.eval.results import results

    outcome = _watched(one.row.benchmark, one, processes, *logs)
    content = results(outcome)
    if processes.is_first:
        _finish(content, one.out, report_pictures(one, outcome.tally.miou))
    return content


def _measure_shard(job: "Job", order: int, one: "Run", processes: "Processes", *logs: Path | None) -> None:
    """Measure a shard of a benchmark; the first process declares it finished."""
    from gla_jax.eval.merge import finish_shard
    from gla_jax.eval.report.page import counted

    name = f"{one.row.benchmark}, shard {one.shard}"
    outcome = _watched(name, one, processes, *logs)
    if processes.is_first:
        finish_shard(outcome, job, order)
        typer.echo(f"{name}: {counted(len(one.part))} measured; gla-jax eval merge {one.out}, once all shards are done")


def _finish(content: dict[str, Any], out: Path, pictures: "list[Picture]") -> None:
    """Write the files of results and print the figures."""
    from gla_jax.eval.report.page import NAMES, counted, figure, write_report
    from gla_jax.eval.results import write_results

    write_results(out, content)
    write_report(out, content, pictures)
    for warning in content["warnings"]:
        typer.echo(f"warning: {content['benchmark']}: {warning}", err=True)
    title = f"{content['benchmark']}, {content['method']}"
    rate = content["speed"]["images_per_second"]
    speed = f"{counted(content['images']['measured'])}, {'' if rate is None else f'{rate:.2f} a second; '}{out}"
    if not content["images"]["labelled"]:
        typer.echo(f"{title}: no labels, so nothing is measured; the predictions are saved\n  {speed}")
        return
    figures = ", ".join(f"{NAMES[key]} {figure(content['figures'][key])}" for key in ("miou", "macc", "aacc", "ber_1"))
    paper = f" (the paper's mIoU: {figure(content['paper']['miou'])})" if content["paper"] else ""
    if reasons := content["not_comparable_with_paper"]:
        paper = f" (not comparable with the paper: {', '.join(reasons)})"
    typer.echo(f"{title}: {figures}{paper}\n  {speed}")


def _summarize(contents: list[dict[str, Any]], out: Path) -> None:
    """Write and print the table of several benchmarks."""
    if len(contents) < 2:
        return
    from rich.console import Console

    from gla_jax.eval.report.summary import summary, summary_table, write_summary

    content = summary(contents)
    write_summary(out, content)
    Console().print(summary_table(content))
    typer.echo(f"summary: {out / 'summary.md'}")
