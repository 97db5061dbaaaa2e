"""Before the work of a command: its folder can be written to, JAX has its devices."""

import os
import tempfile
from pathlib import Path

from gla_jax.support.errors import UserError


def results_folder(path: Path) -> Path:
    """A folder for results, created where it is missing; that it can be written to is tried before the work."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the folder {path} cannot be made ({reason}); choose another with --out.") from None
    try:
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        reason = error.strerror
        raise UserError(f"the folder {path} cannot be written to ({reason}); choose another with --out.") from None
    return path


def results_file(path: Path) -> Path:
    """A file for results, whose folder is created where it is missing; before the work, like results_folder."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file with --out.")
    return results_folder(path.parent) / path.name


def check_devices() -> None:
    """Let JAX find its devices. Raises UserError with JAX's own reason when it cannot."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX 0.10 asserts where the only platform lacks its plugin
        platforms = os.environ.get("JAX_PLATFORMS", "")
        reason = str(error).partition("\n")[0].rstrip(".") or "its plugin is missing or sees no device"
        raise UserError(
            f"JAX cannot use the platform {platforms!r} of JAX_PLATFORMS ({reason}); install its plugin, as in "
            'pip install "jax[cuda13]" or "jax[tpu]", or set JAX_PLATFORMS=cpu.'
        ) from None


def prepare_jax() -> None:
    """Check the devices, and keep compiled programs, so that only the first run waits for the compiler."""
    import jax

    from gla_jax.support.cache import usable_cache

    check_devices()
    if jax.config.jax_compilation_cache_dir is None and (folder := usable_cache("programs")):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
