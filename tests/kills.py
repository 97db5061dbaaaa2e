"""Kill `segment` and `eval` at random moments and fill their disks: the same command must then make up for it.

    python -m tests.kills --count 51 --disks 7 [--seed S] [--only INDEX] [--command segment|eval]

Every run is a process of its own that is forked with the modules loaded. After a kill no file is half-written, after
SIGTERM nothing is left over either; after a full disk there was one sentence. The next run ends with the files of an
unbroken one, byte for byte but for times. Full disks need root (tmpfs); exit code 1 when there are findings.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TIMES = {"seconds", "finished", "speed", "seconds_per_image"}
IMAGES, SECONDS = 4, 120
WINDOWS = (64, 64, 32)  # short side, crop and stride
LOADED = ("jax", "gla_jax.segmenter", "gla_jax.outputs.run", "gla_jax.eval.report.page", "gla_jax.distributed.mesh")


@dataclass(frozen=True)
class Ended:
    """A process that ended: its exit code (negative for a signal), what it printed, and how long it took."""

    status: int
    said: str
    seconds: float


def commands(folder: Path) -> dict[str, list[str]]:
    """The commands that are killed, without --out; their images are made in `folder`."""
    from gla_jax.config import SegmenterConfig, WindowConfig
    from gla_jax.settings.options import DEFAULT_PROMPTS, preset_content

    rng, data = np.random.default_rng(0), folder / "data"
    for part, high, depth in (("images", 256, (3,)), ("labels", 2, ())):
        (data / part).mkdir(parents=True)
        for index in range(IMAGES):
            pixels = rng.integers(0, high, (70 + index, 90, *depth), np.uint8)
            Image.fromarray(pixels).save(data / part / f"{index}.png")
    (data / "classes.txt").write_text("grass\nsky\n")
    preset = preset_content(SegmenterConfig(windows=WindowConfig(*WINDOWS)), "gla", DEFAULT_PROMPTS, {})
    (folder / "preset.json").write_text(json.dumps(preset))
    words = ["--model", "tiny-world", "--preset", str(folder / "preset.json")]
    classes = ["--classes", "grass", "--classes", "sky"]
    return {
        "segment": ["segment", str(data / "images"), *classes, *words, "--scores"],
        "eval": ["eval", "folder", "--data", str(data), *words, "--save-predictions", "--threads", "1"],
    }


def run(words: list[str], log: Path, before: Callable[[], None] = lambda: None, stop: tuple[float, int] = ()) -> Ended:
    """Run a command in a child of this process.

    Args:
        words: of the command line.
        log: takes what it prints.
        before: called in the child.
        stop: seconds after which the child gets a signal, and its number.
    """
    begun = time.monotonic()
    pid = os.fork()
    if not pid:
        status = 70
        try:
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            before()
            from gla_jax.cli import main

            status = main(words)
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
    due = begun + stop[0] if stop else None
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if due and time.monotonic() >= due:
            os.kill(pid, stop[1])
            due = None
        if time.monotonic() - begun > SECONDS:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return Ended(os.waitstatus_to_exitcode(ended[1]), log.read_text(errors="replace"), time.monotonic() - begun)


def counting_changes(folder: Path, changed: Callable[[int], object]) -> Callable[[], None]:
    """A function for the child of run: from then on changed(n) is called before the nth change of a file in folder."""

    def install() -> None:
        count = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if (writes or event in ("os.rename", "os.mkdir", "os.remove")) and str(folder) in str(arguments[0]):
                count += 1
                changed(count)

        sys.addaudithook(hook)

    return install


def contents(folder: Path) -> dict[str, Any]:
    """What every file of results holds, without times: bytes of pictures, values of JSON, lines by their image."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")):
        name, content = str(path.relative_to(folder)), path.read_bytes()
        if path.suffix == ".json":
            content = _without_times(json.loads(content))
        elif path.suffix == ".jsonl":
            rows = [json.loads(re.sub(r"\t\w+$", "", line)) for line in content.decode().splitlines()]
            content = {row.get("image_id", row.get("name")): _without_times(row) for row in rows}
        elif path.suffix == ".npz":  # a zip says when it was written
            with np.load(path) as arrays:
                content = {key: (str(arrays[key].dtype), arrays[key].tobytes()) for key in arrays}
        elif path.name.startswith("report."):  # it shows times
            content = bool(content)
        found[name] = content
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in TIMES | {"crc32"}}
    return list(map(_without_times, value)) if isinstance(value, list) else value


def half_written(folder: Path) -> list[str]:
    """Names of files that are not whole, apart from the hidden ones that the next run removes."""
    bad = []
    for path in (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        try:
            if path.suffix == ".png":
                with Image.open(path) as image:
                    image.load()
            elif path.suffix == ".json":
                json.loads(path.read_bytes())
            elif path.suffix == ".npz":
                with np.load(path) as arrays:
                    dict(arrays)
        except Exception:
            bad.append(path.name)
    return bad


class Kills:
    """Runs that are broken off and runs that make up for it, in a folder of their own."""

    def __init__(self, folder: Path, commands: dict[str, list[str]]):
        """Run every command unbroken: its files, its time and its changes of files are those that count."""
        self.folder, self.commands = folder, commands
        self.whole: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        self.changes: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        seen, cold = folder / "changes", not os.environ.get("JAX_COMPILATION_CACHE_DIR")
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/programs")
        for name in commands:
            for _ in range(1 + cold):  # the first compiles, and its time says little
                out = self._new_out()
                hook = counting_changes(out, lambda count: seen.write_text(str(count)))
                ended = run(self._words(name, out), folder / "log", hook)
                assert ended.status == 0, ended.said
            self.whole[name], self.seconds[name] = contents(out), ended.seconds
            self.changes[name] = int(seen.read_text())
            self.sizes[name] = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())

    def kill(self, rng: random.Random) -> tuple[str, str | None]:
        """Kill a run, then resume it; what was done, and what is wrong."""
        name, number = rng.choice(list(self.commands)), rng.choice((signal.SIGKILL, signal.SIGTERM))
        out, moment = self._new_out(), rng.random()
        if rng.random() < 0.5:
            what, stop = f"after {moment * self.seconds[name]:.2f} s", (moment * self.seconds[name], number)
            ended = run(self._words(name, out), self.folder / "log", stop=stop)
        else:
            at = 1 + int(moment * self.changes[name])
            what = f"at change {at} of {self.changes[name]}"
            hook = counting_changes(out, lambda count: os.kill(os.getpid(), number) if count == at else None)
            ended = run(self._words(name, out), self.folder / "log", hook)
        return f"{name}, {number.name} {what}", self._after_kill(name, out, ended, number)

    def _after_kill(self, name: str, out: Path, ended: Ended, number: int) -> str | None:
        started = out.exists() and any(out.iterdir())
        if ended.status not in (0, -signal.SIGKILL, 143) and (started or ended.status != -signal.SIGTERM):
            return f"exit {ended.status}: {ended.said[-2000:]}"
        if ended.status == 143 and "stopped; nothing half-written is left" not in ended.said:
            return f"no sentence: {ended.said[-2000:]}"
        if number == signal.SIGTERM and (left := list(out.rglob("*.unfinished"))):
            return f"left over: {left}"
        return self._resumed(name, out)

    def fill(self, index: int, of: int) -> tuple[str, str | None]:
        """Run a command on a disk without room for a part of its files, then give it room."""
        name = list(self.commands)[index % len(self.commands)]
        share, out = (index + 1) / (of + 1), self._new_out()
        # Without room for a file's content, or for one more file.
        files = len(self.whole[name]) + len(self.commands)
        limit = f"size={max(int(share * self.sizes[name]) // 4096, 1) * 4}k"
        limit = f"nr_inodes={2 + int(share * files)}" if index % 4 > 1 else limit
        out.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", limit, "tmpfs", str(out)]
        subprocess.run(mount, check=True, capture_output=True)
        try:
            ended = run(self._words(name, out), self.folder / "log")
            errors = [line for line in ended.said.splitlines() if line.lower().startswith("error")]
            fault = None
            if ended.status != 2 or len(errors) != 1 or "Traceback" in ended.said:
                fault = f"exit {ended.status}: {ended.said[-2000:]}"
            elif left := list(out.rglob("*.unfinished")):
                fault = f"left over: {left}"
            room = ["mount", "-o", "remount,size=100m,nr_inodes=10000", str(out)]
            subprocess.run(room, check=True, capture_output=True)
            return f"{name}, {limit}: {''.join(errors)}", fault or self._resumed(name, out)
        finally:
            subprocess.run(["umount", "-l", str(out)], check=True, capture_output=True)

    def _resumed(self, name: str, out: Path) -> str | None:
        if bad := half_written(out):
            return f"half-written: {bad}"
        ended = run(self._words(name, out), self.folder / "log")
        if ended.status:
            return f"resumed, exit {ended.status}: {ended.said[-2000:]}"
        found, whole = contents(out), self.whole[name]
        different = [key for key in sorted(found.keys() | whole.keys()) if found.get(key) != whole.get(key)]
        return f"resumed, other files: {different}" if different else None

    def _words(self, name: str, out: Path) -> list[str]:
        return [*self.commands[name], "--out", str(out)]

    def _new_out(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder)) / "out"


def can_mount() -> bool:
    """True where disks of any size can be made."""
    with tempfile.TemporaryDirectory() as folder, suppress(OSError):
        if not subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode:
            subprocess.run(["umount", folder], check=True)
            return True
    return False


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser("python -m tests.kills")
    parser.add_argument("--count", type=int, default=51)
    parser.add_argument("--disks", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="The one kill of that index.")
    parser.add_argument("--command", help="segment or eval alone.")
    options = parser.parse_args()
    for module in LOADED:
        __import__(module)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        os.environ["GLA_JAX_CACHE"] = f"{folder}/cache"
        chosen = commands(Path(folder))
        kills = Kills(Path(folder), {name: words for name, words in chosen.items() if options.command in (None, name)})
        print(f"unbroken: {kills.seconds} s, {kills.changes} changes, {kills.sizes} bytes", flush=True)
        indices = range(options.count) if options.only is None else [options.only]
        ends = [("kill", lambda i=i: kills.kill(random.Random(f"{options.seed}/{i}"))) for i in indices]
        if options.disks and can_mount():
            ends += [("disk", lambda i=i: kills.fill(i, options.disks)) for i in range(options.disks)]
        elif options.disks:
            print("no disks: only root can mount them")
        for kind, end in ends:
            what, fault = end()
            counts[f"{kind}s"] += 1
            counts["findings"] += bool(fault)
            print(f"{what}: {fault or 'resumed'}", flush=True)
    print(", ".join(f"{counts[name]} {name}" for name in ("kills", "disks", "findings")))
    return 1 if counts["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
