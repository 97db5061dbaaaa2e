"""gla-jax reproduce."""

from pathlib import Path
from typing import Annotated

import typer

from gla_jax.cli import options
from gla_jax.cli.options import prepare_jax, results_folder
from gla_jax.models.registry import DEFAULT_MODEL


def reproduce(
    data: Annotated[Path, typer.Option(**options.URL, help="Folder that holds some of the paper's benchmarks.")] = Path(
        "data"
    ),
    out: Annotated[
        Path, typer.Option(**options.URL, help="Where results go; an interrupted run goes on there.")
    ] = Path("gla-jax-reproduce"),
    model: options.Model = DEFAULT_MODEL,
    method: options.Method = "gla",
    preset: options.Preset = options.DEFAULT_PRESET,
    limit: options.Limit = None,
    dtype: options.Dtype = "float32",
    precision: options.Precision = None,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads that read images.")] = 4,
    batch: options.Batch = 1,
    offline: options.Offline = False,
) -> None:
    """Measure those of the paper's eight benchmarks that are in a folder, and print paper, ours and the difference.

    The published weights are downloaded and converted on first use, and their SHA-256 is checked. Each benchmark has a
    folder in --out as gla-jax eval writes it; reproduction.md there has figures, settings, versions and hashes on one
    page, to send. The same command goes on where it was stopped.
    """
    from rich.console import Console

    from gla_jax.cli.eval import measure_run
    from gla_jax.eval.benchmarks import PAPER_BENCHMARKS
    from gla_jax.eval.job import Job, runs_of
    from gla_jax.eval.reproduction import (
        check_row,
        open_present,
        reasons,
        reproduction,
        reproduction_table,
        write_reproduction,
    )

    preset, method = check_row(preset, method)
    values = {
        "data": str(data),
        "model": model,
        "method": method,
        "preset": preset,
        "drop_duplicates": False,
        "limit": limit,
        "dtype": dtype,
        "precision": precision,
        "save_predictions": False,
        "threads": threads,
        "batch": batch,
        "mesh": None,
        "offline": offline,
    }
    jobs, opened, missing = open_present([Job(key, **values) for key in PAPER_BENCHMARKS], out)
    for name, sentence in missing.items():
        typer.echo(f"warning: {name} is left out: {sentence}", err=True)
    prepare_jax()
    from gla_jax.distributed.processes import Processes
    from gla_jax.models.pretrained import origins

    folder = results_folder(out)
    runs = runs_of(jobs, opened)
    weights = origins(model)
    contents = [measure_run(run, Processes()) for run in runs]
    content = reproduction(contents, missing, weights)
    write_reproduction(folder, content)
    Console().print(reproduction_table(content))
    typer.echo("".join(f"{reason}\n" for reason in reasons(content)), nl=False)
    typer.echo(f"page: {folder / 'reproduction.md'}")
