"""The cost of the evaluation around the model: the whole loop with towers that return zeros.

    gla-jax eval overhead

Generated images go through decoding, resizing, windows, upsampling, argmax, metrics and records as any benchmark's do.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
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
from gla_jax.pipeline import SegmenterParams
from gla_jax.predict.model import Model, Prepared
from gla_jax.predict.predict import Ready
from gla_jax.support.arrays import Array, Float, l2_normalize
from gla_jax.support.steps import Progress
from gla_jax.text.prompts import Classes

if TYPE_CHECKING:
    from rich.table import Table


PROCESSOR = "processor, all threads"


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
    "cityscapes": ("leftImg8bit/val/city/{:04}_leftImg8bit.png", "gtFine/val/city/{:04}_gtFine_labelTrainIds.png"),
}
CASES = (
    Case("voc21", (375, 500), 200, synonyms=False),
    Case("voc21", (375, 500), 200),
    Case("cityscapes", (1024, 2048), 40),
)


class Cost(NamedTuple):
    """The cost of a case: images a second, and milliseconds an image.

    milliseconds: of each stage of the loop; of the stages that reading threads run ahead; of all threads on any core,
    which other work on the machine hardly changes.
    """

    case: Case
    classes: int
    prompts: int
    images_per_second: float
    milliseconds: dict[str, float]


class ZeroModel(Model):
    """A model whose towers return zeros; everything around them is real. It is its own segmenter, with random text."""

    name, model_hash = "zeros", ""

    @property
    def model(self) -> "ZeroModel":
        """The model of the segmenter."""
        return self

    def text_embeddings(self, classes: Classes) -> Float[Array, "Q E"]:
        """Random rows of length one."""
        return l2_normalize(random_array((len(classes.prompts), self.params.clip_spec.embed_dim)))

    def features(self, images: Sequence[Prepared], progress: Progress | None = None) -> list[Float[Array, "W S E"]]:
        """Zeros for every token of the images' windows, which are handed to the device."""
        shape = self.params.tokens(self.config), self.params.clip_spec.embed_dim
        return [_zeros(len(jax.device_put(image.windows.pixels)), *shape) for image in images]


@cache
def _zeros(*shape: int) -> Float[Array, "W S E"]:
    return jnp.zeros(shape)


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
    """Run one case, after a warm-up that compiles."""
    row, params = case.row, SegmenterParams({}, CLIP_BASE, {}, DINO_BASE)
    with tempfile.TemporaryDirectory() as folder:
        _write_images(Path(folder), case)
        dataset, model = open_dataset(case.benchmark, Path(folder)), ZeroModel(params, row.config("gla"))
        measure(Run(dataset, row, "gla", model, Path(folder) / "warm-up", limit=3))
        run = TimedRun(dataset, row, "gla", model, Path(folder) / "out", threads=threads)
        start, busy = time.perf_counter(), time.process_time()
        records = measure(run).records
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
    stages = dict.fromkeys(stage for record in records for stage in record.seconds)
    totals = {stage: sum(record.seconds.get(stage, 0.0) for record in records) for stage in stages}
    totals |= {f"{stage} (ahead)": sum(taken) for stage, taken in run.ahead.items()}
    milliseconds = {stage: 1000 * total / case.images for stage, total in (totals | {PROCESSOR: busy}).items()}
    return Cost(case, len(row.classes), len(row.vocabulary.prompts), case.images / seconds, milliseconds)


def overhead_table(costs: list[Cost]) -> "Table":
    """The costs as `gla-jax eval overhead` prints them."""
    from rich import box
    from rich.table import Table

    table = Table(
        title="The loop with towers that return zeros",
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
        table.add_row(stage, *(f"{cost.milliseconds.get(stage, 0.0):.1f}" for cost in costs))
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
