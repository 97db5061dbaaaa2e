"""What the evaluation costs around the model: the whole loop with towers that return zeros.

    gla-jax eval overhead

Generated images go through decoding, resizing, windows, upsampling, argmax, metrics and records as any benchmark's do.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from gla_jax.config import SegmenterConfig
from gla_jax.eval.datasets.dataset import open_dataset
from gla_jax.eval.protocols import Protocol, protocol
from gla_jax.eval.runner import Run, measure
from gla_jax.segmenter import Prepared, image_windows
from gla_jax.support.shapes import Array, Float, UInt8
from gla_jax.text.prompts import Classes

if TYPE_CHECKING:
    from rich.table import Table

TOKENS, EMBED_DIM = 28 * 28, 512  # of a window under DINO ViT-B/8, and CLIP's joint space


@dataclass(frozen=True)
class Case:
    """A kind of image: size (height, width) in pixels, the benchmark whose layout and classes it has, how many.

    synonyms: whether the benchmark's own are queries too, or every class is one query without a threshold.
    """

    benchmark: str
    size: tuple[int, int]
    images: int
    synonyms: bool = True

    @property
    def row(self) -> Protocol:
        """The protocol that images are labelled under."""
        row = protocol(self.benchmark)
        return row if self.synonyms else replace(row, prompts=tuple((name,) for name in row.classes), threshold=0.0)


CASES = (
    Case("voc21", (375, 500), 200, synonyms=False),
    Case("voc21", (375, 500), 200),
    Case("cityscapes", (1024, 2048), 40),
)


@dataclass(frozen=True)
class Cost:
    """What a case cost: images a second, and milliseconds an image of every stage.

    threads: of the stages that the reading threads do, ahead of the main one; processor: milliseconds of all threads
    on any core, which other work on the machine hardly changes.
    """

    case: Case
    classes: int
    queries: int
    images_per_second: float
    milliseconds: dict[str, float]
    threads: dict[str, float]
    processor: float


class Clock:
    """Seconds that functions take, whichever thread calls them."""

    def __init__(self):
        self._seconds: dict[str, list[float]] = {}

    def timed(self, stage: str, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The function, its calls counted as a stage."""
        calls = self._seconds.setdefault(stage, [])

        def counted(argument: Any) -> Any:
            start = time.perf_counter()
            result = function(argument)
            calls.append(time.perf_counter() - start)
            return result

        return counted

    def milliseconds(self, last: int) -> dict[str, float]:
        """The mean of the last calls of every stage."""
        return {stage: 1000 * float(np.mean(calls[-last:])) for stage, calls in self._seconds.items()}


class ZeroTowers:
    """A segmenter whose towers return zeros; everything around them is real."""

    name = "zeros"
    model_hash = ""

    def __init__(self, config: SegmenterConfig, clock: "Clock"):
        self.config = config
        self.prepare = clock.timed("resize, cut", self._prepare)

    def text_embeddings(self, classes: Classes) -> Float[Array, "Q E"]:
        """Random unit rows."""
        rows = np.random.default_rng(0).normal(size=(len(classes.prompts), EMBED_DIM))
        return jnp.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), jnp.float32)

    def _prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Prepared:
        """The image brought to its working size and cut into windows."""
        return Prepared(*image_windows(image, self.config.windows))

    def batch_features(self, images: Sequence[Prepared]) -> list[Float[Array, "W S E"]]:
        """Zeros for every token of the images' windows, which are handed to the device."""
        return [_zeros(len(jax.device_put(image.windows.pixels))) for image in images]


@cache
def _zeros(windows: int) -> Float[Array, "W S E"]:
    return jnp.zeros((windows, TOKENS, EMBED_DIM))


def measure_overhead(case: Case, threads: int = 2) -> Cost:
    """Run one case, after a warm-up that compiles."""
    row = case.row
    with tempfile.TemporaryDirectory() as folder:
        _write_images(Path(folder), case)
        clock = Clock()
        dataset = open_dataset(case.benchmark, Path(folder))
        dataset = replace(dataset, read=clock.timed("decode", dataset.read))
        segmenter = ZeroTowers(row.config("gla"), clock)
        measure(Run(dataset, row, "gla", segmenter, Path(folder) / "warm-up", limit=3))
        start, busy = time.perf_counter(), time.process_time()
        outcome = measure(Run(dataset, row, "gla", segmenter, Path(folder) / "out", threads=threads))
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
    stages = dict.fromkeys(stage for record in outcome.records for stage in record.seconds)
    milliseconds = {
        stage: 1000 * float(np.mean([record.seconds.get(stage, 0.0) for record in outcome.records])) for stage in stages
    }
    return Cost(
        case,
        len(row.classes),
        len(row.vocabulary.queries),
        case.images / seconds,
        milliseconds,
        clock.milliseconds(case.images),
        1000 * busy / case.images,
    )


def overhead_table(costs: list[Cost]) -> "Table":
    """The costs as `gla-jax eval overhead` prints them."""
    from rich import box
    from rich.table import Table

    table = Table(
        title="The loop with towers that return zeros",
        caption="Milliseconds an image; those ahead are of the reading threads, which go on meanwhile.",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("image")
    for cost in costs:
        height, width = cost.case.size
        table.add_column(f"{width} x {height}", justify="right", no_wrap=True)
    table.add_row("classes, queries", *(f"{cost.classes}, {cost.queries}" for cost in costs))
    table.add_row("images a second", *(f"{cost.images_per_second:.1f}" for cost in costs))
    table.add_section()
    for stage in costs[0].milliseconds:
        table.add_row(stage, *(f"{cost.milliseconds.get(stage, 0.0):.1f}" for cost in costs))
    table.add_section()
    for stage in costs[0].threads:
        table.add_row(f"{stage} (ahead)", *(f"{cost.threads[stage]:.1f}" for cost in costs))
    table.add_section()
    table.add_row("processor, all threads", *(f"{cost.processor:.1f}" for cost in costs))
    return table


def _write_images(folder: Path, case: Case) -> None:
    """Smooth random pictures and blocky labels in the benchmark's own layout."""
    generator = np.random.default_rng(0)
    height, width = case.size
    city = case.benchmark == "cityscapes"
    names = [f"city_{index:04d}" for index in range(case.images)]
    for name in names:
        coarse = generator.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        blocks = generator.integers(0, 19, (height // 50 + 1, width // 50 + 1), np.uint8)
        label = Image.fromarray(blocks.repeat(50, 0).repeat(50, 1)[:height, :width])
        image_path = f"leftImg8bit/val/city/{name}_leftImg8bit.png" if city else f"JPEGImages/{name}.jpg"
        label_path = f"gtFine/val/city/{name}_gtFine_labelTrainIds.png" if city else f"SegmentationClass/{name}.png"
        for path, written in ((image_path, picture), (label_path, label)):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            written.save(folder / path)
    if not city:
        split = folder / "ImageSets/Segmentation/val.txt"
        split.parent.mkdir(parents=True, exist_ok=True)
        split.write_text("".join(f"{name}\n" for name in names))
