"""The command line: all commands, and one place that turns whatever ends them into a sentence and an exit status.

Heavy imports wait inside the commands: --help answers at once.
"""

import os
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

import typer

from gla_jax.cli.ablate import ablate
from gla_jax.cli.bench import bench
from gla_jax.cli.convert import convert
from gla_jax.cli.crossing import crossing
from gla_jax.cli.demo import demo
from gla_jax.cli.eval import app as eval_app
from gla_jax.cli.explain import explain
from gla_jax.cli.export import export
from gla_jax.cli.info import info
from gla_jax.cli.models import models
from gla_jax.cli.options import RAY_HERE, remove_empty_folders
from gla_jax.cli.page import page
from gla_jax.cli.raster import raster
from gla_jax.cli.reproduce import reproduce
from gla_jax.cli.segment import segment
from gla_jax.cli.tune import tune
from gla_jax.support.errors import UserError, about_files
from gla_jax.support.interrupts import signals_raise
from gla_jax.support.version import VERSION

app = typer.Typer(
    help="Segment images by text alone: GLA-CLIP on JAX.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
app.command()(segment)
app.command()(raster)
app.command("app")(page)
app.command()(demo)
app.add_typer(eval_app, name="eval")
app.command()(reproduce)
for command in (ablate, tune, explain, crossing, bench, convert, export, models, info):
    app.command()(command)
# typer's own class, whether it brings click with it or imports it.
UsageError = typer.BadParameter.__base__
STORES = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google")  # modules of errors that are none of the system's
STDERR = 2  # its number
INTERRUPTED = 130
STOPPED = (INTERRUPTED, 143, 129)  # Ctrl-C, SIGTERM, SIGHUP


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gla-jax {VERSION}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Segment images by text alone: GLA-CLIP on JAX."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns the exit status: 0, 1 when a part failed, 2 for a user's mistake, 130 for Ctrl-C, 143 for SIGTERM.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with warnings.catch_warnings(), signals_raise():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_: typer.echo(f"warning: {message}", err=True)
        try:
            _check_words(arguments)
            arguments = _with_ray_address(arguments)
            status = app(arguments, standalone_mode=False) or 0  # typer makes Ctrl-C a status
        except UserError as error:
            status = _failed(str(error))
        except UsageError as error:
            error.show()
            status = error.exit_code
        except OSError as error:
            status = _failed(about_files(error))
        except (KeyboardInterrupt, typer.Abort):
            status = INTERRUPTED
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        except Exception as error:
            if type(error).__module__.partition(".")[0] in STORES:
                reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
                return _failed(
                    f"the object store cannot be used ({reason}); see its address, your keys and the network."
                )
            if not _lacks_memory(error):
                raise
            status = _failed("this needs more memory than there is; take a smaller --batch, --crop or --short-side.")
        finally:
            remove_empty_folders()
    if status in STOPPED:
        typer.echo("stopped; nothing half-written is left", err=True)
    return status


def _check_words(arguments: Sequence[str]) -> None:
    """Raise UserError for a word that no option takes: an empty one, as an unset variable gives, or one with a NUL."""
    for before, word in zip(["the first word", *arguments], arguments, strict=False):
        if not word or (word.startswith("--") and word.endswith("=")):
            raise UserError(
                f"the word after {before} is empty; give a value." if not word else f"{word} lacks a value."
            )
        if "\0" in word:
            raise UserError(f"{word!r} holds a NUL character, which no name has; leave it out.")


def _with_ray_address(arguments: Sequence[str]) -> list[str]:
    """The words with `here` after a --ray that no address follows: typer has no option whose value may lack."""
    words: list[str] = []
    for word, after in zip(arguments, [*arguments[1:], ""], strict=True):
        words.append(word)
        if word == "--ray" and not re.fullmatch(r"auto|here|ray://\S+|[\w.\[\]:-]+:\d+", after):
            words.append(RAY_HERE)
    return words


def _lacks_memory(error: Exception) -> bool:
    # JAX's error by its name, so that JAX need not be imported.
    return isinstance(error, MemoryError) or (
        type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error)
    )


def _failed(sentence: str) -> int:
    typer.echo(f"error: {sentence}", err=True)
    return 2


def script() -> None:
    """The entry point of the installed command."""
    # Where a service has closed a stream, a file of results would take its number, and messages of libraries with it.
    while (number := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass
    # typer writes what is wrong with the words to the other stream where this one is None.
    streams = [stream or os.fdopen(number, "w", closefd=False) for stream in (sys.stdout, sys.stderr)]
    sys.stdout, sys.stderr = streams
    for stream in streams:  # a file name may hold bytes that no encoding has letters for
        stream.reconfigure(errors="backslashreplace")
    status = main()
    if status in STOPPED:
        # A thread of JAX goes on compiling, and would crash while Python tears down what it uses.
        for stream in streams:
            with suppress(OSError, ValueError):  # closed at its other end
                stream.flush()
        os._exit(status)
    sys.exit(status)
