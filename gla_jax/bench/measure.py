"""The speed of a model on this machine: seconds, operations a second, memory and compile time of every part."""

import os
import platform
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from gla_jax.bench.memory import machine_memory
from gla_jax.bench.options import Options, report_head
from gla_jax.bench.parts import Subject, agreement, bench_mesh, load_model, part_rows, sweep_rows
from gla_jax.bench.steps import step_rows
from gla_jax.bench.timing import ACCELERATOR_CEILING_SIZES, CEILING_SIZES, Bench, Row, measure_ceiling
from gla_jax.support.progress import track

FORMAT = "gla-jax bench 1"


@dataclass(frozen=True)
class Report:
    """All measurements, and in head the machine, model and settings that they hold for."""

    head: dict[str, Any]
    parts: tuple[Row, ...]
    sweep: tuple[Row, ...]

    def as_dict(self) -> dict[str, Any]:
        """The whole of bench.json."""
        rows = {"parts": [row.as_dict() for row in self.parts], "sweep": [row.as_dict() for row in self.sweep]}
        return self.head | rows


def run_bench(options: Options, command: str, offline: bool = False) -> Report:
    """Load or draw the towers and measure the chosen parts; command: as it was typed, for the record."""
    if options.devices > 1:
        with suppress(RuntimeError):  # too late once JAX has counted the devices: then there are those it counted
            jax.config.update("jax_num_cpu_devices", options.devices)
        bench_mesh(options.devices)  # fails before the weights are loaded
    subject = Subject.of(options, load_model(options, offline))
    params, device = subject.model.params, jax.devices()[0]
    sizes = CEILING_SIZES.get(device.platform, ACCELERATOR_CEILING_SIZES)
    dtypes = sorted({"float32", options.config.dtype})
    limit = options.memory_limit or machine_memory(device) / 2
    ceiling = {dtype: measure_ceiling(dtype, sizes, options.repeats) for dtype in track(dtypes, "ceilings measured")}
    bench = Bench(options.repeats, limit, ceiling, options.profile)
    runs = [*part_rows(subject, bench), *(step_rows(subject, bench) if "steps" in options.parts else ())]
    parts = tuple(run() for run in track(runs, "parts measured"))
    sweep = tuple(sweep_rows(subject, replace(bench, profile=None)))
    head = {
        **report_head(FORMAT, command),
        "machine": machine(options.devices),
        **options.described(params, subject.model.config),
        "repeats": options.repeats,
        "memory_limit": int(limit),
        "ceiling": {
            "sizes": list(sizes),
            "flops_per_second": ceiling,
            # Then other work slowed the machine down while the ceiling was measured.
            "exceeded": any(row.share_of_ceiling > 1 for row in (*parts, *sweep)),
        },
        "agreement": agreement(subject, offline),
    }
    return Report(head, parts, sweep)


def machine(devices: int) -> dict[str, Any]:
    """The machine that the figures hold for: device, cores, memory and versions."""
    device = jax.devices()[0]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": devices,
        "processor": next(names, platform.machine()),
        "cores": os.cpu_count(),
        "memory": machine_memory(device),
        "system": platform.platform(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "program_cache": jax.config.jax_compilation_cache_dir,  # it shortens compile_seconds
    }
