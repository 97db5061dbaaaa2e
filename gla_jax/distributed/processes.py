"""Many processes, one run: jax.distributed on the standard environment, images split by process, results gathered."""

import os
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

from gla_jax.support.errors import UserError, about_files

HEARTBEAT_SECONDS = 20
LONGEST_WAIT_MS = 7 * 24 * 3600 * 1000

# JAX aborts a process when another one dies, with a stack trace and no exception to catch. This looks on and says what
# it means: it reads to the end of its input and speaks unless it was told that all went well.
_WATCHER = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
if sys.stdin.buffer.read() != b"done":
    print(sys.argv[1], file=sys.stderr, flush=True)
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
        """Whether this process writes the results."""
        return self.index == 0

    def named(self, work: str) -> str:
        """What this process's progress is called."""
        return work + (f", process {self.index + 1} of {self.count}" if self.count > 1 else "")

    def share(self, images: int) -> range:
        """The images this process segments."""
        return range(self.index, images, self.count)

    def wait(self, name: str) -> None:
        """Go on when all processes have come here. Raises OthersEnded when one is gone."""
        if self.count > 1:
            # A collective would time out while the others still work; the coordination service waits.
            from jax._src.distributed import global_state

            # In a thread: the main one hears signals only while it is not inside the client.
            pool = ThreadPoolExecutor(1)
            waiting = pool.submit(global_state.client.wait_at_barrier, f"gla-jax {name}", LONGEST_WAIT_MS)
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


class Watcher:
    """Says one sentence on the error output if this process ends before `done` is called.

    advice: what the user finds and can do, the end of that sentence.
    """

    def __init__(self, processes: Processes, advice: str):
        sentence = (
            f"process {processes.index + 1} of {processes.count} stopped before the end because it or another process "
            f"of the run died; {advice}."
        )
        self._pipe = subprocess.Popen([sys.executable, "-c", _WATCHER, sentence], stdin=subprocess.PIPE)

    def done(self) -> None:
        """Everything went well, or the reason was already told."""
        self._pipe.communicate(b"done")


@contextmanager
def joined(distributed: bool, advice: str) -> Iterator[Processes]:
    """This process among those of the run, before anything else touches JAX; alone unless it is told of others.

    distributed: a cluster's launcher started it; else $JAX_COORDINATOR_ADDRESS tells. At the end all wait for all; one
    that fails or is interrupted says why and exits at once, which ends the others. Raises UserError when it cannot
    join; advice is Watcher's.
    """
    if not distributed and "JAX_COORDINATOR_ADDRESS" not in os.environ:
        yield Processes()
        return
    processes = join()
    watcher = Watcher(processes, advice)
    # After join: JAX catches SIGTERM for a service of its own, and the process would live on.
    handler = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield processes
        processes.wait("end")
    except OthersEnded:
        sys.stdout.flush()
        os._exit(1)  # the watcher says why
    except BaseException as error:
        if processes.count > 1:
            leave(error, watcher)
        watcher.done()
        raise
    finally:
        signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)
    watcher.done()


def leave(error: BaseException, watcher: Watcher) -> NoReturn:
    """Say why this process of several ends, as the command line would, and end it without a word to the others.

    JAX's own way out waits minutes for processes that are still at work or wait for this one's share.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a second one must not lead into that way out
    watcher.done()
    code = exit_code(error)
    if isinstance(error, UserError | OSError):
        print(f"error: {about_files(error) if isinstance(error, OSError) else error}", file=sys.stderr)
    elif code == 1 and not isinstance(error, SystemExit):
        traceback.print_exception(error)
    elif code:
        print("stopped; nothing half-written is left", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def exit_code(error: BaseException) -> int:
    """An exception's exit status: 2 for a user's mistake or files, 130 for Ctrl-C, 143 for SIGTERM, 1 for a bug."""
    if isinstance(error, UserError | OSError):
        return 2
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 1


def _terminate(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


def join() -> Processes:
    """Connect to the other processes of the run, before anything else touches JAX.

    Reads JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; what they leave open comes from the cluster's
    own environment (SLURM, Open MPI, Kubernetes, TPU pods). Raises UserError when that is not enough to connect.
    """
    number, index = (os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    try:
        jax.distributed.initialize(
            num_processes=int(number) if number else None,
            process_id=int(index) if index else None,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"this process cannot join a run of several ({str(error).splitlines()[0]}); set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID, or start it from a cluster's launcher."
        ) from None
    return Processes(jax.process_index(), jax.process_count())
