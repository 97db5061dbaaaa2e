"""Times the merge of many shards of synthetic records, and measures its memory:

    python -m tests.merge_many [--shards 100] [--images 1000000] [--classes 171]

Fails when the merge takes a minute of a processor or 2 GiB, the bounds for the default numbers.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gla_jax.distributed.shards import Shard
from gla_jax.eval.merge import finish_shard
from gla_jax.eval.metrics.areas import Areas
from gla_jax.eval.metrics.boundary import BoundaryCounts
from gla_jax.eval.records import Counts, image_record
from gla_jax.eval.runner import Outcome, Run, open_benchmark
from tests.eval import trees
from tests.eval.fakes import ColourSegmenter

SECONDS, GIBIBYTES = 60, 2  # of a processor: the wall clock of a shared machine says little
OCCURRING = 10  # classes in an image


def records(classes: int, seed: int = 0) -> Iterator[str]:
    """Lines without their ids, over and over: a thousand different ones."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(1000):
        areas = np.zeros((3, classes), np.int64)
        occurring = rng.choice(classes, min(OCCURRING, classes), replace=False)
        areas[:, occurring] = np.sort(rng.integers(1, 20_000, (3, len(occurring))), axis=0)
        edges = [BoundaryCounts(rng.integers(0, 999, 4), rng.integers(1000, 9999, 4)) for _ in range(2)]
        seconds = {stage: rng.random() for stage in ("read", "features", "labels", "metrics", "record")}
        line = image_record("ID", (480, 640), (336, 448), Counts(Areas(*areas), *edges), seconds, (9, 784)).line()
        lines.append(line.rpartition("\t")[0])
    while True:
        yield from lines


def write_shards(out: Path, shards: int, images: int, classes: int) -> None:
    """The folders that as many runs with --shard leave."""
    dataset, row = open_benchmark("folder", trees.folder(out / "data", classes, [0]))
    ids = tuple(f"val/{index:012d}" for index in range(images))
    object.__setattr__(dataset, "ids", ids)
    run = Run(dataset, row, "gla", ColourSegmenter(row.config("gla")), out)
    lines = records(classes)
    for index in range(shards):
        run = Run(dataset, row, "gla", run.segmenter, out, shard=Shard(index, shards))
        (run.folder / "records").mkdir(parents=True)
        with (run.folder / "records/process-0000.jsonl").open("w") as file:
            for image in run.part:
                content = next(lines).replace("ID", ids[image], 1)
                file.write(f"{content}\t{zlib.crc32(content.encode()):08x}\n")
        finish_shard(Outcome(run, (), 1), None)


def main() -> int:
    """Write shards, merge them in a process of its own, and print what that took."""
    parser = argparse.ArgumentParser()
    for name, default in (("shards", 100), ("images", 1_000_000), ("classes", 171)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        write_shards(out, options.shards, options.images, options.classes)
        size = sum(path.stat().st_size for path in out.rglob("*.jsonl"))
        command = [sys.executable, "-c", "from gla_jax.cli import script; script()", "eval", "merge", str(out)]
        start = time.monotonic()
        subprocess.run(command, check=True)
        seconds, used = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        images = json.loads((out / "results.json").read_text())["images"]["measured"]
    memory = used.ru_maxrss / 2**20
    print(
        f"{options.shards} shards, {images} records, {size / 2**20:.0f} MiB: {seconds:.1f} s "
        f"({used.ru_utime + used.ru_stime:.1f} s of a processor), {memory:.2f} GiB"
    )
    return int(used.ru_utime + used.ru_stime >= SECONDS or memory >= GIBIBYTES)


if __name__ == "__main__":
    sys.exit(main())
