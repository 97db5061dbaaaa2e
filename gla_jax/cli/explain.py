"""gla-jax explain."""

from pathlib import Path
from typing import Annotated

import typer

from gla_jax.cli import options
from gla_jax.cli.options import prepare_jax, results_file
from gla_jax.models.registry import DEFAULT_MODEL


def explain(
    image: Annotated[Path, typer.Argument(**options.IMAGE_URL, help="An image file.")],
    at: Annotated[str | None, typer.Option(help="X,Y: the pixel whose token asks.")] = None,
    boundaries: Annotated[
        bool, typer.Option("--boundaries", help="Also compare the labels at window edges without and with GLA.")
    ] = False,
    classes: options.ClassNames = None,
    mask: Annotated[
        Path | None,
        typer.Option(**options.URL, help="An index or binary PNG: the object at X,Y, and the truth at window edges."),
    ] = None,
    model: options.Model = DEFAULT_MODEL,
    method: options.GlaMethod = "gla",
    preset: options.Preset = options.DEFAULT_PRESET,
    anchor_threshold: options.AnchorThreshold = None,
    short_side: options.ShortSide = None,
    crop: options.Crop = None,
    stride: options.Stride = None,
    out: Annotated[
        Path | None, typer.Option(**options.URL, help="The PNG file to write.  [default: NAME.explain.png]")
    ] = None,
    dtype: options.Dtype = "float32",
    offline: options.Offline = False,
) -> None:
    """Draw what one pixel's token attends to, stage by stage of GLA, and where labels flip at window edges."""
    from gla_jax.settings.options import names_numbers, settings_from_options

    config = settings_from_options(
        method=method,
        preset=preset,
        short_side=short_side,
        crop=crop,
        stride=stride,
        dtype=dtype,
        anchor_threshold=anchor_threshold,
    )
    out = out or Path(f"{image.stem}.explain.png")
    prepare_jax()
    from gla_jax.analysis.explain import attention_stages
    from gla_jax.analysis.explain_files import read_request, write_pictures
    from gla_jax.segmenter import Segmenter

    attention_stages(config.method)
    request = read_request(image, at, mask, classes or (), boundaries, out)
    for path in (out, out.with_suffix(".boundaries.png")) if boundaries else (out,):
        results_file(path, inputs=(image, mask))
    suit = anchor_threshold is None and not names_numbers(preset)
    segmenter = Segmenter.from_pretrained(model, config, offline=offline, suit=suit)
    for line in write_pictures(segmenter, request, out):
        typer.echo(line)
