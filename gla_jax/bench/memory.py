"""How much memory work takes: the peak of this process, the peak of a device, and what XLA plans for a program."""

import os
from dataclasses import dataclass
from pathlib import Path

import jax

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
GIB = 2**30
CLEAR_PEAK = "5"  # what Linux takes as "forget the peak of resident memory"


@dataclass(frozen=True)
class ProgramBytes:
    """What XLA's memory_analysis says of a compiled program on one device, in bytes."""

    temporary: int
    arguments: int
    output: int

    @property
    def total(self) -> int:
        """All of it at once."""
        return self.temporary + self.arguments + self.output


def program_bytes(program: jax.stages.Compiled) -> ProgramBytes | None:
    """Temporary, argument and output bytes of a compiled program; None where the platform does not tell."""
    found = program.memory_analysis()
    if found is None:
        return None
    return ProgramBytes(found.temp_size_in_bytes, found.argument_size_in_bytes, found.output_size_in_bytes)


def forget_host_peak() -> bool:
    """Begin a new peak of this process's resident memory; False where only Linux's way is missing."""
    try:
        CLEAR.write_text(CLEAR_PEAK)
    except OSError:
        return False
    return True


def host_peak() -> int | None:
    """The peak of this process's resident memory since forget_host_peak, in bytes; None where it is not told."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return None if kilobytes is None else int(kilobytes) * 1024


def device_peak(device: jax.Device) -> int | None:
    """The most bytes in use on a device since the process began; None where it is not told (processors)."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


def machine_memory(device: jax.Device) -> int:
    """Bytes a program can have: an accelerator's own limit, else the machine's memory."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
