"""gla-jax app."""

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from gla_jax.cli import options
from gla_jax.cli.options import prepare_jax
from gla_jax.support.errors import UserError


def page(
    model: Annotated[
        list[str] | None, typer.Option(help="CLIP+VFM, by name or folder; repeat it for a choice.")
    ] = None,
    classes_from: options.ClassesFrom = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 7860,
    share: Annotated[bool, typer.Option("--share", help="Also through a public address of Gradio.")] = False,
    offline: options.Offline = False,
) -> None:
    """Serve a page in which an image is segmented by the words that are typed; it has an API too."""
    if not find_spec("gradio"):
        raise UserError('the page needs gradio; install it with pip install "gla-jax[app]".')
    shown = classes_from and options.typed_classes(None, None, classes_from)
    prepare_jax()
    from gla_jax.app.answers import Answers
    from gla_jax.app.page import serve

    answers = Answers(model or ["tiny-world"], offline, shown)
    with tempfile.TemporaryDirectory(prefix="gla-jax-app-") as folder:
        serve(answers, host, port, share, Path(folder))
