"""Memory of work: the peak of this process, the peak of a device, and what XLA plans for a program."""

import os
from dataclasses import dataclass
from pathlib import Path

import jax

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
GIB = 2**30
CLEAR_PEAK = "5"  # Linux forgets the peak of resident memory when this is written to CLEAR


@dataclass(frozen=True)
class ProgramBytes:
    """Memory of a compiled program on one device by XLA's memory_analysis, in bytes."""

    temporary: int
    arguments: int
    output: int

    @property
    def total(self) -> int:
        """All of it at once."""
        return self.temporary + self.arguments + self.output


def program_bytes(program: jax.stages.Compiled) -> ProgramBytes | None:
    """Temporary, argument and output bytes of a compiled program; None where the platform has no such figures."""
    sizes = program.memory_analysis()
    if sizes is None:
        return None
    return ProgramBytes(sizes.temp_size_in_bytes, sizes.argument_size_in_bytes, sizes.output_size_in_bytes)


def host_peak() -> int | None:
    """The peak of this process's resident memory since the last call, in bytes; None where Linux's way is missing."""
    try:
        lines = STATUS.read_text().splitlines()
        CLEAR.write_text(CLEAR_PEAK)
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return None


def device_peak(device: jax.Device) -> int | None:
    """The most bytes in use on a device since the process began; None on processors."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


def machine_memory(device: jax.Device) -> int:
    """Bytes a program can have: an accelerator's own limit, else the machine's memory."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
