"""The device's part in the towers: the form of their attention, and windows that go through them together."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gla_jax.config import ACCELERATOR, PLATFORMS, PlatformNumbers

# Bytes of a chip by the first words of JAX's device_kind, for a device that does not say: one that only compiles.
CHIP_MEMORY = {
    "TPU v4": 32 * 2**30,
    "TPU v5 lite": 16 * 2**30,  # v5e; what else begins with v5 is v5p
    "TPU v5": 95 * 2**30,
    "TPU v6 lite": 32 * 2**30,
    "NVIDIA H100": 80 * 10**9,
}
UNKNOWN_MEMORY = 16 * 2**30
SHARE = 1 / 16  # of the memory, for what the towers hold beside weights and results
MAX_BATCH = 32  # windows; the chips are busy by then


def platform_of(device: jax.Device) -> str:
    """The device's row of PLATFORMS: its platform, "cuda" for NVIDIA's from Ampere on, which have fused attention."""
    major = str(getattr(device, "compute_capability", "")).partition(".")[0]
    return "cuda" if major.isdecimal() and int(major) >= 8 else device.platform


def platform_numbers(device: jax.Device) -> PlatformNumbers:
    """The row of PLATFORMS that holds for a device."""
    return PLATFORMS.get(platform_of(device), ACCELERATOR)


def device_memory(device: jax.Device) -> int:
    """Bytes of memory that JAX may use on a device; by its name, or UNKNOWN_MEMORY, where it does not say."""
    try:
        stats = device.memory_stats() or {}
    except jax.errors.JaxRuntimeError:  # a device that only compiles
        stats = {}
    named = (size for kind, size in CHIP_MEMORY.items() if device.device_kind.startswith(kind))
    return stats.get("bytes_limit") or next(named, UNKNOWN_MEMORY)


def window_bytes(spec: Any, crop: int, dtype: str) -> int:
    """Bytes that a window takes at most in a tower, attention scores left out, of the tower's spec.

    t = prefix + (crop / patch)^2 tokens: two arrays of the MLP's hidden units, of which a gated one has twice as
    many, and one of the width (what XLA plans for H100; for v5e it is less, eval/RESULTS.md).
    """
    tokens = spec.prefix_tokens + (crop // spec.patch_size) ** 2
    hidden = spec.mlp_width * (2 if spec.activation == "swiglu" else 1)
    return tokens * (2 * hidden + spec.width) * jnp.dtype(dtype).itemsize


def tower_batch(specs: Sequence[Any], crop: int, dtype: str, memory: int) -> int:
    """Windows that go through the towers together, 1 to MAX_BATCH: as many as take SHARE of a chip's memory.

    Args:
        specs: of the towers, which run one after the other.
        crop: side of a window in pixels.
        dtype: of the towers.
        memory: of the chip, in bytes.
    """
    largest = max(window_bytes(spec, crop, dtype) for spec in specs)
    return min(max(int(SHARE * memory) // largest, 1), MAX_BATCH)


def even_batch(count: int, limit: int) -> int:
    """The largest batch up to the limit that divides `count` windows, so that one program runs all of them.

    Where that is no more than half of the limit, the limit: the rest is a program of its own.
    """
    divisor = next(size for size in range(min(count, limit), 0, -1) if count % size == 0)
    return divisor if divisor > limit // 2 or divisor == count else limit


def step_batch(count: int, limit: int) -> int:
    """Windows of one step of an image that goes through in steps: the fewest equal steps that hold `count` windows.

    A multiple of an eighth of the limit, so that images of many sizes share a few programs.
    """
    steps, unit = -(-count // limit), max(limit // 8, 1)
    return min(-(-count // (steps * unit)) * unit, limit)


def padded_to_steps(count: int, limit: int) -> int:
    """`count` windows filled up to whole steps."""
    size = step_batch(count, limit)
    return -(-count // size) * size
