"""Files that are whole or not there, and JSON that is read with one sentence for every fault."""

import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gla_jax.support.errors import UserError
from gla_jax.support.locks import folder_lock

if TYPE_CHECKING:
    from PIL import Image

SECONDS_TO_LOCK = 60  # far more than a run needs from making a folder to locking it
MAX_JSON_BYTES = 2**28  # far above any file that this program writes


def unfinished(path: Path) -> Path:
    """New hidden name beside a file or folder, for what is renamed to it once it is whole."""
    return path.parent / f".{path.name[:40]}-{secrets.token_hex(4)}.unfinished"


def write_beside(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file beside its place and rename it: readers see the old one or the new one, never a part."""
    beside = unfinished(path)
    try:
        with beside.open("xb") as file:
            write(file)
        os.replace(beside, path)
    except BaseException as error:
        with suppress(OSError):
            beside.unlink()
        if isinstance(error, OSError):  # a full disk's names no file, others name the hidden one
            error.filename = str(path)
        raise


def remove_leftovers(folder: Path, names: str = "*", min_age: float = SECONDS_TO_LOCK) -> None:
    """Remove what killed runs left half-written in a folder; what cannot be removed stays without a word.

    Folders that a running process still writes are locked and stay.

    Args:
        folder: where to look; its subfolders are not searched.
        names: glob pattern of the first 40 characters of the names of the files and folders that were written.
        min_age: seconds since the last change; 0 where a lock on `folder` keeps every other writer away.
    """
    for path in folder.glob(f".{names}-????????.unfinished"):
        with suppress(OSError, UserError):  # removed meanwhile, not ours to remove, or in use
            status = path.lstat()
            if time.time() - status.st_mtime < min_age:
                continue
            if stat.S_ISDIR(status.st_mode):
                with folder_lock(path, f"{path} is in use."):
                    pass
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def write_text(path: Path, text: str) -> None:
    """A UTF-8 text file, whole or not there."""
    write_beside(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: Any, indent: int = 1) -> None:
    """A JSON file, whole or not there. Raises ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")


def write_png(path: Path, image: "Image.Image") -> None:
    """A PNG file, whole or not there."""
    write_beside(path, lambda file: image.save(file, format="PNG", optimize=False))


def read_json(path: Path, what: str, advice: str, error: type[UserError] = UserError) -> Any:
    """The content of a JSON file; every fault is one sentence.

    Args:
        path: a regular file.
        what: names the file in messages, as in "the preset".
        advice: ends the message, as in "write it with gla-jax tune".
        error: the kind of UserError that is raised.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{what} {path} is not a file; {advice}.")
        if status.st_size > MAX_JSON_BYTES:
            raise error(f"{what} {path} is larger than {MAX_JSON_BYTES >> 20} MiB; {advice}.")
        text = Path(path).read_text("utf-8-sig")  # some editors put a byte order mark in front
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=without_repeats)
    except OSError as fault:
        raise error(f"{what} {path} cannot be read ({fault.strerror or fault}); {advice}.") from None
    except RecursionError:
        raise error(f"{what} {path} is nested too deep to be read; {advice}.") from None
    except ValueError as fault:
        raise error(f"{what} {path} is not JSON ({fault}); {advice}.") from None


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a JSON file's pairs. Raises ValueError for a name that occurs twice: only the last would count."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {next(name for name in content if names.count(name) > 1)[:80]!a} twice")
    return content


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}, which JSON does not have")
