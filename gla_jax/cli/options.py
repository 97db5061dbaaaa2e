"""Options that several commands share, each defined once, and the defaults of the command line."""

import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gla_jax.models.registry import DEFAULT_MODEL
from gla_jax.support.devices import check_devices as check_devices
from gla_jax.support.devices import prepare_jax as prepare_jax
from gla_jax.support.errors import UserError
from gla_jax.support.files import LOCK_FILE, folder_lock
from gla_jax.support.places import check_writable, content_of, is_file, is_remote, place, same_file
from gla_jax.support.web import is_web

if TYPE_CHECKING:
    from gla_jax.config import SegmenterConfig
    from gla_jax.text.prompts import Classes


def _store_place(text: str) -> Path:
    """`place`, but for addresses of the web, which hold images, rasters and weights alone. Raises UserError."""
    if is_web(text):
        raise UserError(f"an https:// address is read as an image, a raster or weights alone; fetch {text} first.")
    return place(text)


URL = {"parser": _store_place, "metavar": "PATH|URL"}  # of an option that takes s3://, gs:// and hf:// too
IMAGE_URL = {"parser": place, "metavar": "PATH|URL"}  # of one that takes https:// too
DEFAULT_PRESET = "336-224-112"  # config's, which would load JAX; a test compares the two


Images = Annotated[list[str], typer.Argument(help="Image files, folders of images, glob patterns.")]
ClassNames = Annotated[
    list[str] | None,
    typer.Option("--classes", help='One class with its synonyms, "cat; tabby"; repeat it.'),
]
ClassesFile = Annotated[Path | None, typer.Option(**URL, help="A text file with one class a line.")]
ClassesFrom = Annotated[
    Path | None,
    typer.Option(
        **URL,
        help="A folder of images/, labels/ (index PNGs) and classes.txt or classes.json, which show the classes in "
        "place of text.",
    ),
]
Background = Annotated[str | None, typer.Option(help="The class of pixels below the threshold, or none.")]
PruneBelow = Annotated[
    float, typer.Option(help="Classes whose best probability in an image is below it are left out there. 0: none.")
]
BackgroundMargin = Annotated[
    float,
    typer.Option(help="A pixel whose best class leads the second by less, in probability, is background. 0: none."),
]
Results = Annotated[Path, typer.Option(**URL, help="Folder for the results; an interrupted run goes on there.")]
Model = Annotated[str, typer.Option(help="CLIP+VFM, by name (gla-jax models) or folder.")]
BenchmarkModel = Annotated[
    str | None, typer.Option(help=f"CLIP+VFM, by name or folder. [default: tiny-world on itself, {DEFAULT_MODEL}]")
]
Method = Annotated[str, typer.Option(help="gla, proxyclip, clearclip, sclip, maskclip, clip, ...")]
GlaMethod = Annotated[str, typer.Option(help="One that is the whole of GLA, such as gla or gla-clearclip.")]
Preset = Annotated[
    str,
    typer.Option(
        help="Short side, crop and stride: 336-224-112, 448-336-112, 448-448-224 or 448-448-224-scale-50, with the "
        "method's numbers if you like, as in 448-336-112+rho-0.6 or +centred; or a file of gla-jax tune."
    ),
]
AnchorThreshold = Annotated[
    float | None, typer.Option(help="rho, the cosine above which a token is a positive. [default: the preset's]")
]
ShortSide = Annotated[str | None, typer.Option(help="Pixels the short side is resized to, or native.")]
Crop = Annotated[int | None, typer.Option(min=1, max=2**15, help="Side of a window in pixels.")]
Stride = Annotated[int | None, typer.Option(min=1, max=2**15, help="Step between windows in pixels.")]
Dtype = Annotated[str, typer.Option(help="Of the towers: float32 or bfloat16.")]
Precision = Annotated[
    str | None,
    typer.Option(help="Of products: highest, high (split) or fast (one pass); by the device when not given."),
]
MergeOverlaps = Annotated[
    bool,
    typer.Option("--merge-overlaps", help="Tokens of several windows at one pixel as one: faster, not the paper's."),
]
Batch = Annotated[int, typer.Option(min=1, help="Images with one number of windows that go through together.")]
Distributed = Annotated[bool, typer.Option("--distributed", help="One of several processes of a cluster's launcher.")]
Shard = Annotated[str | None, typer.Option(help="I/N: only the part I, from 0, of N parts of the images.")]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="[ADDRESS]",
        help="Deal the images to the actors of a Ray cluster; without an address, one on this machine.",
    ),
]
RAY_HERE = "here"  # stands for --ray without an address
Actors = Annotated[int | None, typer.Option(min=1, help="Actors of --ray. [default: one an accelerator]")]
CpusPerActor = Annotated[int | None, typer.Option(min=1, help="Processors of an actor. [default: 4]")]
Offline = Annotated[bool, typer.Option("--offline", help="Never reach for the network.")]
Benchmark = Annotated[str, typer.Argument(help="What to measure on; gla-jax eval --list names all.")]
Data = Annotated[Path | None, typer.Option(**URL, help="Folder of the data, or the folder that holds it.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first images.")]


def typed_classes(classes: list[str] | None, classes_file: Path | None, classes_from: Path | None = None) -> "Classes":
    """The classes of --classes and --classes-file, or those that the labelled images of --classes-from show.

    Raises UserError when there are none, ClassesError for bad ones, DataError for labelled images that cannot be used.
    """
    from gla_jax.text.prompts import parse_classes, read_lines

    if classes_from is not None:
        if classes or classes_file:
            raise UserError("--classes-from names the classes itself; leave out --classes and --classes-file.")
        from gla_jax.eval.datasets.by_example import classes_from as labelled

        return labelled(classes_from)
    lines = list(classes or []) + (read_lines(classes_file, "classes") if classes_file else [])
    if not lines:
        raise UserError(
            'there are no classes; name some with --classes "cat; tabby" or --classes-file FILE, or show some with '
            "--classes-from FOLDER."
        )
    return parse_classes(lines)


def typed_background(
    background: str | None, threshold: float | None, config: "SegmenterConfig"
) -> tuple[str | None, float]:
    """The class of --background, None for the word none, and the threshold below which pixels belong to it."""
    from gla_jax.text.prompts import background_name

    background = None if background == "none" else background_name(background)
    if threshold is None:
        threshold = config.threshold if background else 0.0
    return background, threshold


def warn_idle_threshold(classes: "Classes", threshold: float) -> None:
    """Warn of a threshold that no pixel falls below: the best of Q prompts has a probability of at least 1 / Q."""
    count = len(classes.prompts)
    if 0 < threshold <= 1 / count:
        warnings.warn(
            f"threshold {threshold:g} makes no pixel background: the best of {count} prompts has a probability of at "
            f"least {1 / count:.2g}; raise the threshold",
            stacklevel=2,
        )


def check_actors(ray: str | None, *of_actors: int | None) -> None:
    """Raise UserError for options of actors without --ray, which would be ignored."""
    if not ray and any(of_actors):
        raise UserError("--actors and --cpus-per-actor belong to --ray; add it, or leave them out.")


def warn_renamed(old: str, new: str, used: bool) -> None:
    """Warn where the old name of an option is used."""
    if used:
        warnings.warn(f"{old} is called {new} now; the old name goes with the next release", stacklevel=2)


_made: list[Path] = []  # folders that the command of this process has made, the innermost first


def results_folder(path: Path, option: str = "--out") -> Path:
    """A folder for results, created where it is missing; that it can be written to is tried before the work.

    It is removed at the end of the command if it is still empty; option: that names it.
    """
    if is_remote(path):
        try:
            check_writable(path)
        except OSError as error:
            raise UserError(f"the folder {path} cannot be written to ({error}); choose another with --out.") from None
        return path
    _made.extend(part for part in (path, *path.parents) if not os.path.lexists(part))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the folder {path} cannot be made ({reason}); choose another with {option}.") from None
    try:
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        reason = error.strerror
        raise UserError(f"the folder {path} cannot be written to ({reason}); choose another with {option}.") from None
    return path


@contextmanager
def locked_results(path: Path) -> Iterator[Path]:
    """results_folder, which no other run writes to within the block. Raises UserError when one does."""
    from gla_jax.outputs.files import taken_message

    folder = results_folder(path)
    with folder_lock(folder, taken_message(folder)):
        yield folder


def results_file(path: Path, option: str = "--out", begins: bytes = b"", inputs: Iterable[Path | None] = ()) -> Path:
    """A file for results, whose folder is created where it is missing; before the work, like results_folder.

    Args:
        path: of the file.
        option: that names it.
        begins: how files of this command begin; one that begins otherwise, and is not empty, is not replaced.
        inputs: files that the command reads, which are not replaced either.

    Raises UserError.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file with {option}.")
    if not is_remote(path) and os.path.exists(path) and not os.path.isfile(path):  # even /dev/null would be replaced
        raise UserError(f"{path} is a pipe, a socket or a device; name a file with {option}.")
    if any(source and same_file(path, source) for source in inputs):
        raise UserError(f"{path} is read by this command and would be replaced; choose another {option}.")
    there = content_of(path, len(begins)) if begins and is_file(path) else b""
    if there and not there.startswith(begins):
        raise UserError(f"{path} exists and is no file of this command; choose another {option}, or remove it.")
    return results_folder(path.parent, option) / path.name


def remove_empty_folders() -> None:
    """Remove the folders that were made for results and got none: a lock alone, which no other run holds, is none."""
    while _made:
        folder = _made.pop(0)
        with suppress(OSError, UserError):  # it holds results, could not be made, or another run has begun there
            if [part.name for part in folder.iterdir()] == [LOCK_FILE]:
                with folder_lock(folder, "taken"):
                    (folder / LOCK_FILE).unlink()
            folder.rmdir()
