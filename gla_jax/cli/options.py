"""Options that several commands share, each defined once, and the defaults of the command line."""

import warnings
from pathlib import Path
from typing import Annotated

import typer

from gla_jax.models.registry import DEFAULT_MODEL

DEFAULT_PRESET = "336-224-112"  # config's, which would load JAX; a test compares the two


Images = Annotated[list[str], typer.Argument(help="Image files, folders of images, glob patterns.")]
ClassNames = Annotated[
    list[str] | None,
    typer.Option("--classes", help='One class with its synonyms, "cat; tabby"; repeat it.'),
]
Model = Annotated[str, typer.Option(help="CLIP+VFM, by name (gla-jax models) or folder.")]
BenchmarkModel = Annotated[
    str | None, typer.Option(help=f"CLIP+VFM, by name or folder. [default: tiny-world on itself, {DEFAULT_MODEL}]")
]
Method = Annotated[str, typer.Option(help="gla, proxyclip, clearclip, sclip, maskclip, clip, ...")]
GlaMethod = Annotated[str, typer.Option(help="gla, gla-clearclip, gla-sclip or gla-on-clip-keys.")]
Preset = Annotated[
    str,
    typer.Option(
        help="Short side, crop and stride: 336-224-112, 448-336-112, 448-448-224 or 448-448-224-scale-50, with a value "
        "of rho if you like, as in 448-336-112+rho-0.6; or a file of gla-jax tune."
    ),
]
AnchorThreshold = Annotated[
    float | None, typer.Option(help="rho, the cosine above which a token is a positive. [default: the preset's]")
]
ShortSide = Annotated[str | None, typer.Option(help="Pixels the short side is resized to, or native.")]
Crop = Annotated[int | None, typer.Option(min=1, max=2**15, help="Side of a window in pixels.")]
Stride = Annotated[int | None, typer.Option(min=1, max=2**15, help="Step between windows in pixels.")]
Dtype = Annotated[str, typer.Option(help="Of the towers: float32 or bfloat16.")]
Precision = Annotated[str, typer.Option(help="Of all float32 products on accelerators: highest, high or default.")]
Batch = Annotated[int, typer.Option(min=1, help="Images with one number of windows that go through together.")]
Distributed = Annotated[bool, typer.Option("--distributed", help="One of several processes of a cluster's launcher.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never reach for the network.")]
Benchmark = Annotated[str, typer.Argument(help="What to measure on; gla-jax eval --list names all.")]
Data = Annotated[Path | None, typer.Option(help="Folder of the data, or the folder that holds it.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first images.")]


def warn_renamed(old: str, new: str, used: bool) -> None:
    """Warn where the old name of an option is used."""
    if used:
        warnings.warn(f"{old} is called {new} now; the old name goes with the next release", stacklevel=2)
