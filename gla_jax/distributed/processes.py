"""Many processes, one run: jax.distributed on the standard environment, images split by process, results gathered."""

import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import jax
import numpy as np

from gla_jax.support.errors import UserError, ending
from gla_jax.support.interrupts import signals_raise

HEARTBEAT_SECONDS = 20
LONGEST_WAIT_MS = 7 * 24 * 3600 * 1000  # another process may have days of images left

# When a process dies JAX aborts the others with a stack trace, and no exception or exit handler runs. This small
# process prints the last line it was sent when its input ends, which is when the process that started it is gone.
_WATCHER = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
*_, last = sys.stdin.read().splitlines()
if last != "done":
    print(last, file=sys.stderr, flush=True)
"""


class OthersEnded(Exception):
    """Another process of the run is gone, so what all have to do together cannot be done."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """True for the process that writes the results."""
        return self.index == 0

    def named(self, work: str) -> str:
        """Name of this process's progress."""
        return work + (f", process {self.index + 1} of {self.count}" if self.count > 1 else "")

    def share(self, images: int) -> range:
        """Indices of the images that this process segments."""
        return range(self.index, images, self.count)

    def wait(self, name: str) -> None:
        """Go on when all processes have come here. Raises OthersEnded when one is gone."""
        if self.count == 1:
            return
        from orbax.checkpoint.multihost import get_barrier_sync_fn

        # Not jax.experimental.multihost_utils: a collective times out while another process still works.
        # In a thread: the main one hears signals only while it is not inside the coordination service's client.
        pool = ThreadPoolExecutor(1)
        waiting = pool.submit(get_barrier_sync_fn(), key=f"gla-jax {name}", timeout_ms=LONGEST_WAIT_MS)
        pool.shutdown(wait=False)
        try:
            waiting.result()
        except jax.errors.JaxRuntimeError as error:
            raise OthersEnded from error

    def gather(self, name: str, payload: bytes) -> list[bytes]:
        """The payloads of all processes, at every process. Raises OthersEnded when one is gone."""
        if self.count == 1:
            return [payload]
        from jax.experimental.multihost_utils import process_allgather

        self.wait(name)
        try:
            # As bytes: without 64-bit types JAX would cut large counts.
            lengths = process_allgather(np.array([len(payload)], np.int32)).ravel()
            padded = np.zeros(int(lengths.max()), np.uint8)
            padded[: len(payload)] = np.frombuffer(payload, np.uint8)
            rows = process_allgather(padded)
        except jax.errors.JaxRuntimeError as error:
            raise OthersEnded from error
        return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


class _Watcher:
    """Prints a sentence on the error output if this process ends before `done` is called."""

    def __init__(self):
        command = [sys.executable, "-c", _WATCHER]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)

    def expect(self, sentence: str) -> None:
        """Set the sentence for an end from now on."""
        self._process.stdin.write(f"{sentence}\n")
        self._process.stdin.flush()

    def done(self) -> None:
        """Everything went well, or the reason was already told."""
        self._process.communicate("done\n")


@contextmanager
def joined(distributed: bool, advice: str) -> Iterator[Processes]:
    """This process among those of the run, before anything else touches JAX; alone unless the environment names others.

    At the end all wait for all. A process that fails or is interrupted says why and exits at once, which ends the
    others; they print a sentence that ends with `advice`, on what the user has and can do. Raises UserError when it
    cannot join.

    distributed: a cluster's launcher started it; else $JAX_COORDINATOR_ADDRESS tells.
    """
    if not distributed and "JAX_COORDINATOR_ADDRESS" not in os.environ:
        yield Processes()
        return
    watcher = _Watcher()
    watcher.expect("error: this process waited for the others of the run and they did not come; start all again.")
    try:
        processes = join()
    except BaseException:
        watcher.done()
        raise
    watcher.expect(
        f"process {processes.index + 1} of {processes.count} stopped before the end because it or another process of "
        f"the run died; {advice}."
    )
    with signals_raise():  # after join, in which JAX catches SIGTERM for a service of its own
        try:
            yield processes
            processes.wait("end")
        except OthersEnded:
            sys.stdout.flush()
            os._exit(1)  # the watcher says why
        except BaseException as error:
            if processes.count > 1:
                _leave(error, watcher)
            watcher.done()
            raise
    watcher.done()


def _leave(error: BaseException, watcher: _Watcher) -> NoReturn:
    """Say why this process of several ends, as the command line would, and end it without a word to the others.

    JAX's own way out waits minutes for processes that are still at work or wait for this one's share.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a second one must not lead into that way out
    watcher.done()
    code, sentence = ending(error)
    if code == 1 and not isinstance(error, SystemExit):
        traceback.print_exception(error)
    elif sentence:
        print(sentence, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def join() -> Processes:
    """Connect to the other processes of the run, before anything else touches JAX.

    Reads JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; what they leave open comes from the cluster's
    own environment (SLURM, Open MPI, Kubernetes, TPU pods). Raises UserError when that is not enough to connect.
    """
    address, number, index = (
        os.environ.get(f"JAX_{name}") for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")
    )
    try:
        port = re.fullmatch(r"\S+:(\d{1,5})", address) if address is not None else None
        if address is not None and not (port and 0 < int(port[1]) < 2**16):
            raise ValueError(f"JAX_COORDINATOR_ADDRESS is {address!r} and not HOST:PORT")
        jax.distributed.initialize(
            num_processes=int(number) if number else None,
            process_id=int(index) if index else None,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"this process cannot join a run of several ({str(error).splitlines()[0]}); set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID, or start it from a cluster's launcher."
        ) from None
    return Processes(jax.process_index(), jax.process_count())
