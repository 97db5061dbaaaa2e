"""Files that are whole or not there, locks on folders, cache folders, and JSON read with a sentence for each fault."""

import io
import json
import os
import secrets
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any

from gla_jax.support import places
from gla_jax.support.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

LOCK_FILE = ".gla-jax.lock"
NO_TEXTS: Mapping[str, str] = MappingProxyType({})


@contextmanager
def folder_lock(folder: Path, message: str, name: str = LOCK_FILE, wait: float = 0) -> Iterator[None]:
    """Hold the lock of a folder for a block; a folder that does not exist is created.

    The empty lock file stays: removing it could leave two processes with a lock on two files of one name.

    Args:
        folder: the folder to lock.
        message: the sentence of the error when the lock is taken.
        name: lock file; processes that share a folder each take one of a name of their own.
        wait: seconds to wait for a lock that is taken.

    Raises:
        UserError: another process, or another block of this one, holds the lock.
        OSError: the folder or its lock file cannot be created.
    """
    from filelock import FileLock, Timeout

    if places.is_remote(folder):
        with places.held(folder, message, name, wait):
            yield
        return
    lock = FileLock(folder / name, thread_local=False)  # a generator may be closed by another thread
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        raise UserError(message) from None
    try:
        yield
    finally:
        lock.release()


def cache_folder(kind: str, root: Path | str | None = None) -> Path:
    """The folder of one kind of cached file ("models", "text", "programs"), which need not exist yet.

    root, else $GLA_JAX_CACHE, else gla-jax under $XDG_CACHE_HOME, else under ~/.cache.
    """
    home = os.path.expanduser("~")
    # An unknown user without $HOME has no home folder; as in containers, the root of the file system stands for it.
    home = home if os.path.isabs(home) else os.path.sep
    root = root or os.environ.get("GLA_JAX_CACHE")
    root = root or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache"), "gla-jax")
    return Path(os.path.abspath(os.path.expanduser(root))) / kind


def usable_cache(kind: str, root: Path | str | None = None) -> Path | None:
    """The cache folder of one kind, created where missing; None after one warning when nothing can be kept there."""
    folder = cache_folder(kind, root)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # only trying tells, for the superuser and in a read-only container
    except OSError as error:
        warn_unusable(folder, error)
        return None
    return folder


def warn_unusable(folder: Path, error: OSError) -> None:
    """Warn, once in a process, that nothing can be kept in the cache that a folder of one kind belongs to."""
    _warn_once(folder.parent, error.strerror or str(error))


@cache
def _warn_once(root: Path, reason: str) -> None:
    warnings.warn(
        f"nothing is kept for the next run, as the cache folder {root} cannot be written to ({reason}); set "
        "GLA_JAX_CACHE to a folder that can.",
        stacklevel=4,
    )


SECONDS_TO_LOCK = 60  # far more than a run needs from making a folder to locking it
MAX_JSON_BYTES = 2**28  # far above any file that this program writes


def unfinished(path: Path) -> Path:
    """New hidden name beside a file or folder, for what is renamed to it once it is whole."""
    return path.parent / f".{path.name[:40]}-{secrets.token_hex(4)}.unfinished"


def write_beside(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file beside its place and rename it: readers see the old one or the new one, never a part."""
    if places.is_remote(path):
        content = io.BytesIO()
        write(content)
        places.upload(path, content.getvalue())
        return
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
    for path in () if places.is_remote(folder) else folder.glob(f".{names}-????????.unfinished"):
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


def write_png(path: Path, image: "Image.Image", texts: Mapping[str, str] = NO_TEXTS) -> None:
    """A PNG file, whole or not there; texts: values of tEXt chunks by their keys."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    write_beside(path, lambda file: image.save(file, format="PNG", optimize=False, pnginfo=info))


def read_json(
    path: Path, what: str, advice: str, error: type[UserError] = UserError, max_bytes: int = MAX_JSON_BYTES
) -> Any:
    """The content of a JSON file; every fault is one sentence.

    Args:
        path: a regular file.
        what: names the file in messages, as in "the preset".
        advice: ends the message, as in "write it with gla-jax tune".
        error: the kind of UserError that is raised.
        max_bytes: a larger file is refused; in memory it can take sixty times as much.
    """
    try:
        path = places.place(path)
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{what} {path} is not a file; {advice}.")
        if status.st_size > max_bytes:
            raise error(f"{what} {path} is larger than {max_bytes >> 20} MiB; {advice}.")
        text = path.read_text("utf-8-sig")  # some editors put a byte order mark in front
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
