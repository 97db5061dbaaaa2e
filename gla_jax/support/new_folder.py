"""A folder that appears whole or not at all, however the run that writes it ends: an error, Ctrl-C, a signal."""

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gla_jax.support.errors import ModelError
from gla_jax.support.files import LOCK_FILE, folder_lock, remove_leftovers, unfinished
from gla_jax.support.interrupts import signals_held, signals_raise
from gla_jax.support.places import check_writable, is_remote, objects_below, written_on_disk

LONGEST_NAME = 255  # bytes, on every usual file system


def check_new_folder(target: Path) -> None:
    """Raise ModelError when target exists and is not an empty folder, or cannot be made."""
    if is_remote(target):
        try:
            target.fs.invalidate_cache()
            if any(not path.name.startswith(LOCK_FILE) for path in objects_below(target)):
                raise ModelError(f"{target} exists already; name a folder that does not, or remove it first.")
            check_writable(target)
        except OSError as error:
            raise _cannot_be_made(target, error) from error
        return
    target = target.absolute()
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
def folder_written_beside(target: Path, last: str = "") -> Iterator[Path]:
    """A new folder beside target that takes its place when the block ends well and vanishes when it does not.

    So do the parents of target that are made for it. In the main thread SIGTERM and SIGHUP end the block as Ctrl-C
    does. What runs killed a minute ago or more left beside target is removed.
    On an object store it is a private one on disk, whose files are copied at the end; last: the file that goes when all
    others are there, and without which the folder is none.
    Raises ModelError when target is taken or cannot be made.
    """
    if is_remote(target):
        with signals_raise(), folder_lock(target, f"{target} is written by another run; name another folder."):
            check_new_folder(target)
            try:
                with written_on_disk(target, last) as home:
                    yield home
            except BaseException as error:
                with signals_held(), suppress(Exception):  # a store that failed may fail here too
                    target.fs.rm(target.path, recursive=True)
                if isinstance(error, OSError):
                    raise _cannot_be_made(target, error) from error
                raise
        return
    target = target.absolute()
    check_new_folder(target)
    new_parents = [parent for parent in target.parents if not parent.exists()]
    beside = unfinished(target)
    with signals_raise():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(target.parent, glob.escape(target.name[:40]))
            beside.mkdir()
            with folder_lock(beside, f"{beside} is in use."):  # until then its age protects it
                yield beside
            (beside / LOCK_FILE).unlink(missing_ok=True)
            if target.exists():
                target.rmdir()
            os.replace(beside, target)
        except OSError as error:  # a full disk, too
            raise _cannot_be_made(target, error) from error
        finally:
            with signals_held():
                shutil.rmtree(beside, ignore_errors=True)
                if not target.exists():
                    for parent in new_parents:
                        with suppress(OSError):  # not there yet, or somebody else put something in it
                            parent.rmdir()


def _cannot_be_made(target: Path, error: OSError) -> ModelError:
    return ModelError(f"{target} cannot be made ({error.strerror or error}); name another folder.")
