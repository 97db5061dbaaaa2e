"""gla-jax demo."""

from pathlib import Path
from typing import Annotated

import typer

from gla_jax.cli import options
from gla_jax.cli.options import locked_results, prepare_jax


def demo(
    out: Annotated[Path, typer.Option(**options.URL, help="Folder for the picture and the figures.")] = Path(
        "gla-jax-demo"
    ),
    scene: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Number of the held-out scene.")] = None,
) -> None:
    """Segment a bundled scene with ProxyCLIP and with GLA-CLIP, and compare both with the truth."""
    prepare_jax()
    from gla_jax.analysis.demo import DEFAULT_SCENE, run_demo

    with locked_results(out) as folder:
        figures = run_demo(folder, DEFAULT_SCENE if scene is None else scene)
    for name, row in figures["methods"].items():
        typer.echo(
            f"{name:10s} mIoU {row['miou']:5.1f}   pixel accuracy {row['pixel_accuracy']:5.1f}   "
            f"boundary error rate {row['boundary_error_rate']:4.1f}"
        )
    typer.echo(f"{folder / 'demo.png'}\n{folder / 'demo.json'}")
