"""Locks on folders, which the operating system releases when the process that holds one ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gla_jax.support.errors import UserError

LOCK_FILE = ".gla-jax.lock"


@contextmanager
def folder_lock(folder: Path, message: str, name: str = LOCK_FILE) -> Iterator[None]:
    """Hold the lock of a folder for a block, without waiting for it; a folder that does not exist is created.

    The empty lock file stays: removing it could leave two processes with a lock on two files of one name.

    Args:
        folder: the folder to lock.
        message: the sentence of the error when the lock is taken.
        name: lock file; processes that share a folder each take one of a name of their own.

    Raises:
        UserError: another process, or another block of this one, holds the lock.
        OSError: the folder or its lock file cannot be created.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / name, thread_local=False)  # a generator may be closed by another thread
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(message) from None
    try:
        yield
    finally:
        lock.release()
