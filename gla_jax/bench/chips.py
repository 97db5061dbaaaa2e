"""Chips that a program can be compiled for without having them: published peaks, and XLA's compile-only devices."""

import importlib.util
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache

from gla_jax.bench.memory import GIB
from gla_jax.bench.products import Way
from gla_jax.settings.options import check_choice
from gla_jax.support.errors import UserError, first_line

MAX_GPUS = 8  # of one host; links between hosts are another machine


@dataclass(frozen=True)
class Chip:
    """One chip: name and platform ("tpu" or "gpu"); its memory in bytes; peaks a second.

    peaks: operations of dense products by unit; bandwidth: bytes of its memory; link: bytes that leave it over all its
    links, half of the published figure for both directions; source: of the figures.
    """

    name: str
    platform: str
    memory: int
    peaks: dict[str, float]
    bandwidth: float
    link: float
    source: str

    def seconds(self, way: Way, flops: float) -> float:
        """Seconds of some operations at the peak of their unit, every pass counted."""
        return flops * way.passes / self.peaks[way.unit]


TPU_PAGES = "https://cloud.google.com/tpu/docs/"
CHIPS = {
    f"{chip.platform}:{chip.name}": chip
    for chip in (
        Chip("v5e", "tpu", 16 * GIB, {"bfloat16": 197e12}, 819e9, 200e9, TPU_PAGES + "v5e"),
        Chip("v6e", "tpu", 32 * GIB, {"bfloat16": 918e12}, 1638e9, 400e9, TPU_PAGES + "v6e"),
        Chip("v5p", "tpu", 95 * GIB, {"bfloat16": 459e12}, 2765e9, 600e9, TPU_PAGES + "v5p"),
        Chip(
            "h100",
            "gpu",
            84942979072,  # of its 80 GB as the driver reports them
            {"bfloat16": 989.4e12, "TF32": 494.7e12, "float32": 66.9e12},
            3.35e12,
            450e9,
            "NVIDIA H100 Tensor Core GPU (SXM5): datasheet and architecture white paper",
        ),
    )
}
# Facts of the chip as XLA's target configuration wants them.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  shared_memory_per_block: 49152  shared_memory_per_core: 233472
  threads_per_core_limit: 2048  core_count: 132  fpus_per_core: 128  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535  block_dim_limit_z: 65535  memory_bandwidth: 3352320000000  l2_cache_size: 52428800
  clock_rate_ghz: 1.98  device_memory_size: 84942979072  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }  registers_per_core_limit: 65536  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
# Without a device nothing can be timed, so kernels are chosen by rule.
COMPILER_OPTIONS = {
    "tpu": {},
    "gpu": {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False},
}


class Compiler(NamedTuple):
    """A platform's compiler: packages of which one holds it, by import name and by name on the index.

    extra: what installs the first of them; megabytes: on disk then (jax 0.10.2).
    """

    packages: dict[str, str]
    extra: str
    megabytes: int

    @property
    def installed(self) -> str | None:
        """Name of the package that is installed, None where none is."""
        return next((name for module, name in self.packages.items() if _importable(module)), None)


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # its parent is missing
        return False


CUDA = {"jax_plugins.xla_cuda13": "jax-cuda13-plugin", "jax_plugins.xla_cuda12": "jax-cuda12-plugin"}
COMPILERS = {
    "tpu": Compiler({"libtpu": "libtpu"}, "compile-tpu", 480),
    "gpu": Compiler(CUDA, "compile-gpu", 3900),
}


@dataclass(frozen=True)
class Target:
    """A chip and how many of them, as a user types it: tpu:v5e:2x4 with the shape of the slice, gpu:h100."""

    text: str
    chip: Chip
    shape: tuple[int, ...] = ()

    @classmethod
    def read(cls, text: str) -> "Target":
        """The target of a text. Raises UserError."""
        platform, _, rest = text.partition(":")
        name, _, shape = rest.partition(":")
        chip = CHIPS[check_choice(f"{platform}:{name}", CHIPS, "chip to compile for")]
        if chip.platform == "gpu":
            if shape:
                raise UserError(f"{text!r} has a shape, which GPUs have not; write {platform}:{name} and a --mesh.")
            return cls(text, chip)
        if not re.fullmatch(r"[1-9]\d?(x[1-9]\d?){1,2}", shape, re.ASCII):
            raise UserError(f"{text!r} lacks the shape of the slice in chips; write it as in {platform}:{name}:2x4.")
        return cls(text, chip, tuple(map(int, shape.split("x"))))

    @property
    def compiler(self) -> Compiler:
        """The compiler of the chip's platform."""
        return COMPILERS[self.chip.platform]

    def mesh_shape(self, mesh: str | None) -> tuple[int, int]:
        """(data, window) of a mesh as a user types it, DATAxWINDOW; None splits one image over all chips.

        Raises UserError.
        """
        chips = math.prod(self.shape)
        if mesh is None:
            return 1, chips
        match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", mesh, re.ASCII)
        if not match:
            raise UserError(f"mesh {mesh[:40]!r} is not DATAxWINDOW; write it as in 1x8.")
        data, windows = int(match[1]), int(match[2])
        if self.shape and data * windows != chips:
            raise UserError(f"the mesh {mesh} needs {data * windows} chips, but {self.text} has {chips}; change one.")
        if not self.shape and data * windows > MAX_GPUS:
            raise UserError(f"the mesh {mesh} needs {data * windows} GPUs, but a host has {MAX_GPUS}; make it smaller.")
        return data, windows

    def devices(self, count: int) -> list[Any]:
        """Compile-only devices. Raises UserError where the platform's compiler is missing or knows no such slice."""
        if self.compiler.installed is None:
            raise UserError(
                f"the compiler for {self.text} is not installed; run pip install 'gla-jax[{self.compiler.extra}]' "
                f"({self.compiler.megabytes:,} MB on disk; it needs neither chip nor driver)."
            )
        from jax.experimental import topologies

        try:
            if self.chip.platform == "gpu":
                options = {"target_config": H100, "topology": f"1x1x{count}"}
                return list(topologies.get_topology_desc(self.chip.name, "cuda", **options).devices)
            # libtpu looks for these on a machine that is no TPU host.
            for name, value in _TPU_HOST.items():
                os.environ.setdefault(name, value)
            name, shape = self.chip.name, "x".join(map(str, self.shape))
            bounds = {"chips_per_host_bounds": _host_bounds(self.shape)} if count < 4 else {}
            return list(topologies.get_topology_desc(f"{name}:{shape}", "tpu", **bounds).devices)
        except (RuntimeError, NotImplementedError) as error:
            raise UserError(f"XLA does not compile for {self.text} ({first_line(error)}); choose another.") from None


_TPU_HOST = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is used, so several processes may compile
}


def _host_bounds(shape: tuple[int, ...]) -> tuple[int, int, int]:
    return (*shape, 1)[:3]


@contextmanager
def compile_only() -> Iterator[None]:
    """Keep JAX from the devices of this machine, and from its cache, whose programs for absent chips cannot be read."""
    jax.config.update("jax_platforms", "cpu")
    folder = jax.config.jax_compilation_cache_dir
    _set_cache(None)
    try:
        yield
    finally:
        _set_cache(folder)


def _set_cache(folder: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()
