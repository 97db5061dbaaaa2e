"""A benchmark run: every image once, its counts durable, then one set of figures over all of them."""

import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple

from gla_jax.config import settings_as_dict
from gla_jax.distributed.processes import Processes
from gla_jax.eval.benchmarks import BENCHMARKS
from gla_jax.eval.datasets.dataset import Dataset, Example, open_dataset, read_ahead
from gla_jax.eval.datasets.labels import write_label
from gla_jax.eval.datasets.submission import submission_values
from gla_jax.eval.metrics.areas import Areas, image_areas
from gla_jax.eval.metrics.boundary import BoundaryCounts, boundary_counts
from gla_jax.eval.predict import Features, Prediction, Ready, Stopwatch, predictor
from gla_jax.eval.protocols import Protocol, common_windows, protocol, without_duplicates
from gla_jax.eval.records import (
    ImageRecord,
    RecordFile,
    claim_folder,
    image_record,
    parse_line,
    read_records,
    writing_to,
)
from gla_jax.support.files import write_beside
from gla_jax.segmenter import image_grid
from gla_jax.settings.options import check_choice
from gla_jax.support.batches import grouped
from gla_jax.support.errors import UserError

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Run:
    """What is to be measured, and where it goes.

    limit: only the first images, None takes all; threads: that decode images; batch: images
    with one number of windows that go through the towers together; templates: the model's own prompts, None
    when it takes CLIP's 80.
    """

    dataset: Dataset
    row: Protocol
    method: str
    segmenter: Features
    out: Path
    limit: int | None = None
    save_predictions: bool = False
    threads: int = 4
    batch: int = 1
    templates: tuple[str, ...] | None = None

    @property
    def images(self) -> int:
        """Number of images to be measured."""
        return min(self.limit or len(self.dataset.ids), len(self.dataset.ids))

    def settings(self) -> dict[str, Any]:
        """Everything that decides the counts of an image: a run in the same folder must agree on all of it."""
        return {
            "benchmark": self.dataset.benchmark,
            "preset": self.row.setting,
            "method": self.method,
            "model": {"name": self.segmenter.name, "sha256": self.segmenter.model_hash},
            "protocol_sha256": self.row.sha256,
            "data_sha256": self.dataset.fingerprint,
            "settings": settings_as_dict(self.segmenter.config),
            "templates": self.templates and list(self.templates),
            "save_predictions": self.save_predictions,
        }


@dataclass(frozen=True)
class Outcome:
    """The records of all images of a run, in evaluation order."""

    run: Run
    records: tuple[ImageRecord, ...]
    processes: int

    def areas(self) -> Areas:
        """Areas over all images."""
        classes = len(self.run.row.classes)
        return reduce(Areas.merge, (record.full_areas(classes) for record in self.records), Areas.zeros(classes))

    def boundary(self) -> BoundaryCounts:
        """Boundary counts over all images, at the edges of the run's windows."""
        return reduce(BoundaryCounts.merge, (record.boundary() for record in self.records), BoundaryCounts.zeros())

    def common_boundary(self) -> BoundaryCounts:
        """Boundary counts over all images, at the edges of GLA's windows."""
        counts = (record.common_boundary() for record in self.records)
        return reduce(BoundaryCounts.merge, counts, BoundaryCounts.zeros())


def open_benchmark(
    key: str,
    data: Path | None,
    setting: str,
    *,
    method: str = "gla",
    drop_duplicates: bool = False,
    unlabelled: bool = False,
) -> tuple[Dataset, Protocol]:
    """The data and the protocol of a benchmark under a setting of the paper or a file of gla-jax tune.

    method: whose numbers, where the setting has several; drop_duplicates: without the prompts of the background that
    are classes too; unlabelled: a folder may lack labels. Raises UserError for unknown names and files that cannot be
    used, DataError when something is missing in `data`.
    """
    check_choice(key, BENCHMARKS, "benchmark")
    dataset = open_dataset(key, data, unlabelled)
    classes = tuple(zip(dataset.names.classes, dataset.names.prompts["sclip"], strict=True))
    row = protocol(key, setting, classes, method)
    return dataset, without_duplicates(row) if drop_duplicates else row


def measure(run: Run, processes: Processes | None = None, progress: Progress | None = None) -> Outcome:
    """Segment what is not done yet and return the records of all images, the same at every process.

    progress(done, of) is called after every image with the counts of this process's share. Raises UserError when the
    folder holds a run with other settings or data cannot be read.
    """
    processes = processes or Processes()
    if processes.is_first:
        claim_folder(run.out, run.settings())
    processes.wait("claimed")
    claim_folder(run.out, run.settings())
    known = read_records(run.out)
    mine = processes.share(run.images)
    left = [index for index in mine if run.dataset.ids[index] not in known]
    file = RecordFile(run.out, processes.index)
    try:
        done = len(mine) - len(left)
        if progress:
            progress(done, len(mine))
        for record in _segment(run, left) if left else ():
            file.append(record)
            known[record.image_id] = record
            done += 1
            if progress:
                progress(done, len(mine))
    finally:
        file.close()
    return Outcome(run, _gathered(run, known, processes), processes.count)


def _segment(run: Run, indices: list[int]) -> Iterator[ImageRecord]:
    predict = predictor(run.segmenter, run.row)
    values = submission_values(run.dataset) if run.save_predictions else None
    watch = Stopwatch()

    def ready(example: Example) -> Ready:
        return Ready(example, run.segmenter.prepare(example.image))

    read = read_ahead(run.dataset, indices, ready, run.threads)
    # The counts of an image are taken while the next one is on the device.
    with ThreadPoolExecutor(1) as pool:
        before: _Counted | None = None
        for group in grouped(read, lambda image: image.prepared.count, run.batch):
            watch.mark("read", len(group))
            for (example, _), prediction in zip(group, predict(group, watch), strict=True):
                if values is not None:
                    path = prediction_path(run.out, example.image_id)
                    with writing_to(run.out):
                        path.parent.mkdir(parents=True, exist_ok=True)
                        write_beside(path, partial(write_label, label=values[prediction.labels]))
                    watch.mark("save")
                counted = _Counted(example, prediction, watch.seconds, pool.submit(counts, run, example, prediction))
                watch.seconds = {}
                if before:
                    finished = before.record()
                    watch.mark("metrics")
                    yield finished
                    watch.mark("record")
                before = counted
        if before:
            yield before.record()


class _Counted(NamedTuple):
    """An image that is segmented, and its counts, which may still be under way."""

    example: Example
    prediction: Prediction
    seconds: dict[str, float]
    counts: Future[tuple[Areas, tuple[BoundaryCounts, BoundaryCounts]]]

    def record(self) -> ImageRecord:
        """The image's record, when its counts are there."""
        sizes = (self.example.image.shape[:2], self.prediction.resized)
        return image_record(self.example.image_id, sizes, *self.counts.result(), self.seconds)


def counts(run: Run, example: Example, prediction: Prediction) -> tuple[Areas, tuple[BoundaryCounts, BoundaryCounts]]:
    """What one image adds to the figures: its areas, and its boundaries at the run's window edges and at GLA's."""
    labels, ignore = prediction.labels, run.dataset.ignore
    own = boundary_counts(labels, example.label, prediction.resized, run.row.windows, ignore)
    windows = common_windows(run.row.benchmark)
    if windows == run.row.windows:
        common = own
    else:
        grid = image_grid(example.image.shape[:2], windows)
        common = boundary_counts(labels, example.label, (grid.height, grid.width), windows, ignore)
    return image_areas(labels, example.label, len(run.row.classes), ignore), (own, common)


def prediction_path(out: Path, image_id: str) -> Path:
    """Where a saved prediction lies: by the image's own file name, as submission servers want it."""
    return out / "predictions" / f"{image_id}.png"


def _gathered(run: Run, known: dict[str, ImageRecord], processes: Processes) -> tuple[ImageRecord, ...]:
    """The records of all processes in evaluation order, each image once."""
    wanted = run.dataset.ids[: run.images]
    lines = "".join(known[image_id].line() for image_id in wanted if image_id in known)
    records: dict[str, ImageRecord] = {}
    for payload in processes.gather("records", zlib.compress(lines.encode())):
        for line in zlib.decompress(payload).decode().splitlines(keepends=True):
            record = parse_line(line)
            records.setdefault(record.image_id, record)
    lost = [image_id for image_id in wanted if image_id not in records]
    if lost:
        raise UserError(f"{len(lost)} images have no record, the first is {lost[0]}; run the same command again.")
    return tuple(records[image_id] for image_id in wanted)
