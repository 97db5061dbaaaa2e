"""gla-jax bench."""

from pathlib import Path
from typing import Annotated

import typer

from gla_jax.cli import options
from gla_jax.cli.options import check_devices, results_folder


def bench(
    model: Annotated[
        str,
        typer.Option(help="CLIP+VFM, by name (gla-jax models) or folder; random: weights of the default model's size."),
    ] = "random",
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the image in pixels; it is cut as it is.")] = "336x504",
    prompts: Annotated[int, typer.Option(min=1, max=10**6, help="Text prompts.")] = 21,
    crop: options.Crop = None,
    stride: options.Stride = None,
    dtype: options.Dtype = "float32",
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each part, at most; the median counts.")] = 5,
    parts: Annotated[str, typer.Option(help="Of towers,attention,labels,image; all for all four.")] = "all",
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Also the attention alone over 1, 2, 4, ... windows, with a picture.")
    ] = False,
    max_windows: Annotated[int, typer.Option(min=1, help="Where the sweep ends.")] = 64,
    memory_limit: Annotated[
        float | None, typer.Option(help="GiB above which a program is not run. [default: half of the machine's]")
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="Above 1 the attention is also split over so many.")] = 1,
    profile: Annotated[Path | None, typer.Option(help="Folder for a JAX trace of each part.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("gla-jax-bench"),
    offline: options.Offline = False,
    queries: Annotated[int | None, typer.Option("--queries", hidden=True, min=1)] = None,
) -> None:
    """Measure seconds, operations a second, memory and compile time of each part, dense against blockwise attention.

    Writes bench.json, bench.md and, with --sweep, bench.png.
    """
    options.warn_renamed("--queries", "--prompts", queries is not None)
    prompts = queries or prompts
    chosen = {name: value for name, value in locals().items() if name not in ("out", "offline", "queries")}
    from gla_jax.bench import options as bench_options
    from gla_jax.bench.measure import run_bench
    from gla_jax.bench.report import markdown, write_report

    command = bench_options.command_line(chosen | {"max_windows": max_windows if sweep else None})
    checked = bench_options.read_options(**chosen)
    if devices == 1:  # several are set up in run_bench, before JAX counts its devices
        check_devices()
    folder = results_folder(out)
    # No prepare_jax: a cache of compiled programs would hide the compile times.
    report = run_bench(checked, command, offline)
    written = write_report(report, folder)
    typer.echo(markdown(report))
    typer.echo("\n".join(map(str, written)))
