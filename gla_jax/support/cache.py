"""Where converted models and text features are kept between runs."""

import os
from pathlib import Path


def cache_folder(kind: str, root: Path | str | None = None) -> Path:
    """The folder of one kind of cached file ("models", "text"), which need not exist yet.

    root, else $GLA_JAX_CACHE, else gla-jax under $XDG_CACHE_HOME, else under ~/.cache.
    """
    root = root or os.environ.get("GLA_JAX_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "gla-jax"
    return Path(root).expanduser().absolute() / kind
