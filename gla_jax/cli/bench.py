"""gla-jax bench."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from gla_jax.cli import options
from gla_jax.cli.options import check_devices, locked_results, results_folder
from gla_jax.support.errors import UserError

APART = (
    "context",
    "out",
    "offline",
    "queries",
    "compile_for",
    "mesh",
    "accelerator",
)  # no settings of what is measured
RUNNING = ("sweep", "memory_limit", "devices", "profile")  # options of programs that run


def bench(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Option(help="CLIP+VFM, by name (gla-jax models) or folder; random: weights of the default model's size."),
    ] = "random",
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the image in pixels; it is cut as it is.")] = "336x504",
    prompts: Annotated[int, typer.Option(min=1, max=10**6, help="Text prompts.")] = 21,
    crop: options.Crop = None,
    stride: options.Stride = None,
    dtype: options.Dtype = "float32",
    precision: Annotated[
        str | None, typer.Option(help="Of the attention's products. [default: the platform's]")
    ] = None,
    merge_overlaps: options.MergeOverlaps = False,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each part, at most; the median counts.")] = 5,
    parts: Annotated[str, typer.Option(help="Of towers,attention,labels,image,steps; all for all.")] = "all",
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Also the attention alone over 1, 2, 4, ... windows, with a picture.")
    ] = False,
    max_windows: Annotated[int, typer.Option(min=1, help="Where the sweep ends.")] = 64,
    memory_limit: Annotated[
        float | None, typer.Option(help="GiB above which a program is not run. [default: half of the machine's]")
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="Above 1 the attention is also split over so many.")] = 1,
    profile: Annotated[Path | None, typer.Option(**options.URL, help="Folder for a JAX trace of each part.")] = None,
    compile_for: Annotated[
        str | None,
        typer.Option(
            metavar="CHIP", help="Measure nothing; compile for tpu:v5e:2x4, tpu:v6e:1x1, tpu:v5p:2x2x1, gpu:h100."
        ),
    ] = None,
    mesh: Annotated[
        str | None, typer.Option(help="With --compile-for: DATAxWINDOW. [default: one image over all chips]")
    ] = None,
    accelerator: Annotated[
        bool,
        typer.Option(
            "--accelerator", help="Two models, sizes, precisions and batches on a GPU or TPU, in about ten minutes."
        ),
    ] = False,
    out: Annotated[Path, typer.Option(**options.URL, help="Folder for the figures.")] = Path("gla-jax-bench"),
    offline: options.Offline = False,
    queries: Annotated[int | None, typer.Option("--queries", hidden=True, min=1)] = None,
) -> None:
    """Measure seconds, operations a second, memory and compile time of each part, dense against blockwise attention.

    Writes bench.json, bench.md and, with --sweep, bench.png. With --compile-for it prints what the programs need on a
    chip that is not here (memory, operations, bytes, the least time by its published peaks) and writes compile.json.
    With --accelerator it measures a fixed series on this machine's and writes accelerator.json and accelerator.md.
    """
    options.warn_renamed("--queries", "--prompts", queries is not None)
    prompts = queries or prompts
    chosen = {name: value for name, value in locals().items() if name not in APART}
    if accelerator:
        _accelerator(context, out)
        return
    if compile_for is not None:
        _compile_for(compile_for, mesh, out, chosen)
        return
    if mesh is not None:
        raise UserError("--mesh belongs to --compile-for; to measure several devices here, give --devices.")
    if merge_overlaps:
        raise UserError("--merge-overlaps belongs to --compile-for; gla-jax ablate measures it here.")
    from gla_jax.bench import options as bench_options
    from gla_jax.bench.measure import run_bench
    from gla_jax.bench.report import markdown, write_report

    command = bench_options.command_line(chosen | {"max_windows": max_windows if sweep else None})
    checked = bench_options.read_options(**chosen)
    if devices == 1:  # several are set up in run_bench, before JAX counts its devices
        check_devices()
    with locked_results(out) as folder:
        if profile:
            results_folder(profile, "--profile")
        # No prepare_jax: a cache of compiled programs would hide the compile times.
        report = run_bench(checked, command, offline)
        written = write_report(report, folder)
    typer.echo(markdown(report))
    typer.echo("\n".join(map(str, written)))


def _accelerator(context: typer.Context, out: Path) -> None:
    """Measure and write the series of an accelerator. Raises UserError for options beside --out, which it fixes."""
    for name in context.params:
        if name not in ("accelerator", "out") and context.get_parameter_source(name).name == "COMMANDLINE":
            raise UserError(f"--{name.replace('_', '-')} is fixed by --accelerator; leave one of the two out.")
    check_devices()
    import jax

    if jax.default_backend() == "cpu" and os.environ.get("JAX_PLATFORMS") != "cpu":
        raise UserError(
            "JAX sees no GPU or TPU, and on a processor the series of --accelerator takes over half an hour; run "
            "gla-jax bench, or this on a machine with one; with JAX_PLATFORMS=cpu it runs here all the same."
        )
    from gla_jax.bench import accelerator

    with locked_results(out) as folder:
        result, written = accelerator.run_accelerator(accelerator.SERIES, "gla-jax bench --accelerator", folder)
    typer.echo(accelerator.markdown(result))
    typer.echo("\n".join(map(str, written)))


def _compile_for(chip: str, mesh: str | None, out: Path, chosen: dict[str, Any]) -> None:
    """Print and write a plan. Raises UserError, also for options of programs that run."""
    for name in RUNNING:
        if chosen[name] not in (None, False) and not (name == "devices" and chosen[name] == 1):
            raise UserError(f"--{name.replace('_', '-')} is of programs that run; leave it out with --compile-for.")
    from gla_jax.bench import options as bench_options
    from gla_jax.bench.chips import Target

    target, checked = Target.read(chip), bench_options.read_options(**chosen)
    target.mesh_shape(mesh)
    from gla_jax.bench.plan import make_plan
    from gla_jax.bench.plan_report import print_plan, write_plan

    kept = {
        name: chosen[name]
        for name in ("model", "size", "prompts", "crop", "stride", "dtype", "precision", "merge_overlaps")
    }
    command = bench_options.command_line({"compile_for": chip, "mesh": mesh, **kept})
    with locked_results(out) as folder:
        plan = make_plan(checked, target, mesh, command)
        written = write_plan(plan, folder)
    print_plan(plan)
    typer.echo(str(written))
