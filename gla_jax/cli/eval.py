"""gla-jax eval BENCHMARK...; gla-jax eval prepare, compare, overhead. Heavy imports wait until a command runs."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from gla_jax.eval.benchmarks import PAPER_MODEL
from gla_jax.support.errors import UserError

if TYPE_CHECKING:
    from gla_jax.distributed.processes import Processes
    from gla_jax.eval.runner import Outcome, Progress, Run

PLAIN_PROGRESS_SECONDS = 10.0


class _BenchmarksAreNoCommands(TyperGroup):
    """`eval voc21` means `eval run voc21`: what is no command of this group belongs to `run`."""

    def parse_args(self, context: typer.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = ["run", *args]
        return super().parse_args(context, args)


app = typer.Typer(
    cls=_BenchmarksAreNoCommands,
    help="Measure a method on benchmarks, as mmsegmentation measures.",
    add_completion=False,
)


@app.command()
def run(
    benchmarks: Annotated[list[str] | None, typer.Argument(help="What to measure; --list names all.")] = None,
    every: Annotated[bool, typer.Option("--all", help="The eight benchmarks of the paper.")] = False,
    data: Annotated[Path | None, typer.Option(help="Folder of the data, or the folder that holds several.")] = None,
    model: Annotated[
        str | None, typer.Option(help=f"Names or folders, CLIP+FEATURES. [default: {PAPER_MODEL}]")
    ] = None,
    method: Annotated[str, typer.Option(help="gla, proxyclip, clearclip, sclip, maskclip, ...")] = "gla",
    preset: Annotated[
        str, typer.Option(help="Setting of the paper (sizes, prompts, thresholds), or a file of gla-jax tune.")
    ] = "sclip",
    drop_duplicates: Annotated[
        bool, typer.Option("--drop-duplicates", help="Drop background prompts that are classes too (COCO-Object: bed).")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where results go; an interrupted run goes on there.")] = Path(
        "gla-jax-eval"
    ),
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the towers: float32 or bfloat16.")] = "float32",
    save_predictions: Annotated[
        bool,
        typer.Option("--save-predictions", help="Write index PNGs for a submission server; folder needs no labels."),
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads that read images.")] = 4,
    batch: Annotated[int, typer.Option(min=1, help="Images with one number of windows that go through together.")] = 1,
    mesh: Annotated[
        str | None, typer.Option(help="DATAxWINDOW devices of each process: images, and windows of an image, at once.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never reach for the network.")] = False,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="One of several processes of a cluster's launcher.")
    ] = False,
    show_list: Annotated[
        bool, typer.Option("--list", help="Show all protocols; of named benchmarks with prompts.")
    ] = False,
) -> None:
    """Measure a method on benchmarks; gla-jax eval prepare, compare and overhead have a --help of their own.

    Several processes share a run when JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID are set, or with
    --distributed under a cluster's launcher.
    """
    if show_list:
        from rich.console import Console

        from gla_jax.eval.report.listing import protocols_list

        Console().print(protocols_list(benchmarks or []))
        return
    from gla_jax.cli import prepare_jax
    from gla_jax.distributed.processes import joined
    from gla_jax.eval.benchmarks import PAPER_BENCHMARKS

    keys = list(dict.fromkeys([*(benchmarks or ()), *(PAPER_BENCHMARKS if every else ())]))
    if not keys:
        raise UserError("no benchmark is named; gla-jax eval --list shows them, --all takes the paper's eight.")
    prepare_jax()
    with joined(distributed, "finished images are kept, start all processes again to go on") as processes:
        asked = _Request(keys, data, model, method, preset, drop_duplicates, dtype, mesh, out, offline)
        options = {"limit": limit, "save_predictions": save_predictions, "threads": threads, "batch": batch}
        contents = [_measure(one, processes) for one in _runs(asked, **options)]
        if processes.is_first and len(contents) > 1:
            _summarise(out, contents)


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

    from gla_jax.eval.records import writing_to
    from gla_jax.eval.report.compare import compare as compared
    from gla_jax.eval.report.compare import comparison_html, comparison_tables
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


@dataclass(frozen=True)
class _Request:
    """What was asked for, as typed."""

    benchmarks: list[str]
    data: Path | None
    model: str | None
    method: str
    preset: str
    drop_duplicates: bool
    dtype: str
    mesh: str | None
    out: Path
    offline: bool


def _runs(asked: _Request, **options: Any) -> "list[Run]":
    """All runs, with every data set found before a model is loaded; options go to each Run."""
    from gla_jax.distributed.mesh import read_mesh
    from gla_jax.eval.benchmarks import TINY_WORLD
    from gla_jax.eval.runner import Run, open_benchmark
    from gla_jax.segmenter import Segmenter

    rows = {
        key: open_benchmark(
            key,
            asked.data,
            asked.preset,
            method=asked.method,
            drop_duplicates=asked.drop_duplicates,
            unlabelled=options["save_predictions"],
        )
        for key in asked.benchmarks
    }
    mesh = asked.mesh and read_mesh(asked.mesh, spanning=False)
    segmenters: dict[str, Segmenter] = {}
    runs = []
    for key, (dataset, row) in rows.items():
        name = asked.model or (TINY_WORLD if key == TINY_WORLD else PAPER_MODEL)
        config = row.config(asked.method, asked.dtype)
        if name not in segmenters:
            segmenters[name] = Segmenter.from_pretrained(name, config, offline=asked.offline, mesh=mesh)
        segmenter = segmenters[name].with_config(config)
        out = asked.out if len(rows) == 1 else asked.out / key
        runs.append(Run(dataset, row, asked.method, segmenter, out, templates=segmenter.clip.templates, **options))
    return runs


def _measure(one: "Run", processes: "Processes") -> dict[str, Any]:
    """Measure one benchmark; the first process writes and says what came out. Returns the results."""
    from gla_jax.eval.report.page import write_report
    from gla_jax.eval.report.pictures import report_pictures
    from gla_jax.eval.results import results, write_results
    from gla_jax.eval.runner import measure

    with _Bar(processes.named(one.row.benchmark)) as bar:
        outcome = measure(one, processes, bar)
    content = results(outcome)
    if processes.is_first:
        write_results(one.out, content)
        write_report(one.out, content, report_pictures(outcome))
        _say(outcome, content)
    return content


def _summarise(out: Path, contents: list[dict[str, Any]]) -> None:
    from rich.console import Console

    from gla_jax.eval.report.summary import summary, summary_table, write_summary

    content = summary(contents)
    write_summary(out, content)
    Console().print(summary_table(content))
    typer.echo(f"summary: {out / 'summary.md'}")


def _say(outcome: "Outcome", content: dict[str, Any]) -> None:
    from gla_jax.eval.report.page import NAMES, counted, figure

    title = f"{outcome.run.row.benchmark}, {outcome.run.method}"
    speed = f"{counted(len(outcome.records))}, {content['speed']['images_per_second']:.2f} a second; {outcome.run.out}"
    if not content["images"]["labelled"]:
        typer.echo(f"{title}: no labels, so nothing is measured; the predictions are saved\n  {speed}")
        return
    figures = ", ".join(f"{NAMES[key]} {figure(content['figures'][key])}" for key in ("miou", "macc", "aacc", "ber_1"))
    paper = f" (the paper's mIoU: {figure(content['paper']['miou'])})" if content["paper"] else ""
    if reasons := content["not_comparable_with_paper"]:
        paper = f" (not comparable with the paper: {', '.join(reasons)})"
    typer.echo(f"{title}: {figures}{paper}\n  {speed}")


class _Bar:
    """Progress with images a second and time left: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, title: str):
        self._title = title
        self._bar = None
        self._start: tuple[float, int] | None = None
        self._spoke = time.monotonic()

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            rate = TextColumn("{task.fields[rate]} a second,")
            self._bar = Progress(
                *columns, rate, TimeRemainingColumn(), TextColumn("left"), console=Console(stderr=True)
            )
            self._task = self._bar.add_task(self._title, rate="-", total=None)
            self._bar.start()
        return self._advance

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def _advance(self, done: int, of: int) -> None:
        now = time.monotonic()
        if self._start is None:
            self._start = now, done
        rate = (done - self._start[1]) / max(now - self._start[0], 1e-9)
        if self._bar:
            self._bar.update(self._task, completed=done, total=of, rate=f"{rate:.1f}" if rate else "-")
        elif now - self._spoke > PLAIN_PROGRESS_SECONDS and rate:
            self._spoke = now
            left = (of - done) / rate
            print(f"{self._title}: {done} of {of}, {rate:.1f} a second, {left:.0f} s left", file=sys.stderr, flush=True)
