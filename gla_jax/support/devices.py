"""JAX made ready for a command: its devices found, its programs kept."""

import os

from gla_jax.support.errors import UserError


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

    from gla_jax.support.files import usable_cache

    check_devices()
    if jax.config.jax_compilation_cache_dir is None and (folder := usable_cache("programs")):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
