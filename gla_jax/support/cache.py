"""Folders where converted models, text embeddings and compiled programs are kept between runs."""

import os
import tempfile
import warnings
from functools import cache
from pathlib import Path


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
