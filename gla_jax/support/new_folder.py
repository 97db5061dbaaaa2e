"""A folder that appears whole or not at all, whatever stops the run that writes it: an error, Ctrl-C, a signal."""

import os
import re
import secrets
import shutil
import signal
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from gla_jax.support.errors import ModelError

try:
    import fcntl
except ImportError:  # Windows: what a killed run left there stays
    fcntl = None

LONGEST_NAME = 255  # bytes, on every usual file system
SECONDS_TO_LOCK = 60  # far more than a run needs from making its folder to locking it
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def check_new_folder(target: Path) -> None:
    """Raise ModelError when target exists and is not an empty folder, or cannot be made."""
    target = Path(target).absolute()
    try:
        if max(len(os.fsencode(part)) for part in target.parts) > LONGEST_NAME:
            raise ModelError(f"{target} cannot be made: a name in it is too long; name another folder.")
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ModelError(f"{target} exists already; name a folder that does not, or remove it first.")
        home = next(parent for parent in target.parents if parent.exists())
        if not home.is_dir():
            raise ModelError(f"{target} cannot be made: {home} is a file; name another folder.")
        # Only trying tells: the superuser may write everywhere but, say, not in /proc.
        with tempfile.TemporaryDirectory(prefix=".gla-jax-", dir=home):
            pass
    except OSError as error:
        raise _cannot_be_made(target, error) from error


@contextmanager
def folder_written_beside(target: Path) -> Iterator[Path]:
    """A new folder beside target that takes its place when the block ends well and vanishes when it does not.

    So do the parents of target that are made for it. In the main thread SIGTERM and SIGHUP end the block as Ctrl-C
    does; none is heard while all is removed. What runs killed a minute ago or more left beside target is removed.
    Raises ModelError when target is taken or cannot be made.
    """
    target = Path(target).absolute()
    check_new_folder(target)
    made = [parent for parent in target.parents if not parent.exists()]
    stem = f".{target.name[:40]}-"
    beside = target.parent / f"{stem}{secrets.token_hex(4)}.unfinished"
    with _signals_raise() as hold_signals:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_unfinished(target.parent, stem)
            beside.mkdir()
            with _locked(beside):
                yield beside
                if target.exists():
                    target.rmdir()
                os.replace(beside, target)
        except OSError as error:  # a full disk, too
            raise _cannot_be_made(target, error) from error
        finally:
            hold_signals()
            shutil.rmtree(beside, ignore_errors=True)
            if not target.exists():
                for parent in made:
                    with suppress(OSError):  # not there yet, or somebody else put something in it
                        parent.rmdir()


def _cannot_be_made(target: Path, error: OSError) -> ModelError:
    return ModelError(f"{target} cannot be made ({error.strerror or error}); name another folder.")


def to_its_end(work: Callable[..., None], *arguments: Any) -> None:
    """Call work in a thread and return when it has ended, even where a signal interrupts the waiting.

    For libraries that work in threads of their own, which an exception in the midst of it would leave behind.
    """
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work, *arguments)
        try:
            done.result()
        except BaseException:
            while not done.done():
                with suppress(KeyboardInterrupt, SystemExit):  # an impatient second signal
                    wait([done])
            raise


@contextmanager
def _signals_raise() -> Iterator[Callable[[], None]]:
    """Let SIGTERM and SIGHUP raise as Ctrl-C does; from a call of what is yielded to the end, no signal does."""
    held = False

    def hold() -> None:
        nonlocal held
        held = True

    def stop(number: int, frame: FrameType | None) -> None:
        if not held:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    # Signals reach the main thread alone, and one that somebody handles or ignores (nohup does) is left to them.
    usual = (signal.SIG_DFL, signal.default_int_handler)
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in STOPPING if main and signal.getsignal(number) in usual}
    try:
        for number in before:
            signal.signal(number, stop)
        yield hold
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Mark a folder as being written: the lock falls with the process, however that ends."""
    handle = _lock(folder)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _lock(folder: Path) -> int | None:
    """A locked handle of a folder, None where another process holds the lock or there are none."""
    if fcntl is None:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _remove_unfinished(parent: Path, stem: str) -> None:
    """Remove the folders that runs killed while they wrote beside have left; those of running ones are locked."""
    name = re.compile(re.escape(stem) + r"[0-9a-f]{8}\.unfinished")
    for folder in parent.iterdir():
        if name.fullmatch(folder.name) and _is_old_folder(folder) and (handle := _lock(folder)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def _is_old_folder(path: Path) -> bool:
    """Whether path is a folder old enough that a run which still writes it has its lock."""
    try:
        found = path.lstat()
    except OSError:  # gone meanwhile
        return False
    return stat.S_ISDIR(found.st_mode) and time.time() - found.st_mtime > SECONDS_TO_LOCK
