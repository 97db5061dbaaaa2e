"""Programs compiled, run and timed: each gives a row of the table."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gla_jax.bench.memory import ProgramBytes, device_peak, host_peak, program_bytes
from gla_jax.support.arrays import Array
from gla_jax.support.places import written_on_disk

CEILING_SIZES = {"cpu": (512, 1024, 2048)}
ACCELERATOR_CEILING_SIZES = (2048, 4096, 8192)
MAX_REPEAT_SECONDS = 60.0  # no further repeats when those before took longer together


@dataclass(frozen=True)
class Row:
    """One measurement.

    windows and tokens of the image, without padding; flops: operations by predict/cost.py's formulas in each dtype;
    ideal: seconds that they take at the ceiling; seconds: one a repeat, empty where the program was not run because it
    needs more than the memory limit. compile_seconds: of lowering and compiling; of a part of several programs the
    first call less the median one. program: XLA's plan for one device, None for several programs; host_before and
    host_peak: resident memory of this process before and while it ran, None where the system has no such figures;
    device_peak: of the accelerator, None where it was higher before.
    """

    part: str
    name: str
    windows: int
    tokens: int
    flops: dict[str, float]
    ideal: float
    seconds: tuple[float, ...] = ()
    compile_seconds: float | None = None
    program: ProgramBytes | None = None
    host_before: int | None = None
    host_peak: int | None = None
    device_peak: int | None = None

    @property
    def stopped(self) -> bool:
        """True if the program was not run because it needs more than the memory limit."""
        return not self.seconds

    @property
    def median(self) -> float:
        """The median of the seconds; NaN when stopped."""
        return median(self.seconds) if self.seconds else float("nan")

    @property
    def total_flops(self) -> float:
        """The operations in all dtypes."""
        return sum(self.flops.values())

    @property
    def share_of_ceiling(self) -> float:
        """The speed as a share of the ceiling; NaN when stopped, above 1 when the ceiling was measured too low."""
        return self.ideal / self.median

    def as_dict(self) -> dict[str, Any]:
        """The row of bench.json; figures of a stopped program are None."""
        figures = {
            "seconds_median": self.median,
            "images_per_second": 1 / self.median,
            "flops_per_second": self.total_flops / self.median,
            "share_of_ceiling": self.share_of_ceiling,
        }
        fields = asdict(self) | {"seconds": list(self.seconds), "stopped": self.stopped}
        return fields | (dict.fromkeys(figures) if self.stopped else figures)


@dataclass(frozen=True)
class Bench:
    """Conditions that all measurements share; ceiling: operations a second of a matrix product in each dtype."""

    repeats: int
    memory_limit: float
    ceiling: dict[str, float] = field(default_factory=dict)
    profile: Path | None = None

    def ideal(self, flops: Mapping[str, float]) -> float:
        """Seconds of some operations at the ceiling."""
        return sum(count / self.ceiling[dtype] for dtype, count in flops.items())

    def on_devices(self, count: int) -> "Bench":
        """The same for several devices: accelerators add up, devices of one processor share its cores."""
        factor = 1 if jax.devices()[0].platform == "cpu" else count
        return replace(self, ceiling={dtype: factor * value for dtype, value in self.ceiling.items()})

    def measure(self, row: Row, run: Callable[[], Any]) -> Row:
        """The row with its measurements: warm up, then run and time.

        With self.profile one more run is traced, so that tracing slows none that is timed.
        """
        device = jax.devices()[0]
        highest_before = device_peak(device)
        (first,) = repeated(run, 1)
        host_peak()  # a new peak begins, which is what is resident now
        before = host_peak()
        seconds = repeated(run, self.repeats)
        peak, highest = host_peak(), device_peak(device)
        if self.profile is not None:
            name = f"{row.part} {row.name}".replace(" ", "-")
            with written_on_disk(self.profile) as home, jax.profiler.trace(home / name):
                jax.block_until_ready(run())
        if row.compile_seconds is None:
            row = replace(row, compile_seconds=max(first - median(seconds), 0.0))
        return replace(
            row,
            seconds=seconds,
            host_before=before,
            host_peak=peak,
            device_peak=highest if highest != highest_before else None,
        )

    def measure_program(self, row: Row, function: Callable, *arguments: Any) -> Row:
        """Compile a jitted function, and run it unless it needs more memory than the limit."""
        begun = time.perf_counter()
        program = function.lower(*arguments).compile()
        row = replace(row, compile_seconds=time.perf_counter() - begun, program=program_bytes(program))
        if row.program is not None and row.program.total > self.memory_limit:
            return row
        return self.measure(row, lambda: program(*arguments))


def repeated(run: Callable[[], Any], repeats: int) -> tuple[float, ...]:
    """Seconds of up to `repeats` runs, at least one; no more of them when they have taken a minute together."""
    taken: list[float] = []
    while len(taken) < repeats and sum(taken) < MAX_REPEAT_SECONDS:
        begun = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - begun)
    return tuple(taken)


def measure_ceiling(dtype: str, sizes: Sequence[int], repeats: int) -> float:
    """Operations a second of the best square matrix product of some sizes, in the precision that towers run in."""
    best = 0.0
    for size in sizes:
        matrix = random_array((size, size), dtype)
        product = jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest")).lower(matrix, matrix).compile()
        best = max(best, 2 * size**3 / min(repeated(lambda run=product, m=matrix: run(m, m), repeats)))
    return best


def random_array(shape: tuple[int, ...], dtype: str = "float32") -> Array:
    """Normal noise on the device."""
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32), dtype)
