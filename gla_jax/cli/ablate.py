"""gla-jax ablate."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gla_jax.cli import options
from gla_jax.cli.options import locked_results, prepare_jax
from gla_jax.models.registry import DEFAULT_MODEL
from gla_jax.support.errors import UserError

if TYPE_CHECKING:
    from gla_jax.config import SegmenterConfig


def ablate(
    benchmark: options.Benchmark = "tiny-world",
    data: options.Data = None,
    model: options.BenchmarkModel = None,
    stages: Annotated[bool, typer.Option("--stages", help="Each part of GLA after the other; the default.")] = False,
    baselines: Annotated[bool, typer.Option("--baselines", help="Every baseline without and with GLA.")] = False,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            help='"anchor_threshold=0.4,0.5,0.6", also crop, stride, short_side and model; repeat it for combinations.',
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Of stages and grids: proxyclip, clearclip, sclip, proxyclip-clip. [default: proxyclip]"),
    ] = None,
    preset: options.Preset = options.DEFAULT_PRESET,
    limit: options.Limit = None,
    classes_from: options.ClassesFrom = None,
    folds: Annotated[
        int | None,
        typer.Option(min=2, help="In each of so many parts of the images the labels of the others show the classes."),
    ] = None,
    out: Annotated[Path, typer.Option(**options.URL, help="Folder for the figures.")] = Path("gla-jax-ablation"),
    dtype: options.Dtype = "float32",
    offline: options.Offline = False,
    hosts: Annotated[bool, typer.Option("--hosts", hidden=True)] = False,
    host: Annotated[str | None, typer.Option("--host", hidden=True)] = None,
) -> None:
    """Measure what each part of the method brings, or a grid of settings; the towers run once an image.

    Writes ablation.json, ablation.csv and ablation.png.
    """
    options.warn_renamed("--hosts", "--baselines", hosts)
    options.warn_renamed("--host", "--baseline", host is not None)
    baselines, baseline = baselines or hosts, baseline or host
    if stages + baselines + bool(grid) > 1:
        raise UserError("--stages, --baselines and --grid are three ablations; choose one of them.")
    if baselines and baseline:
        raise UserError(f"--baselines measures all baselines, {baseline} among them; leave --baseline out.")
    if preset.endswith(".json"):  # its rows have numbers of their own, not those of a tuned file
        raise UserError(f"an ablation measures numbers of its own, not those of the file {preset}; name sizes.")
    if classes_from and folds:
        raise UserError("--classes-from and --folds both say which images show the classes; choose one of them.")
    prepare_jax()
    from rich.console import Console

    from gla_jax.analysis import ablation
    from gla_jax.analysis.ablate import run_ablation
    from gla_jax.eval.benchmarks import TINY_WORLD
    from gla_jax.eval.datasets.by_example import benchmark_examples, warn_of_measured_examples
    from gla_jax.eval.runner import open_benchmark
    from gla_jax.models.suited import suited
    from gla_jax.segmenter import Segmenter
    from gla_jax.settings.options import check_choice, names_numbers

    axes = ablation.parse_axes(grid or ())
    if baseline and "baseline" in axes:
        raise UserError(f"the grid sets the baseline, so {baseline} would not be measured; leave --baseline out.")
    models = axes.get("model", ())
    if model and models:
        raise UserError(f"the grid sets the model, so {model} would not be measured; leave --model out.")
    baseline = check_choice(baseline or "proxyclip", ablation.gla_baselines(), "baseline of GLA")
    dataset, row = open_benchmark(benchmark, data, preset)
    shown = classes_from and benchmark_examples(classes_from, benchmark, row.classes)
    if shown:
        warn_of_measured_examples(shown, dataset)

    def chosen_of(base: "SegmenterConfig") -> ablation.Ablation:
        if baselines:
            return ablation.baselines(base)
        if axes:
            return ablation.grid(base, baseline, axes)
        return ablation.stages(base, baseline, alone=bool(shown or folds))

    base = row.config("gla", dtype)
    chosen = chosen_of(base)  # faults before the weights are loaded
    names = models or (model or (TINY_WORLD if benchmark == TINY_WORLD else DEFAULT_MODEL),)
    loaded = {name: Segmenter.from_pretrained(name, chosen.settings[0].config, offline=offline) for name in names}
    segmenter, others = next(iter(loaded.values())), loaded if models else {}
    named = names_numbers(preset, axes)  # else each model has numbers of its own
    each = {name: chosen_of(base if named else suited(base, own.vfm)) for name, own in loaded.items()}
    chosen = each[names[0]]
    if baselines:
        chosen, left_out = ablation.that_run(chosen, segmenter.params)
        if left_out:
            typer.echo(f"left out, for the model lacks what they read: {', '.join(left_out)}", err=True)
    if models:
        rows = (each[one.model].settings[index] for index, one in enumerate(chosen.settings))
        chosen = replace(chosen, settings=tuple(rows))
    with locked_results(out) as folder:
        Console().print(run_ablation(segmenter, chosen, dataset, row, folder, limit, shown, folds, others))
    typer.echo(f"{folder / 'ablation.png'}\n{folder / 'ablation.csv'}\n{folder / 'ablation.json'}")
