"""gla-jax raster."""

from pathlib import Path
from typing import Annotated

import typer

from gla_jax.cli import options
from gla_jax.cli.options import prepare_jax, results_folder
from gla_jax.models.registry import DEFAULT_MODEL
from gla_jax.support.errors import UserError
from gla_jax.support.places import is_file, stamp
from gla_jax.support.web import is_web


def raster(
    source: Annotated[Path, typer.Argument(**options.IMAGE_URL, help="A GeoTIFF.")],
    classes: options.ClassNames = None,
    classes_file: options.ClassesFile = None,
    classes_from: options.ClassesFrom = None,
    background: options.Background = None,
    threshold: Annotated[float | None, typer.Option(help="Probability below which a pixel is background.")] = None,
    bands: Annotated[str, typer.Option(help="Numbers of the red, green and blue band, from 1.")] = "1,2,3",
    value_range: Annotated[
        str | None,
        typer.Option("--range", help="LOW,HIGH: values of black and white, where bands are not 8 bits."),
    ] = None,
    window: Annotated[str | None, typer.Option(help="COLUMN,ROW,WIDTH,HEIGHT in pixels: only this part.")] = None,
    block: Annotated[int, typer.Option(min=16, help="Side of the blocks, in pixels of the raster.")] = 1024,
    vectors: Annotated[bool, typer.Option("--vectors", help="Also write polygons, a GeoPackage.")] = False,
    model: options.Model = DEFAULT_MODEL,
    method: options.Method = "gla",
    preset: options.Preset = options.DEFAULT_PRESET,
    short_side: options.ShortSide = None,
    crop: options.Crop = None,
    stride: options.Stride = None,
    out: options.Results = Path("gla-jax-raster"),
    dtype: options.Dtype = "float32",
    precision: options.Precision = None,
    offline: options.Offline = False,
) -> None:
    """Segment a GeoTIFF of any size in blocks, each with a global buffer of its own.

    A block and a halo of one window around it are brought to the preset's short side, as a photo would be; --short-side
    native takes the pixels as they are. Writes labels.tif with the raster's place on the ground, a colour table, nodata
    and overviews, and results.json. The same command goes on where it was stopped.
    """
    from gla_jax.settings.options import names_numbers, settings_from_options, with_fields
    from gla_jax.text.prompts import check_enough

    config = settings_from_options(
        method=method, preset=preset, short_side=short_side, crop=crop, stride=stride, dtype=dtype
    )
    parsed = options.typed_classes(classes, classes_file, classes_from)
    background, threshold = options.typed_background(background, threshold, config)
    check_enough(parsed, background)
    chosen = _numbers(bands, "bands", 3, int)
    values = None if value_range is None else _numbers(value_range, "range", 2, float)
    if values and not values[0] < values[1]:
        raise UserError(f"range {value_range} does not rise; give LOW,HIGH.")
    part = None if window is None else _numbers(window, "window", 4, int)
    if part and (min(part) < 0 or min(part[2:]) < 1):
        raise UserError(f"window {window} is no part of an image; give COLUMN,ROW,WIDTH,HEIGHT in pixels.")
    if is_web(source):
        try:
            stamp(source)  # of an address the answer says why there is no file
        except OSError as error:
            raise UserError(f"{source} cannot be read ({error.strerror or error}).") from None
    elif not is_file(source):
        raise UserError(f"there is no file {source}; name a GeoTIFF.")
    from gla_jax.geo.raster import RasterTask, check_packages, segment_raster

    check_packages(vectors)
    prepare_jax()
    from gla_jax.geo.blocks import Area
    from gla_jax.geo.seams import seams_line
    from gla_jax.segmenter import Segmenter
    from gla_jax.text.prompts import with_background

    with_background(parsed, background, config.background_rules | {"threshold": threshold})
    options.warn_idle_threshold(parsed, threshold)
    config = with_fields(config, {"threshold": threshold, "precision": precision})
    segmenter = Segmenter.from_pretrained(model, config, offline=offline, suit=not names_numbers(preset))
    folder = results_folder(out)
    area = part and Area(part[1], part[0], part[3], part[2])
    task = RasterTask(segmenter, parsed, background, chosen, values, area, block, vectors)
    done = segment_raster(task, source, folder, lambda text: typer.echo(text, err=True))
    for name, share in sorted(done["shares"].items(), key=lambda item: -item[1]):
        typer.echo(f"{name}: {100 * share:.1f} %", err=True)
    typer.echo(seams_line(done["edges"]), err=True)
    counted = "1 block" if done["blocks"] == 1 else f"{done['blocks']} blocks"
    typer.echo(f"{counted} segmented; results in {folder}", err=True)


def _numbers(text: str, what: str, count: int, kind: type) -> tuple:
    try:
        numbers = tuple(map(kind, text.split(",")))
        if len(numbers) != count or not all(abs(number) < 1e12 for number in numbers):  # NaN and infinity too
            raise ValueError
    except ValueError:
        raise UserError(f"{what} {text!r} is not {count} numbers with commas between them.") from None
    return numbers
