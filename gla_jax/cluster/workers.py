"""`gla-jax eval` and `gla-jax segment` by Ray: the same shards as with --shard, in the same folders."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from gla_jax.cluster.pool import SECONDS_TO_LET_GO, Cluster, deal, shards_for
from gla_jax.config import SegmenterConfig
from gla_jax.distributed.processes import Processes
from gla_jax.distributed.shards import FOLDER, Shard
from gla_jax.eval.job import Job, open_data, open_runs
from gla_jax.eval.logs import logs
from gla_jax.eval.merge import SHARD_FILE, finish_shard, is_finished
from gla_jax.eval.records import ImageRecord
from gla_jax.eval.runner import measure
from gla_jax.outputs.run import Outcome, Say, Task, segment_files
from gla_jax.segmenter import Segmenter
from gla_jax.support.batches import read_ahead
from gla_jax.support.devices import prepare_jax
from gla_jax.support.errors import UserError
from gla_jax.support.files import read_json
from gla_jax.support.places import THREADS, is_url, place
from gla_jax.support.steps import Progress
from gla_jax.text.prompts import Classes


class EvalWorker:
    """One actor of an evaluation. What it needs is opened at its first shard, so that faults are told as such."""

    def __init__(self, jobs: Sequence[Job], out: str):
        """Keep what to measure."""
        self._jobs, self._out = jobs, out

    @cached_property
    def _runs(self) -> list[Any]:
        prepare_jax()
        return open_runs(self._jobs, place(self._out), sharded=True)

    def work(self, number: int, shard: Shard) -> tuple[int, tuple[ImageRecord, ...]]:
        """Measure a shard of one job; `number` as it came, and its records, none where it was finished before."""
        run = replace(self._runs[number], shard=Shard(*shard))
        if is_finished(run):
            return number, ()
        outcome = measure(run, wait=SECONDS_TO_LET_GO)
        finish_shard(outcome, self._jobs[number], number)
        return number, outcome.records


def evaluate(
    jobs: Sequence[Job],
    out: Path,
    cluster: Cluster,
    progress: Progress,
    log_places: tuple[Path | None, Path | None] = (None, None),
) -> None:
    """Measure all shards of all jobs on a cluster; `merge` puts them together.

    Args:
        jobs: benchmarks.
        out: folder that all machines reach.
        cluster: of Ray.
        progress: called with (images done, images) after every shard.
        log_places: file of JSON lines and folder of TensorBoard's scalars, which this process writes as shards end.

    Raises UserError.
    """
    paths = ("data", "model", "classes_from")
    jobs = [replace(job, **{name: _absolute(getattr(job, name)) for name in paths}) for job in jobs]
    # Faults of data and settings are told before actors start.
    opened = open_data(jobs, out, sharded=True)
    counts = [len(dataset.ids[: job.limit]) for job, (dataset, *_) in zip(jobs, opened, strict=True)]
    for (_, _, home), count in zip(opened, counts, strict=True):
        _check_count(home, len(shards_for(count)))
    tasks = [(number, tuple(shard)) for number, count in enumerate(counts) for shard in shards_for(count)]
    done = 0  # those of an earlier run come first, so that rate and time left are of this one
    for (_, _, home), count in zip(opened, counts, strict=True):
        shards = shards_for(count)
        there = read_ahead(shards, lambda shard, home=home: (home / shard.place / SHARD_FILE).exists(), THREADS)
        done += sum(len(shard.part(count)) for shard, exists in zip(shards, there, strict=True) if exists)
    progress(done, sum(counts))
    with ExitStack() as stack:
        written = [stack.enter_context(logs(*log_places, row.benchmark, len(row.classes))) for _, row, _ in opened]
        for number, records in deal(cluster, EvalWorker, (jobs, _absolute_path(out)), tasks):
            for record in records:
                written[number](record)
            done += len(records)
            progress(done, sum(counts))


def _check_count(home: Path, count: int) -> None:
    """Raise UserError where a run left shards of another number, with which these could not be merged."""
    for path in sorted((home / FOLDER).glob("*-of-*")):
        if not path.name.endswith(f"-of-{count:05d}"):
            raise UserError(
                f"{home} holds the shard {path.name}, and Ray deals {count} shards of these images; choose another "
                f"--out, or remove {home / FOLDER}."
            )


@dataclass(frozen=True)
class SegmentOrder:
    """A run of `gla-jax segment` in values that travel to other machines."""

    model: str
    config: SegmenterConfig
    classes: Classes
    background: str | None
    templates: Sequence[str] | None
    scores: bool
    batch: int
    formats: Sequence[str]
    offline: bool
    paths: Sequence[str]
    out: str
    masks: str | None = None
    suit: bool = False

    def task(self) -> Task:
        """The task, its model loaded."""
        segmenter = Segmenter.from_pretrained(self.model, self.config, offline=self.offline, suit=self.suit)
        return Task(
            segmenter,
            self.classes,
            self.background,
            self.templates,
            self.scores,
            self.batch,
            tuple(self.formats),
            self.masks and place(self.masks),
        )


class SegmentWorker:
    """One actor of a segmentation."""

    def __init__(self, order: SegmentOrder):
        """Keep what to segment."""
        self._order = order

    @cached_property
    def _task(self) -> Task:
        prepare_jax()
        return self._order.task()

    def work(self, shard: Shard | None, images: int) -> tuple[int, list[str], Outcome]:
        """Segment a shard, None: put all together; `images` as it came, what there is to say, the outcome."""
        sentences: list[str] = []
        paths = list(map(place, self._order.paths))
        part = Shard(*shard) if shard else None
        outcome = segment_files(
            self._task, paths, place(self._order.out), Processes(), sentences.append, part, wait=SECONDS_TO_LET_GO
        )
        return images, sentences, outcome


def segment(order: SegmentOrder, cluster: Cluster, progress: Progress, say: Say) -> Outcome:
    """Segment files on a cluster and write the results of all.

    Args:
        order: what to segment.
        cluster: of Ray.
        progress: called with (images done, images) after every shard.
        say: takes sentences for the user.

    Raises UserError.
    """
    paths = list(map(_absolute_path, order.paths))
    order = replace(order, paths=paths, out=_absolute_path(order.out), model=_absolute(order.model))
    shards, out = shards_for(len(paths)), place(order.out)
    sizes = [len(shard.part(len(paths))) for shard in shards]
    complete = list(read_ahead(shards, partial(_is_complete, out), THREADS))
    done = sum(size for size, there in zip(sizes, complete, strict=True) if there)
    progress(done, len(paths))
    # Complete shards are dealt too, as their images may have changed, but are counted already.
    tasks = [(tuple(shard), 0 if there else size) for shard, size, there in zip(shards, sizes, complete, strict=True)]
    for images, sentences, _ in deal(cluster, SegmentWorker, (order,), tasks):
        for sentence in sentences:
            if "were done before in" not in sentence:
                say(sentence)
        done += images
        progress(done, len(paths))
    _, _, outcome = SegmentWorker(order).work(None, 0)
    return outcome


def _is_complete(out: Path, shard: Shard) -> bool:
    """True for a shard whose images an earlier run has done."""
    path = out / shard.place / "results.json"
    content = read_json(path, "the results", "remove it") if path.exists() else None
    return isinstance(content, dict) and content.get("complete") is True


def _absolute_path(path: str | Path) -> str:
    return str(path) if is_url(str(path)) else os.path.abspath(path)


def _absolute(name: str | None) -> str | None:
    """Paths as other processes see them: actors have a working folder of their own; names stay as they are."""
    if name and os.path.exists(name):  # a plus may be a part of a folder's name
        return os.path.abspath(name)
    parts = (name or "").split("+")
    return name and "+".join(os.path.abspath(part) if os.path.exists(part) else part for part in parts)
