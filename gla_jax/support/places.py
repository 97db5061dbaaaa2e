"""Paths and URLs alike: what lies on an object store is read and written through the methods of pathlib.Path.

universal_pathlib gives every store that fsspec knows those methods, and leaves local paths what they are. A whole
object appears at once or not at all, so nothing is written beside and renamed there; a lock is an object that is
created only where there is none.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from gla_jax.support.errors import UserError, first_line
from gla_jax.support.web import fetch_web, is_web, read_web, stamp_of_web

SECONDS_OF_A_LOCK = 60.0  # without a sign of life
SIGNS_IN_A_LOCK = 4
THREADS = 16  # that fetch objects at once: waiting, not work
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
STORES = (*EXTRAS, "hf", "memory")  # fsspec knows more, which neither lock nor list as these do
MAX_WEB_BYTES, MAX_FETCHED_BYTES = 2**28, 2**36  # from https:// into memory, and onto the disk


def is_url(text: Any) -> bool:
    """True for text such as s3://bucket/folder."""
    return isinstance(text, str) and re.match(r"[a-z][a-z0-9+]+://", text, re.IGNORECASE) is not None


def place(text: str | Path) -> Path:
    """A path, or for a URL an object with the methods of one; what is one already stays. Raises UserError."""
    if not is_url(text):
        return Path(text) if isinstance(text, str) else text
    scheme, _, rest = text.partition("://")
    text = f"{(scheme := scheme.lower())}://{rest}"
    if scheme in ("file", "local"):
        raise UserError(f"{text} is a file of this machine; write its path without {scheme}://.")
    if scheme not in STORES and not is_web(text):
        raise UserError(f"{text} names no store that is known; use s3://, gs://, hf:// or a path.")
    from upath import UPath

    try:
        path = UPath(text)
        if not is_web(text):  # it is read without fsspec
            path.fs  # noqa: B018 - loads the package for the store
    except ImportError as error:
        advice = f'; pip install "gla-jax[{EXTRAS[scheme]}]"' if scheme in EXTRAS else ""
        raise UserError(f"{text} needs a package that is missing ({error}){advice}.") from None
    except ValueError as error:
        raise UserError(f"{text} is no address of a store ({first_line(error)}); write s3://BUCKET/PATH.") from None
    return path


def is_remote(path: Any) -> bool:
    """True for what `place` makes of a URL."""
    return hasattr(path, "storage_options") and not isinstance(path, os.PathLike)


def is_file(path: Path) -> bool:
    """True for a file or object; False, unlike Path's, for a name that is too long, and for addresses of the web."""
    if is_remote(path):
        return not is_web(path) and path.is_file()
    return os.path.isfile(path)


def same_file(first: Path, second: Path) -> bool:
    """True for two names of one file or object that exists."""
    if is_remote(first) or is_remote(second):
        return str(first) == str(second)
    return os.path.exists(first) and os.path.exists(second) and os.path.samefile(first, second)


def is_folder(path: Path) -> bool:
    """True for a folder, or for the beginning of objects' names; False for a name that is too long."""
    return not is_web(path) and path.is_dir() if is_remote(path) else os.path.isdir(path)


def make_folder(path: Path) -> None:
    """Create a folder with its parents; on an object store there are none."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def objects_below(folder: Path) -> Iterator[Path]:
    """Every object of a folder and below it, by one listing, which then answers questions about them too."""
    start = len(folder.path.rstrip("/")) + 1
    return (folder / name[start:] for name in sorted(folder.fs.find(folder.path)))


def content_of(path: Path, most: int | None = None) -> bytes:
    """The content of a file or object, by one request; most: bytes that are read.

    At most MAX_WEB_BYTES come from an https:// address. Raises OSError.
    """
    if is_web(path):
        return read_web(str(path), MAX_WEB_BYTES)
    if is_remote(path):
        return path.fs.cat_file(path.path, start=0 if most else None, end=most)
    with path.open("rb") as file:
        return file.read(-1 if most is None else most)


def stamp(path: Path) -> Any:
    """A mark that changes when a file does: its size, and its time of change or the store's own mark of its content."""
    if is_web(path):
        return stamp_of_web(str(path))
    if not is_remote(path):
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]
    info = path.fs.info(path.path)
    mark = next(
        (info[key] for key in ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "created") if key in info), ""
    )
    return [info.get("size"), str(mark)]


def upload(path: Path, content: bytes, new: bool = False) -> bool:
    """Put an object in place, whole; new: only where there is none. False when there is one. Raises OSError."""
    try:
        path.fs.pipe_file(path.path, content, **({"mode": "create"} if new else {}))
    except FileExistsError:
        return False
    except OSError as error:
        if new and ("PreconditionFailed" in repr(error) or "412" in str(error)):
            return False
        raise
    finally:
        path.fs.invalidate_cache(str(path.parent.path))
    return True


@contextmanager
def held(folder: Path, message: str, name: str, wait: float = 0) -> Iterator[None]:
    """Hold a lock on an object store for a block: an object that a thread renews, dead a minute after its last sign.

    Locks are numbered. A dead one is never removed by others, which could hit its successor: the next number is created
    where there is none, and the highest number holds.

    Args:
        folder: what is locked.
        message: of the UserError when the lock is taken.
        name: of the lock.
        wait: seconds to wait for a lock that is taken.
    """
    mine, deadline = secrets.token_hex(8), time.monotonic() + wait
    while (number := _take(folder, name, mine)) is None:
        if time.monotonic() >= deadline:
            raise UserError(message)
        time.sleep(min(1.0, wait))
    lock, over = folder / f"{name}.{number}", threading.Event()

    def renew() -> None:
        dies, warned = time.monotonic() + SECONDS_OF_A_LOCK, False
        while not over.wait(SECONDS_OF_A_LOCK / SIGNS_IN_A_LOCK):
            try:
                upload(lock, _sign(mine))
                dies = time.monotonic() + SECONDS_OF_A_LOCK
            except Exception as error:  # a store that does not answer now may answer the next sign
                if time.monotonic() > dies and not warned:
                    warned = True
                    text = f"{folder} cannot be kept locked ({first_line(error)}): another run may write there too"
                    warnings.warn(text, stacklevel=2)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for old in range(number + 1):
            with suppress(OSError):  # it is gone, or dies by its age
                (folder / f"{name}.{old}").unlink()


def _sign(owner: str) -> bytes:
    return json.dumps({"owner": owner, "time": time.time()}).encode()


def _take(folder: Path, name: str, mine: str) -> int | None:
    """The number of the lock that is now mine, None when another holds it."""
    folder.fs.invalidate_cache(folder.path)
    numbers = [int(end) for path in folder.glob(f"{name}.*") if (end := path.name.rpartition(".")[2]).isdigit()]
    for number in numbers:
        with suppress(FileNotFoundError, ValueError, KeyError):
            if time.time() - json.loads((folder / f"{name}.{number}").read_bytes())["time"] < SECONDS_OF_A_LOCK:
                return None
    number = max(numbers, default=-1) + 1
    return number if upload(folder / f"{name}.{number}", _sign(mine), new=True) else None


def local_copy(path: Path, cache: Callable[[], Path]) -> Path:
    """A folder of an object store fetched into a folder of `cache()`, once for each content; a local one stays.

    Raises UserError when it cannot be fetched.
    """
    if not is_remote(path):
        return path
    if is_web(path):
        raise UserError(f"{path} is one file and no folder of an object store; convert its weights first.")
    names = list(objects_below(path))
    if not names:
        raise UserError(f"{path} does not exist or holds nothing; name a folder of the store.")
    content = [(str(name), stamp(name)) for name in names]
    target = cache() / hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
    if target.exists():
        return target
    beside = target.parent / f".{target.name}-{secrets.token_hex(4)}.unfinished"
    try:
        _fetch(path, names, beside)
        try:
            os.replace(beside, target)
        except OSError:
            if not target.exists():  # else another process was faster, and its copy is as good
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


@contextmanager
def on_disk(path: Path, beside: Iterable[str] = ()) -> Iterator[Path]:
    """A file or folder of an object store as a private copy that is removed after the block; a local one as it is.

    A file at an https:// address likewise. beside: names of files that come along with one file of a store, where they
    are. Raises UserError when there is nothing at the path.
    """
    if not is_remote(path):
        yield path
        return
    if is_web(path):
        with tempfile.TemporaryDirectory(prefix="gla-jax-") as home:
            copy = Path(home) / PurePosixPath(urlsplit(str(path)).path).name
            try:
                fetch_web(str(path), copy, MAX_FETCHED_BYTES)
            except OSError as error:
                raise UserError(f"{path} cannot be read ({error.strerror or error}).") from None
            yield copy
        return
    if path.is_file():
        home, names = path.parent, [path, *filter(is_file, (path.parent / name for name in beside))]
    else:
        home, names = path, list(objects_below(path))
    if not names:
        raise UserError(f"{path} does not exist or holds nothing; name a file or folder of the store.")
    with tempfile.TemporaryDirectory(prefix="gla-jax-") as private:
        copy = Path(private) / home.name
        _fetch(home, names, copy)
        yield copy if home == path else copy / path.name


def _fetch(folder: Path, names: Sequence[Path], target: Path) -> None:
    """Fetch objects of a folder to a place on disk. Raises UserError for names that leave it."""

    def fetch(name: Path) -> None:
        local = target / name.path[len(folder.path.rstrip("/")) + 1 :]
        if not local.resolve().is_relative_to(target.resolve()):
            raise UserError(f"{name} would be written outside its folder; name another model or copy.")
        local.parent.mkdir(parents=True, exist_ok=True)
        name.fs.get_file(name.path, str(local))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fetch, names))


@contextmanager
def written_on_disk(folder: Path, last: str = "") -> Iterator[Path]:
    """A folder to write to: a local one itself, else a private one whose files go to the store when the block ends.

    last: the file without which readers take the folder for none; it goes when all others are there.
    """
    if not is_remote(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="gla-jax-") as home:
        yield Path(home)
        put_files(Path(home), folder, last)


def put_files(home: Path, folder: Path, last: str = "") -> None:
    """Copy the files of a folder on disk to a store, each whole or not at all; last: goes when all others are there."""
    files = [path.relative_to(home).as_posix() for path in sorted(home.rglob("*")) if path.is_file()]

    def put(name: str) -> None:
        folder.fs.put_file(str(home / name), f"{folder.path.rstrip('/')}/{name}")

    try:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(put, (name for name in files if name != last)))
        for name in files:
            if name == last:
                put(name)
    finally:
        folder.fs.invalidate_cache()


def check_writable(folder: Path) -> None:
    """Raise OSError, or an error of the store's own, where objects cannot be written below a folder of a store."""
    probe = folder / f".gla-jax-{secrets.token_hex(4)}"
    upload(probe, b"")
    probe.unlink()
