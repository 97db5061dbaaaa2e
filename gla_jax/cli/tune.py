"""gla-jax tune."""

from pathlib import Path
from typing import Annotated

import typer

from gla_jax.cli import options
from gla_jax.cli.options import prepare_jax, results_file
from gla_jax.models.registry import DEFAULT_MODEL
from gla_jax.support.errors import UserError

BEGINS = b'{\n "format": "gla-jax preset'


def tune(
    benchmark: options.Benchmark = "tiny-world",
    data: options.Data = None,
    model: options.BenchmarkModel = None,
    method: options.GlaMethod = "gla",
    preset: options.Preset = options.DEFAULT_PRESET,
    images: Annotated[int, typer.Option(min=1, help="How many labelled images, spread over the data, are used.")] = 8,
    hold_out: Annotated[float, typer.Option(min=0, max=0.9, help="Share of them that only measures.")] = 0.25,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the fit, one image each.")] = 60,
    out: Annotated[Path, typer.Option(**options.URL, help="The preset file to write.")] = Path("gla-jax-preset.json"),
    force: Annotated[bool, typer.Option("--force", help="Write the fit even if it is worse.")] = False,
    offline: options.Offline = False,
) -> None:
    """Fit rho, alpha_beta, alpha_gamma, the logit scale and the background threshold to a few labelled images.

    Starts from --preset and writes a preset for gla-jax segment, eval, explain and crossing --preset FILE.
    """
    if out.suffix != ".json":
        raise UserError(f"{out} does not end with .json, by which --preset knows a file; choose another --out.")
    if hold_out != hold_out:  # NaN passes the limits of the option
        raise UserError("--hold-out nan is no share; give a number from 0 to 0.9.")
    results_file(out, begins=BEGINS)
    prepare_jax()
    from gla_jax.analysis import tune as tuning
    from gla_jax.eval.benchmarks import TINY_WORLD
    from gla_jax.eval.protocols import prompt_list
    from gla_jax.eval.runner import open_benchmark
    from gla_jax.segmenter import Segmenter

    dataset, row = open_benchmark(benchmark, data, preset)
    config = row.config(method)
    if config.method.calibration:
        raise UserError(f"a tuned preset keeps no calibration, and {preset} is one; start from its sizes alone.")
    tuning.coordinates(config)  # before the weights are loaded
    name = model or (TINY_WORLD if benchmark == TINY_WORLD else DEFAULT_MODEL)
    segmenter = Segmenter.from_pretrained(name, config, offline=offline)
    dataset = tuning.fitting_scenes(dataset)
    report = tuning.tune(segmenter, dataset, row, images=images, hold_out=hold_out, steps=steps)
    for line in report.lines():
        typer.echo(line)
    keep_start = report.worse and not force
    origin = {"benchmark": benchmark, "setting": preset, "model_hash": segmenter.model_hash}
    tuning.write_preset(out, report, method, prompt_list(preset), origin, keep_start)
    if report.worse:
        kept = "keeps the start; --force writes the fit" if keep_start else "holds the fit even so"
        typer.echo(f"the fit is worse than the start on images that were not fitted: the preset {kept}.", err=True)
    if benchmark != TINY_WORLD:
        typer.echo(f"the preset names its images of {benchmark}: leave them out of what you report with it.", err=True)
    typer.echo(str(out))
