"""A benchmark run: every image once, its counts durable, then one set of figures over all of them."""

import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gla_jax.config import DEFAULT_PRESET, METHOD_ALIASES, WindowConfig
from gla_jax.distributed.processes import Processes
from gla_jax.distributed.shards import Shard
from gla_jax.eval.benchmarks import BENCHMARKS, TINY_WORLD
from gla_jax.eval.datasets.dataset import Dataset, Example, open_dataset
from gla_jax.eval.datasets.labels import write_label
from gla_jax.eval.datasets.submission import submission_values
from gla_jax.eval.metrics.areas import Areas, image_areas
from gla_jax.eval.metrics.boundary import BoundaryCounts, boundary_counts
from gla_jax.eval.protocols import Protocol, common_windows, protocol, without_duplicates
from gla_jax.eval.records import Counts, ImageRecord, image_record, parse_line, read_records, record_file
from gla_jax.eval.tally import Tally, tally_of
from gla_jax.images.windows import WindowGrid
from gla_jax.outputs.files import SETTINGS_FILE, claim_folder, deciding_settings, writing_to
from gla_jax.predict.examples import ExampleClasses
from gla_jax.predict.model import image_grid
from gla_jax.predict.predict import Prediction, Question, Ready, label_images, predict
from gla_jax.settings.options import check_choice
from gla_jax.support.arrays import Integer
from gla_jax.support.batches import Stopwatch, read_ahead
from gla_jax.support.errors import UserError
from gla_jax.support.files import write_beside
from gla_jax.support.places import make_folder
from gla_jax.support.steps import Progress

if TYPE_CHECKING:
    from gla_jax.segmenter import Segmenter


@dataclass(frozen=True)
class Run:
    """One benchmark to be measured, and the folder for its results.

    segmenter: its settings are those of the row for the method; limit: only the first images, None takes all; threads:
    that decode images; batch: images with one number of windows that go through the towers together; templates: the
    model's own prompt templates, None when it takes CLIP's 80; shard: measures only its part of the images; shown:
    labelled images that show the classes, in place of the prompts.
    """

    dataset: Dataset
    row: Protocol
    method: str
    segmenter: "Segmenter"
    out: Path
    limit: int | None = None
    save_predictions: bool = False
    threads: int = 4
    batch: int = 1
    templates: tuple[str, ...] | None = None
    shard: Shard | None = None
    shown: ExampleClasses | None = None

    def __post_init__(self):
        """Take a method by its present name."""
        object.__setattr__(self, "method", METHOD_ALIASES.get(self.method, self.method))

    @property
    def images(self) -> int:
        """Number of images to be measured, by all shards together."""
        return len(self.dataset.ids[: self.limit])

    @property
    def part(self) -> range:
        """Indices of the images that this run measures."""
        return self.shard.part(self.images) if self.shard else range(self.images)

    @property
    def folder(self) -> Path:
        """The folder of its records."""
        return self.out / self.shard.place if self.shard else self.out

    def settings(self) -> dict[str, Any]:
        """Everything that decides the counts of an image: a run in the same folder must agree on all of it."""
        return {
            "benchmark": self.dataset.benchmark,
            "preset": self.row.setting,
            "method": self.method,
            "model": {"name": self.segmenter.name, "sha256": self.segmenter.model_hash},
            "protocol_sha256": self.row.sha256,
            "data_sha256": self.dataset.fingerprint,
            "settings": deciding_settings(self.segmenter.config),
            "templates": self.templates and list(self.templates),
            "save_predictions": self.save_predictions,
            **({"examples": self.shown.sha256} if self.shown else {}),
        }

    def question(self) -> Question:
        """Prompts, or examples, and classes of the protocol; its background is the first class."""
        rows, class_of_row = self.segmenter.embeddings(self.shown or self.row.vocabulary)
        return Question(rows, class_of_row, len(self.row.classes), area_threshold=self.row.area_threshold)

    def read(self, index: int) -> Ready:
        """The example at an index, its image cut into windows."""
        example = self.dataset.read(index)
        return Ready(example, self.segmenter.model.prepare(example.image))


@dataclass(frozen=True)
class Outcome:
    """The records of all images of a run, in evaluation order."""

    run: Run
    records: tuple[ImageRecord, ...]
    processes: int

    @cached_property
    def tally(self) -> Tally:
        """Sums over all images."""
        return tally_of(self.records, len(self.run.row.classes))

    def areas(self) -> Areas:
        """Areas over all images."""
        return self.tally.counts.areas

    def boundary(self) -> BoundaryCounts:
        """Boundary counts over all images, at the edges of the run's windows."""
        return self.tally.counts.boundary

    def common_boundary(self) -> BoundaryCounts:
        """Boundary counts over all images, at the edges of GLA's windows."""
        return self.tally.counts.common_boundary


def open_benchmark(
    key: str,
    data: Path | None,
    setting: str = DEFAULT_PRESET,
    *,
    method: str = "gla",
    drop_duplicates: bool = False,
    unlabelled: bool = False,
    kept: Path | None = None,
) -> tuple[Dataset, Protocol]:
    """The data and the protocol of a benchmark.

    Args:
        key: of the benchmark.
        data: the folder that holds it.
        setting: a preset, or a file of gla-jax tune.
        method: SCLIP has numbers of its own under the default preset.
        drop_duplicates: leave out the prompts of the background that are classes too.
        unlabelled: a folder may lack labels.
        kept: a file that keeps the fingerprint of folders for other processes.

    Raises UserError for unknown names and files that cannot be used, DataError when something is missing in `data`.
    """
    check_choice(key, BENCHMARKS, "benchmark")
    if key == TINY_WORLD and data is not None:
        raise UserError(f"{key} draws its own scenes: leave out --data, or name what {data} holds, such as folder.")
    dataset = open_dataset(key, data, unlabelled, kept)
    classes = tuple(zip(dataset.names.classes, dataset.names.prompts["sclip"], strict=True))
    row = protocol(key, setting, classes, method)
    return dataset, without_duplicates(row) if drop_duplicates else row


def measure(
    run: Run,
    processes: Processes | None = None,
    progress: Progress | None = None,
    wait: float = 0,
    log: Callable[[ImageRecord], None] = lambda record: None,
) -> Outcome:
    """Segment the images that have no record yet and return the records of all, the same at every process.

    Args:
        run: what to measure.
        processes: that share the images.
        progress: called after every image with (done, of) of this process's share.
        wait: seconds to wait for another run to let go of the folder.
        log: called with the record of every image that is measured now.

    Raises UserError when the folder holds another run or more images of this one, or data cannot be read.
    """
    processes, folder = processes or Processes(), run.folder
    if processes.count == 1 and not (folder / SETTINGS_FILE).exists():
        run.question()  # classes that cannot be used must not claim the folder for themselves
    with ExitStack() as stack:
        if not processes.is_first:
            processes.wait("claimed")
        # The first process locks the folder before it looks: of two runs that start at once one is refused.
        file = stack.enter_context(record_file(folder, processes.index, wait))
        records = read_records(folder, len(run.row.classes))
        claim_folder(folder, run.settings(), bool(records))
        if processes.is_first:
            processes.wait("claimed")
        others = records.keys() - set(run.dataset.ids[: run.images])
        if (folder / "results.json").exists() and others:
            raise UserError(
                f"{run.out} holds results of {len(records)} images, of which this run measures "
                f"{len(records) - len(others)}; leave out --limit or choose another --out."
            )
        share = run.part[processes.index :: processes.count]
        left = [index for index in share if run.dataset.ids[index] not in records]
        progress = progress or (lambda done, of: None)
        progress(len(share) - len(left), len(share))
        for done, record in enumerate(_segment(run, left) if left else (), len(share) - len(left) + 1):
            file.append(record.line())
            records[record.image_id] = record
            log(record)
            progress(done, len(share))
    return Outcome(run, _gathered(run, records, processes), processes.count)


def _segment(run: Run, indices: list[int]) -> Iterator[ImageRecord]:
    values = submission_values(run.dataset) if run.save_predictions else None
    watch, images = Stopwatch(), read_ahead(indices, run.read, run.threads)
    # The pixels of an image are counted while the next one is on the device.
    with ThreadPoolExecutor(1) as pool:
        before = None
        options = {"batch": run.batch, "counting": True}
        for example, prediction in label_images(run.segmenter.model, images, run.question(), watch, **options):
            if values is not None:
                path = prediction_path(run.out, example.image_id)
                with writing_to(run.out):
                    make_folder(path.parent)
                    write_beside(path, partial(write_label, label=values[prediction.labels]))
                watch.mark("save")
            now = pool.submit(_counted, run, example, prediction, watch.take())
            if before:
                record = before.result()
                watch.mark("metrics")
                yield record
                watch.mark("record")
            before = now
        if before:
            yield before.result()


def _counted(run: Run, example: Example, prediction: Prediction, seconds: dict[str, float]) -> ImageRecord:
    """The record of an image: its areas, its boundaries at the edges of the run's windows and of GLA's, its one_key."""
    size, ignore, labels = example.image.shape[:2], run.dataset.ignore, prediction.labels

    def resized(windows: WindowConfig) -> tuple[int, int]:
        grid = image_grid(size, windows)
        return grid.height, grid.width

    def boundary(windows: WindowConfig) -> BoundaryCounts:
        return boundary_counts(labels, example.label, resized(windows), windows, ignore)

    windows, common = run.row.windows, common_windows(run.row.benchmark)
    own = boundary(windows)
    areas = image_areas(labels, example.label, len(run.row.classes), ignore)
    counts = Counts(areas, own, own if common == windows else boundary(common))
    one_key = tuple(map(int, prediction.one_key or (0, 0)))  # none where no token attends by features
    return image_record(example.image_id, size, resized(windows), counts, seconds, one_key)


def labels_of(run: Run, index: int) -> tuple[Example, Integer[np.ndarray, "h w"], WindowGrid]:
    """The example at an index, labelled once more, and its windows."""
    example, prepared = run.read(index)
    (prediction,) = predict(run.segmenter.model, [prepared], run.question())
    return example, prediction.labels, prepared.grid


def prediction_path(out: Path, image_id: str) -> Path:
    """Path of a saved prediction, by the image's own file name, as submission servers want it."""
    return out / "predictions" / f"{image_id}.png"


def _gathered(run: Run, known: dict[str, ImageRecord], processes: Processes) -> tuple[ImageRecord, ...]:
    """The records of all processes in evaluation order, each image once."""
    wanted = [run.dataset.ids[index] for index in run.part]
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
