"""gla-jax crossing."""

from pathlib import Path
from typing import Annotated

import typer

from gla_jax.cli import options
from gla_jax.cli.options import prepare_jax, results_file
from gla_jax.models.registry import DEFAULT_MODEL


def crossing(
    images: Annotated[
        list[str], typer.Argument(help="Image files, folders of images, glob patterns; or tiny-world for its scenes.")
    ],
    labels: Annotated[
        Path | None,
        typer.Option(**options.URL, help="Folder of an index PNG for each image, NAME.png; 255 is ignored."),
    ] = None,
    limit: options.Limit = None,
    model: options.BenchmarkModel = None,
    method: options.GlaMethod = "gla",
    preset: options.Preset = options.DEFAULT_PRESET,
    anchor_threshold: options.AnchorThreshold = None,
    out: Annotated[Path | None, typer.Option(**options.URL, help="Also write the figures as JSON.")] = None,
    offline: options.Offline = False,
) -> None:
    """Print how much attention crosses windows, and how large anchors are, stage by stage over whole images.

    With labels (tiny-world brings its own) also how much of it falls on tokens of the own class.
    """
    from gla_jax.analysis.explain import attention_stages
    from gla_jax.settings.options import names_numbers, settings_from_options

    config = settings_from_options(method=method, preset=preset, anchor_threshold=anchor_threshold)
    attention_stages(config.method)  # before the weights are loaded
    prepare_jax()
    from gla_jax.analysis import crossing as measuring
    from gla_jax.segmenter import Segmenter
    from gla_jax.support.files import write_json
    from gla_jax.support.progress import track

    samples, read = measuring.find_samples(images, labels, limit)
    name = model or (measuring.TINY_WORLD if images == [measuring.TINY_WORLD] else DEFAULT_MODEL)
    if out:
        results_file(out, begins=b'{\n "images":')
    suit = anchor_threshold is None and not names_numbers(preset)
    segmenter = Segmenter.from_pretrained(name, config, offline=offline, suit=suit)
    figures = measuring.summary(measuring.crossings(segmenter, *read(each)) for each in track(samples, "images"))
    typer.echo("\n".join(measuring.lines(figures)))
    if out:
        content = {"images": len(samples), "model_hash": segmenter.model_hash} | figures
        write_json(out, content)
