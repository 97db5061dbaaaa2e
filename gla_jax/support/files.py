"""Files that are whole or not there, and JSON that is read with one sentence for every fault."""

import json
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gla_jax.support.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

MAX_JSON_BYTES = 2**28  # far above any file that this program writes


def write_beside(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file beside its place and rename it: readers see the old one or the new one, never a part."""
    handle, beside = tempfile.mkstemp(prefix=f".{path.name[:40]}-", suffix=".unfinished", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


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
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise error(f"{what} {path} is not a file; {advice}.")
        if found.st_size > MAX_JSON_BYTES:
            raise error(f"{what} {path} is larger than {MAX_JSON_BYTES >> 20} MiB; {advice}.")
        return json.loads(Path(path).read_text("utf-8"), parse_constant=_refuse_constant)
    except OSError as fault:
        raise error(f"{what} {path} cannot be read ({fault.strerror or fault}); {advice}.") from None
    except RecursionError:
        raise error(f"{what} {path} is nested too deep to be read; {advice}.") from None
    except ValueError as fault:
        raise error(f"{what} {path} is not JSON ({fault}); {advice}.") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}, which JSON does not have")
