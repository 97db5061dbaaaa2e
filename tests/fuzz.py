"""Fuzz the doors through which files come in.

    python -m tests.fuzz IMAGES|LABELS|CHECKPOINTS|SETTINGS|RESULTS --minutes N [--seed S] [--only INDEX]

Each input is a valid file that is mutated, and is read in this process. A result or a UserError is right; a finding is
any other exception, a call of more than 10 seconds, of more than 2 GB of memory, or one that writes outside its own
folder. Inputs depend on the seed and their index alone; exit code 1 when there are findings.
"""

import argparse
import faulthandler
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from gla_jax.support.errors import UserError
from tests.fuzz_doors import DOORS

SECONDS, BYTES = 10, 2 * 10**9
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate")


class Hang(BaseException):
    """The call took too long; no Exception, which a reader might take for a damaged file."""


@dataclass(frozen=True)
class Finding:
    """One input that a door did not stand, and the place in the code: findings of one place are alike."""

    index: int
    kind: str
    place: str
    details: str


class WriteWatch:
    """Collects the paths outside `folder` that Python writes to, while folder is not None."""

    def __init__(self):
        self.folder: str | None = None
        self.screen: TextIO | None = None  # of the command line, for the traceback of a process that is ended
        self.outside: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open":
            path, mode, flags = arguments
            if not (set(mode or "") & set("wax+") or (flags or 0) & WRITING):
                return
        elif event in CHANGES:
            path = arguments[1] if event in ("os.rename", "os.symlink", "os.link") else arguments[0]
        else:
            return
        if isinstance(path, (str, bytes, os.PathLike)):
            real = os.path.realpath(os.fsdecode(path))
            if real != os.devnull and not real.startswith(self.folder + os.sep):
                self.outside.append(real)


WATCH = WriteWatch()


def peak_bytes() -> int:
    """Most memory that this process has held since reset_peak()."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):  # not Linux: since it began
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_peak() -> None:
    """Start counting memory anew, where the system can."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise Hang in the block after that time."""

    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(index: int, call: Callable[[], object], folder: Path, counts: Counter[str]) -> Finding | None:
    """Run one call, count its end and say what is wrong with it."""
    reset_peak()
    before = peak_bytes()
    WATCH.folder, WATCH.outside = os.path.realpath(folder), []
    if WATCH.screen:  # compiled code that hangs takes no signal
        faulthandler.dump_traceback_later(3 * SECONDS, exit=True, file=WATCH.screen)
    try:
        with time_limit(SECONDS):
            call()
        counts["read"] += 1
    except UserError as error:
        counts[type(error).__name__] += 1
        if "\n" in str(error):
            return Finding(index, "a message of several lines", str(error)[:200], str(error))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        WATCH.folder = None
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "tests/fuzz" not in frame.filename] or frames
        place = f"{type(error).__name__} at {Path(own[-1].filename).name}:{own[-1].lineno}"
        kind = f"over {SECONDS} s" if isinstance(error, Hang) else "an exception"
        return Finding(index, kind, place, traceback.format_exc())
    finally:
        WATCH.folder = None
        faulthandler.cancel_dump_traceback_later()
    if WATCH.outside:
        return Finding(index, "a file written outside", WATCH.outside[0], "\n".join(WATCH.outside))
    if (grown := peak_bytes() - before) > BYTES:
        return Finding(index, f"{grown / 1e9:.1f} GB", f"memory of {index}", "")
    return None


def fuzz(name: str, seconds: float, seed: int = 0, only: int | None = None) -> tuple[Counter[str], list[Finding]]:
    """Inputs of a door for that time, or the one at an index: counts by kind of end, and the findings."""
    counts: Counter[str] = Counter()
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as base, _temporary_files_in(Path(base) / "case"):
        for name_in_base in ("seeds", "case"):
            (Path(base) / name_in_base).mkdir()
        door = DOORS[name](Path(base) / "seeds")
        print(f"should this process die, {base}/index says at which input", flush=True)
        end = time.monotonic() + seconds
        index = 0 if only is None else only
        while time.monotonic() < end and (only is None or index == only):
            folder = Path(base) / "case"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            (Path(base) / "index").write_text(str(index))
            call = door(random.Random(f"{name}/{seed}/{index}"), folder)
            if only is not None:
                print(f"input {index}: {[str(path) for path in sorted(folder.rglob('*'))][:20]}")
            if finding := attempt(index, call, folder, counts):
                findings.append(finding)
                counts["finding"] += 1
            index += 1
    return counts, findings


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Let libraries keep their temporary files in the folder of the call."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser("python -m tests.fuzz")
    parser.add_argument("door", choices=DOORS)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="The one input of that index, with its whole traceback.")
    options = parser.parse_args()
    sys.stderr = screen = os.fdopen(os.dup(2), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff prints what it meets
    faulthandler.enable(screen)
    WATCH.screen = screen
    warnings.simplefilter("ignore")
    # A safety net for the machine: what is held, and not what is reserved, is measured.
    resource.setrlimit(resource.RLIMIT_DATA, (16 * 10**9, resource.RLIM_INFINITY))
    counts, findings = fuzz(options.door, 60 * options.minutes, options.seed, options.only)
    kinds = Counter(finding.place for finding in findings)
    for place, number in kinds.most_common():
        first = next(finding for finding in findings if finding.place == place)
        print(f"\n{number} x {first.kind}: {place}\n{first.details}")
        print(f"again: python -m tests.fuzz {options.door} --seed {options.seed} --only {first.index}")
    print(f"{options.door}: {counts.total()} inputs, " + ", ".join(f"{n} {kind}" for kind, n in counts.most_common()))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
