"""The cost of the evaluation around the model: the whole loop with towers that return ones, at once or after a while.

    gla-jax eval overhead

Generated images go through decoding, resizing, windows, upsampling, argmax, metrics and records as any benchmark's do.
Towers that take some time show what the loop adds to a device that is busy: at best nothing.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from gla_jax.bench.parts import CLIP_BASE, DINO_BASE
from gla_jax.bench.timing import random_array
from gla_jax.eval.datasets.dataset import open_dataset
from gla_jax.eval.protocols import Protocol, protocol
from gla_jax.eval.runner import Run, measure
from gla_jax.images.windows import Canvas, Channels, cut_canvas
from gla_jax.pipeline import Counted, SegmenterParams
from gla_jax.predict.model import Model, Prepared
from gla_jax.predict.predict import Ready, start
from gla_jax.support.arrays import Array, Float, Int, l2_normalize
from gla_jax.support.steps import Progress
from gla_jax.text.prompts import Classes

if TYPE_CHECKING:
    from rich.table import Table


PROCESSOR = "processor, all threads"
BUSY_SECONDS, BUSY_IMAGES = 0.25, 40  # of the towers that take a while, and images that go through them
BUSY_ROUNDS = 2  # in turn, of which the least counts: other work on the machine only adds
_DEVICE = Lock()  # one image at a time


@dataclass(frozen=True)
class Case:
    """A kind of image: the benchmark whose layout and classes it has, size (height, width) in pixels, number of images.

    synonyms: those of the benchmark are prompts too; else every class is one prompt, without a threshold.
    """

    benchmark: str
    size: tuple[int, int]
    images: int
    synonyms: bool = True

    @property
    def row(self) -> Protocol:
        """The protocol of the labels."""
        row = protocol(self.benchmark)
        if self.synonyms:
            return row
        prompts = tuple((name,) for name in row.classes)
        return replace(row, prompts=prompts, settings=replace(row.settings, threshold=0.0))


# Images and labels of each benchmark.
FILES = {
    "voc21": ("JPEGImages/{}.jpg", "SegmentationClass/{}.png"),
    "coco_stuff164k": ("images/val2017/{:012}.jpg", "annotations/val2017/{:012}_labelTrainIds.png"),
    "cityscapes": ("leftImg8bit/val/city/{:04}_leftImg8bit.png", "gtFine/val/city/{:04}_gtFine_labelTrainIds.png"),
}
CASES = (
    Case("voc21", (375, 500), 200, synonyms=False),
    Case("voc21", (375, 500), 200),
    Case("coco_stuff164k", (480, 640), 100),
    Case("cityscapes", (1024, 2048), 40),
)


class Cost(NamedTuple):
    """The cost of a case: images a second, and milliseconds an image.

    milliseconds: of each stage of the loop; of the stages that reading threads run ahead; of all threads on any core,
    which other work on the machine hardly changes. device, loop: seconds an image with towers that take
    BUSY_SECONDS, of the device's work alone (windows, towers, labels) and of the whole loop; host: seconds of processor
    time by which the loop exceeds the device's work, which is the processor's too where there is no accelerator.
    """

    case: Case
    classes: int
    prompts: int
    images_per_second: float
    milliseconds: dict[str, float]
    device: float
    loop: float
    host: float


@dataclass(frozen=True)
class ConstantModel(Model):
    """A model whose towers return ones; everything around them is real. It is its own segmenter, with random text.

    seconds: of the towers, in which a thread sleeps: of an accelerator the processor sees no more.
    """

    seconds: float = 0.0
    name, model_hash = "ones", ""

    @property
    def model(self) -> "ConstantModel":
        """The model of the segmenter."""
        return self

    def embeddings(self, classes: Classes) -> tuple[Float[Array, "Q E"], Int[np.ndarray, " Q"]]:
        """Random rows of length one, and the class of each."""
        rows = l2_normalize(random_array((len(classes.prompts), self.params.clip_spec.embed_dim)))
        return rows, np.asarray(classes.class_of_prompt, np.int32)

    def counted(
        self, images: Sequence[Prepared], progress: Progress | None = None, counting: bool = True
    ) -> list[Counted]:
        """Ones for every token of the images' windows, which are cut on the device; nothing is counted."""
        shape = images[0].count, self.params.tokens(self.config), self.params.clip_spec.embed_dim
        colours = [_cut(self.canvas([image]), image.grid.crop, image.mean) for image in images]
        return [Counted(_ones(colour, self.seconds, shape)) for colour in colours]


@partial(jax.jit, static_argnames=("crop", "mean"))
def _cut(canvas: Canvas, crop: int, mean: Channels) -> Float[Array, ""]:
    return cut_canvas(canvas, crop, mean).pixels.min()


# Waits for a program of its own: JAX sleeps in the caller's thread when all that a callback reads is there.
@partial(jax.jit, static_argnames=("seconds", "shape"))
def _ones(colour: Float[Array, ""], seconds: float, shape: tuple[int, ...]) -> Float[Array, "W S E"]:
    def towers(colour: Float[Array, ""]) -> Float[np.ndarray, ""]:
        with _DEVICE:
            time.sleep(seconds)
        return np.zeros_like(colour)

    if seconds:
        colour = jax.pure_callback(towers, jax.ShapeDtypeStruct((), jnp.float32), colour)
    return jnp.full(shape, colour * 0 + 1)


@dataclass(frozen=True)
class TimedRun(Run):
    """A run that keeps the seconds of decoding and of preparing each image, whichever thread does it."""

    ahead: dict[str, list[float]] = field(default_factory=lambda: {"decode": [], "resize, cut": []})

    def read(self, index: int) -> Ready:
        """The example at an index, its image cut into windows."""
        times = [time.perf_counter()]
        example = self.dataset.read(index)
        times.append(time.perf_counter())
        ready = Ready(example, self.segmenter.model.prepare(example.image))
        times.append(time.perf_counter())
        for seconds, taken in zip(self.ahead.values(), np.diff(times), strict=True):
            seconds.append(taken)
        return ready


def measure_overhead(case: Case, threads: int = 2) -> Cost:
    """Run one case, after a warm-up that compiles, then again with towers that take some time."""
    row, params = case.row, SegmenterParams({}, CLIP_BASE, {}, DINO_BASE)
    with tempfile.TemporaryDirectory() as folder:
        _write_images(Path(folder), case)
        dataset, model = open_dataset(case.benchmark, Path(folder)), ConstantModel(params, row.config("gla"))
        measure(Run(dataset, row, "gla", model, Path(folder) / "warm-up", limit=3))
        run = TimedRun(dataset, row, "gla", model, Path(folder) / "out", threads=threads)
        begun, busy = time.perf_counter(), time.process_time()
        records = measure(run).records
        seconds, busy = time.perf_counter() - begun, time.process_time() - busy
        ahead = {f"{stage} (ahead)": sum(taken) for stage, taken in run.ahead.items()}  # more reads follow
        images = min(case.images, BUSY_IMAGES)
        busy_run = replace(run, segmenter=replace(model, seconds=BUSY_SECONDS), limit=images)
        rounds = (replace(busy_run, out=Path(folder) / f"busy-{index}") for index in range(BUSY_ROUNDS))
        device, loop, host = (min(taken) / images for taken in zip(*map(_busy_seconds, rounds), strict=True))
    stages = dict.fromkeys(stage for record in records for stage in record.seconds)
    totals = {stage: sum(record.seconds.get(stage, 0.0) for record in records) for stage in stages}
    totals |= ahead | {PROCESSOR: busy}
    milliseconds = {stage: 1000 * total / case.images for stage, total in totals.items()}
    prompts = len(row.vocabulary.prompts)
    return Cost(case, len(row.classes), prompts, case.images / seconds, milliseconds, device, loop, host)


def _busy_seconds(run: Run) -> tuple[float, float, float]:
    """Seconds of a run: of the device's work alone, all of it handed over at once, and of the whole loop.

    The third is the processor time of the loop less that of the device's work.
    """
    question, prepared = run.question(), [run.read(index).prepared for index in range(run.images)]
    times = [(time.perf_counter(), time.process_time())]
    for started in [start(run.segmenter, [image], question, 1) for image in prepared]:
        started.prediction(0)
    times.append((time.perf_counter(), time.process_time()))
    measure(run)
    times.append((time.perf_counter(), time.process_time()))
    (device, of_device), (loop, of_loop) = np.diff(times, axis=0).tolist()
    return device, loop, of_loop - of_device


def overhead_table(costs: list[Cost]) -> "Table":
    """The costs as `gla-jax eval overhead` prints them."""
    from rich import box
    from rich.table import Table

    table = Table(
        title="The loop with towers that return ones",
        caption="Milliseconds an image; those ahead are of the reading threads, which run at the same time.",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("image")
    for cost in costs:
        height, width = cost.case.size
        table.add_column(f"{width} x {height}", justify="right", no_wrap=True)
    table.add_row("classes, prompts", *(f"{cost.classes}, {cost.prompts}" for cost in costs))
    table.add_row("images a second", *(f"{cost.images_per_second:.1f}" for cost in costs), end_section=True)
    for stage in costs[0].milliseconds:
        last = stage == PROCESSOR
        table.add_row(stage, *(f"{cost.milliseconds.get(stage, 0.0):.1f}" for cost in costs), end_section=last)
    towers = f"towers of {1000 * BUSY_SECONDS:.0f}"
    table.add_row(f"{towers}, device alone", *(f"{1000 * cost.device:.1f}" for cost in costs))
    table.add_row(f"{towers}, whole loop", *(f"{1000 * cost.loop:.1f}" for cost in costs))
    table.add_row("processor, the loop's own part", *(f"{1000 * cost.host:.1f}" for cost in costs))
    table.add_row("the loop adds", *(f"{cost.loop / cost.device - 1:.1%}" for cost in costs))
    return table


def _write_images(folder: Path, case: Case) -> None:
    """Smooth random pictures and blocky labels in the benchmark's own layout."""
    generator = np.random.default_rng(0)
    height, width = case.size
    for index in range(case.images):
        coarse = generator.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        blocks = generator.integers(0, 19, (height // 50 + 1, width // 50 + 1), np.uint8)
        label = Image.fromarray(blocks.repeat(50, 0).repeat(50, 1)[:height, :width])
        for pattern, content in zip(FILES[case.benchmark], (picture, label), strict=True):
            path = folder / pattern.format(index)
            path.parent.mkdir(parents=True, exist_ok=True)
            content.save(path)
    split = folder / "ImageSets/Segmentation/val.txt"  # of VOC; Cityscapes has none
    split.parent.mkdir(parents=True, exist_ok=True)
    split.write_text("".join(f"{index}\n" for index in range(case.images)))
