"""gla-jax convert."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gla_jax.cli.options import URL, Offline
from gla_jax.models.registry import FAMILIES
from gla_jax.support.errors import UserError

Family = StrEnum("Family", {name: name for name in FAMILIES})


def convert(
    family: Annotated[Family, typer.Argument(help="What the weights are of.")],
    source: Annotated[
        str,
        typer.Argument(help="A hub id, a folder, or a .safetensors, .bin, .pt, .pth or (TIPSv2) .npz file; or a URL."),
    ],
    out: Annotated[Path, typer.Argument(**URL, help="The model folder to make.")],
    activation: Annotated[str | None, typer.Option(help="quick_gelu or gelu, where the source does not say.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads of the image tower, likewise.")] = None,
    text_heads: Annotated[int | None, typer.Option(min=1, help="Attention heads of the text tower, likewise.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Compare every stage with PyTorch (needs torch).")] = False,
    images: Annotated[list[str] | None, typer.Option("--image", help="An image to verify on; repeat it.")] = None,
    offline: Offline = False,
) -> None:
    """Convert published weights into a model folder, without PyTorch.

    What had to be assumed is printed and stands in manifest.json. A model that fails --verify is not written.
    """
    from rich.console import Console

    from gla_jax.convert.model_folder import read_model, weights_on_disk
    from gla_jax.convert.reference import require_torch
    from gla_jax.images.reading import find_images, read_image

    if images and not verify:
        raise UserError(f"--image {images[0]} is only looked at by --verify; add that or leave the image out.")
    if verify and family.value == "clip-dinoiser":
        raise UserError("--verify runs a model in PyTorch, and CLIP-DINOiser's layers alone are none; leave it out.")
    pixels = []
    if verify:  # what is missing is said before minutes of work
        require_torch()
        pixels = [read_image(path) for path in find_images(images)] if images else []
    options = {"activation": activation, "num_heads": heads, "text_heads": text_heads}
    with weights_on_disk(source) as here:
        conversion = read_model(family.value, here, out, name=source, offline=offline, **options)
        if verify:
            from gla_jax.convert.verify import verify_conversion

            result = verify_conversion(conversion, pixels)
            Console().print(result.table())
            if not result.passed:
                raise typer.Exit(1)
        manifest = conversion.write()
    dropped = sum("dropped" in row for row in manifest["tensors"].values())
    typer.echo(f"{out}: {len(manifest['tensors']) - dropped} tensors converted, {dropped} dropped (see manifest.json)")
    for name, value in manifest["assumed"].items():
        typer.echo(f"assumed {name} {value}")
