"""The strict suite: no implicit dtypes or broadcasts, warnings are errors, 8 CPU devices, no network."""

import os
import socket
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

# Before jax or huggingface_hub are imported: both read these once. A machine with an accelerator can ask for it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"
# The suite compiles much and runs little; small programs, too, are the same in all processes.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    # Compiles in half the time. A flag that XLA does not know would end the process, and libtpu has an XLA of its own.
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib") < "0.11" and not find_spec("libtpu") else ""),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

PROGRAMS = "JAX_COMPILATION_CACHE_DIR"
MAPS, MOST_MAPS = Path("/proc/self/maps"), 30_000  # Linux gives a process 65,530 pieces of memory
_FOLDER = pytest.StashKey[tempfile.TemporaryDirectory]()


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")
    if PROGRAMS not in os.environ:
        # Worker processes and the commands that tests start compile many of the same programs.
        config.stash[_FOLDER] = tempfile.TemporaryDirectory(prefix="gla-jax-programs-")
        os.environ[PROGRAMS] = config.stash[_FOLDER].name
    jax.config.update("jax_compilation_cache_dir", os.environ[PROGRAMS])


def pytest_unconfigure(config):
    if _FOLDER in config.stash:
        config.stash[_FOLDER].cleanup()


@pytest.fixture(autouse=True, scope="session")
def _stay_on_this_machine():
    connect = socket.socket.connect

    def connect_locally(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"a test tried to reach {address[0]}: the suite runs without a network")
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_locally)
        yield


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLA_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _let_programs_go():
    """Each compiled program keeps pieces of memory; where there are no more, XLA ends the process without a word."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
