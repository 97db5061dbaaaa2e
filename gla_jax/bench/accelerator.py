"""The figures of an accelerator in about ten minutes: two models, sizes, precisions, batches and single large images.

    gla-jax bench --accelerator

Random weights, bfloat16 towers: no download is needed, and none of the programs depends on the numbers.
"""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache

from gla_jax.bench.measure import machine
from gla_jax.bench.memory import device_peak, machine_memory
from gla_jax.bench.options import Options, report_head
from gla_jax.bench.parts import Subject, part_rows, random_params
from gla_jax.bench.report import DASH, size_text, table
from gla_jax.bench.sizes import model_specs
from gla_jax.bench.timing import ACCELERATOR_CEILING_SIZES, Bench, Row, measure_ceiling
from gla_jax.config import SegmenterConfig, WindowConfig
from gla_jax.predict.cost import image_flops
from gla_jax.predict.model import Model
from gla_jax.predict.predict import Ready, label_images
from gla_jax.settings.options import with_fields
from gla_jax.support.batches import Stopwatch, read_ahead
from gla_jax.support.errors import first_line
from gla_jax.support.files import write_json, write_text
from gla_jax.support.progress import counter

FORMAT = "gla-jax accelerator 1"
FILES = "accelerator.json", "accelerator.md"
THREADS = 4  # that resize images ahead
COMPILING = 6  # programs that compile at once, before the first of a group is measured
LEFT_OUT = "left out: no time was left"


@dataclass(frozen=True)
class Series:
    """The work of a run, in this order as long as time is left.

    models: CLIP+VFM by name or folder, whose sizes alone are read; sizes: (height, width) of streams of images in
    pixels; large: of single ones; precisions: the first is measured for every batch, the others for a batch of 1 and
    the best one; minutes: after which nothing new begins; stream_seconds: of a timed stream of images, about.
    """

    models: tuple[str, ...] = ("clip-vit-base-patch16+dino-vitb8", "clip-vit-base-patch16+dinov2-base")
    sizes: tuple[tuple[int, int], ...] = ((336, 448), (560, 1120))
    large: tuple[tuple[int, int], ...] = ((1080, 1920), (2160, 3840))
    precisions: tuple[str, ...] = ("high", "fast", "highest")
    batches: tuple[int, ...] = (1, 4, 16)
    config: SegmenterConfig = field(
        default_factory=lambda: SegmenterConfig(dtype="bfloat16", windows=WindowConfig(short_side=None))
    )
    prompts: int = 21
    repeats: int = 5
    ceiling_sizes: tuple[int, ...] = ACCELERATOR_CEILING_SIZES
    minutes: float = 10.0
    stream_seconds: float = 2.0


SERIES = Series()


@dataclass(frozen=True)
class Case:
    """Images of one size (height, width) under one precision; batch: that go through the towers together."""

    model: str
    size: tuple[int, int]
    precision: str
    batch: int
    large: bool = False


class Job(NamedTuple):
    """A measurement.

    rows: the list that takes its rows; fixed: fields that all of them have; compile: its programs, which are not run;
    measure: gives the rows, from the seconds that compiling took, None where nothing was compiled ahead.
    """

    rows: list[dict[str, Any]]
    fixed: dict[str, Any]
    compile: Callable[[], Any] | None
    measure: Callable[[Any], list[dict[str, Any]]]


@dataclass
class Accelerator:
    """Figures of a series as they come in.

    images: of whole images; parts: of one image; each with "error" where it failed or was left out.
    """

    series: Series
    head: dict[str, Any]
    images: list[dict[str, Any]] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The whole of accelerator.json."""
        return self.head | {"images": self.images, "parts": self.parts}

    def best_batch(self, model: str, size: tuple[int, int]) -> int:
        """The batch with most images a second under the first precision; 1 where none was measured."""
        rows = [row for row in self.images if (row["model"], tuple(row["size"])) == (model, size)]
        measured = {row["images_per_second"]: row["batch"] for row in rows if "images_per_second" in row}
        return measured[max(measured)] if measured else 1


def run_accelerator(series: Series, command: str, folder: Path) -> tuple[Accelerator, list[Path]]:
    """Measure a series; after every case its files are written anew, so that what ends a run loses nothing before."""
    begun, device = time.monotonic(), jax.devices()[0]
    dtype = series.config.dtype
    ceiling = measure_ceiling(dtype, series.ceiling_sizes, series.repeats)
    head = {
        **report_head(FORMAT, command),
        "machine": machine(1),
        "series": asdict(series),
        "ceiling": {"dtype": dtype, "flops_per_second": ceiling},
    }
    result, models = Accelerator(series, head), {}
    # All parts are compared with the ceiling of the towers' dtype, whatever they are computed in.
    bench = Bench(series.repeats, machine_memory(device), dict.fromkeys(("float32", dtype), ceiling))
    done, total = 0, _count(series)
    with counter("cases measured") as advance, ThreadPoolExecutor(COMPILING) as pool, _compiled_once():
        for group in _groups(result, models, bench):
            late = _late(begun, series)
            # Nothing runs meanwhile: CUDA records a program's first run as a graph, which work beside it spoils.
            compiled = [None if late or job.compile is None else pool.submit(job.compile) for job in group]
            wait([each for each in compiled if each])
            for job, ready in zip(group, compiled, strict=True):
                advance(done, total)
                job.rows.extend(_rows(job, ready, _late(begun, series)))
                result.head["minutes"] = (time.monotonic() - begun) / 60
                written, done = write_accelerator(result, folder), done + 1
        advance(total, total)
    return result, written


def _late(begun: float, series: Series) -> bool:
    return time.monotonic() - begun > 60 * series.minutes


def _rows(job: Job, ready: Future | None, late: bool) -> list[dict[str, Any]]:
    if late:
        return [job.fixed | {"error": LEFT_OUT}]
    try:
        return [job.fixed | row for row in job.measure(ready.result() if ready else None)]
    except Exception as error:  # such as too little memory: the cases after it are still of use
        return [job.fixed | {"error": f"{type(error).__name__}: {first_line(error)}"}]


@contextmanager
def _compiled_once() -> Iterator[None]:
    """A compilation cache within the block, where JAX has none: what was compiled ahead is not compiled again."""
    before = jax.config.jax_compilation_cache_dir
    with TemporaryDirectory() as folder:
        if before is None:
            jax.config.update("jax_compilation_cache_dir", folder)
            compilation_cache.reset_cache()
        try:
            yield
        finally:
            if before is None:
                jax.config.update("jax_compilation_cache_dir", None)
                compilation_cache.reset_cache()


def _count(series: Series) -> int:
    streams = len(series.models) * len(series.sizes) * (len(series.batches) + 1 + 2 * (len(series.precisions) - 1))
    return streams + len(series.models) * len(series.large)


def _groups(result: Accelerator, models: dict[str, Model], bench: Bench) -> Iterator[list[Job]]:
    """Jobs whose programs compile together, the most important first."""
    series, first = result.series, result.series.precisions[0]

    def image(case: Case) -> Job:
        model = _model(series, models, case.model)
        compile_, measure = (partial(each, series, model, case) for each in (_compile_image, _image_row))
        return Job(result.images, asdict(case), compile_, lambda seconds: [measure(bench, seconds)])

    def parts(name: str, size: tuple[int, int]) -> Job:
        fixed = {"model": name, "size": size, "precision": first}
        compile_, measure = (
            partial(each, _subject(series, _model(series, models, name), name, size), bench)
            for each in (_compile_parts, _part_rows)
        )
        return Job(result.parts, fixed, compile_, measure)

    pairs = [(model, size) for model in series.models for size in series.sizes]
    yield [job for pair in pairs for job in (*(image(Case(*pair, first, n)) for n in series.batches), parts(*pair))]
    yield [image(Case(model, size, first, 1, large=True)) for model in series.models for size in series.large]
    # The best batch has been measured by now.
    batches = {pair: dict.fromkeys((1, result.best_batch(*pair))) for pair in pairs}
    for precision in series.precisions[1:]:
        yield [image(Case(*pair, precision, batch)) for pair in pairs for batch in batches[pair]]


def _model(series: Series, models: dict[str, Model], name: str) -> Model:
    """A model on the device under the first precision."""
    if name not in models:
        config = with_fields(series.config, {"precision": series.precisions[0]})
        models[name] = Model.place(random_params(*model_specs(name)), config)
    return models[name]


def _subject(series: Series, model: Model, name: str, size: tuple[int, int]) -> Subject:
    options = Options(name, size, model.settings, ("towers", "attention", "labels"), series.prompts, series.repeats)
    return Subject.of(options, model)


def _compile_parts(subject: Subject, bench: Bench) -> dict[str, float | None]:
    """Seconds of compiling each part that is one program."""
    parts = subject._replace(options=replace(subject.options, parts=("towers", "attention")))
    # Above a limit of 0 bytes every program is compiled and none is run.
    rows = (run() for run in part_rows(parts, replace(bench, memory_limit=0.0), ("blockwise",)))
    return {row.name: row.compile_seconds for row in rows}


def _part_rows(subject: Subject, bench: Bench, compiled: dict[str, float | None] | None) -> list[dict[str, Any]]:
    """The parts of one image, each a program of its own; compiled: of _compile_parts."""

    def figures(row: Row) -> dict[str, Any]:
        fixed = {"part": row.part, "name": row.name, "windows": row.windows, "tflop": row.total_flops / 1e12}
        if row.stopped:
            return fixed | {"error": "needs more memory than there is"}
        share = {"seconds": row.median, "share_of_ceiling": row.share_of_ceiling}
        compiling = (compiled or {}).get(row.name, row.compile_seconds)
        return fixed | share | {"compile_seconds": compiling, "device_peak": row.device_peak}

    return [figures(run()) for run in part_rows(subject, bench, ("blockwise",))]


def _case_subject(series: Series, model: Model, case: Case) -> Subject:
    model = model.with_config(with_fields(model.settings, {"precision": case.precision}))
    return _subject(series, model, case.model, case.size)


def _compile_image(series: Series, model: Model, case: Case) -> float | None:
    """Seconds of compiling the program of a group of images; None for those that go through in steps."""
    subject = _case_subject(series, model, case)
    begun = time.perf_counter()
    prepared = subject.model.prepare(subject.image)
    compiled = subject.model.compile_features([prepared] * case.batch)
    return None if compiled is None else time.perf_counter() - begun


def _image_row(series: Series, model: Model, case: Case, bench: Bench, compiling: float | None) -> dict[str, Any]:
    """A stream of images of one size from bytes to labels, as every command runs it; compiling: of _compile_image."""
    subject, device = _case_subject(series, model, case), jax.devices()[0]
    model, before = subject.model, device_peak(device)
    stream = partial(_stream_seconds, subject, case.batch)
    first, again = stream(case.batch), stream(case.batch)
    # A large image takes seconds by itself: one is enough.
    groups = 1 if case.large else max(1, math.ceil(series.stream_seconds / again))
    seconds = again if groups == 1 else stream(groups * case.batch)
    images, peak = groups * case.batch, device_peak(device)
    flops = image_flops(model.params, subject.options.grid.count, model.config)
    rate = images / seconds
    return {
        "windows": subject.options.grid.count,
        "images": images,
        "images_per_second": rate,
        "seconds": seconds / images,
        "tflop": flops / 1e12,
        "share_of_ceiling": flops * rate / bench.ceiling[model.config.dtype],
        "compile_seconds": max(first - again, 0.0) if compiling is None else compiling,
        "device_peak": peak if peak != before else None,
    }


def _stream_seconds(subject: Subject, batch: int, images: int) -> float:
    """Seconds of a stream of equal images, resized ahead by threads, until the last label map is on the host."""
    ready = read_ahead(range(images), lambda index: Ready(index, subject.model.prepare(subject.image)), THREADS)
    begun = time.perf_counter()
    for _ in label_images(subject.model, ready, subject.question, Stopwatch(), batch=batch):
        pass
    return time.perf_counter() - begun


COLUMNS = (
    "model", "image", "windows", "precision", "batch", "images a second", "ms", "TFLOP", "of ceiling", "compile s",
    "device",
)  # fmt: skip
PART_COLUMNS = ("model", "part", "image", "windows", "precision", "ms", "TFLOP", "of ceiling", "compile s", "device")


def markdown(result: Accelerator) -> str:
    """The figures as two tables, with the machine that they hold for."""
    head, on = result.head, result.head["machine"]
    ceiling = f"{head['ceiling']['flops_per_second'] / 1e12:.4g} TFLOP/s in {head['ceiling']['dtype']}"
    lines = [
        "# gla-jax bench --accelerator",
        f"    {head['command']}",
        f"{head['date']}, gla-jax {head['version']}, jax {on['jax']}, Python {on['python']}, {on['device']}, "
        f"{size_text(on['memory'])}, {on['processor']}, {on['cores']} cores; {head['minutes']:.1f} minutes.",
        f"Random weights, {head['ceiling']['dtype']} towers, {result.series.prompts} prompts. Ceiling: the best square "
        f"matrix product, {ceiling}; TFLOP: matrix products by formulas, each counted once. Images from bytes to "
        "labels in a stream, the next one resized meanwhile; parts are programs of their own. Compile: beside up to "
        f"{COMPILING - 1} other programs. Device: the highest use of its memory, where it rose.",
        "\n".join(table([COLUMNS, *map(_image_cells, result.images)])),
        "\n".join(table([PART_COLUMNS, *map(_part_cells, result.parts)])),
    ]
    return "\n\n".join(lines) + "\n"


def _image_cells(row: dict[str, Any]) -> tuple[str, ...]:
    fixed = row["model"], _size(row), str(row.get("windows", DASH)), row["precision"], str(row["batch"])
    if "error" in row:
        return *fixed, row["error"], *[DASH] * 5
    return *fixed, f"{row['images_per_second']:.4g}", *_figures(row)


def _part_cells(row: dict[str, Any]) -> tuple[str, ...]:
    part = f"{row['part']}, {row['name']}" if "part" in row else DASH
    fixed = row["model"], part, _size(row), str(row.get("windows", DASH)), row["precision"]
    return (*fixed, row["error"], *[DASH] * 4) if "error" in row else (*fixed, *_figures(row))


def _size(row: dict[str, Any]) -> str:
    return "x".join(map(str, row["size"]))


def _figures(row: dict[str, Any]) -> tuple[str, ...]:
    numbers = f"{1000 * row['seconds']:.4g}", f"{row['tflop']:.4g}", f"{row['share_of_ceiling']:.0%}"
    compiling = row["compile_seconds"]
    return *numbers, DASH if compiling is None else f"{compiling:.1f}", size_text(row["device_peak"])


def write_accelerator(result: Accelerator, folder: Path) -> list[Path]:
    """accelerator.json and accelerator.md; returns their paths."""
    paths = [folder / name for name in FILES]
    write_json(paths[0], result.as_dict())
    write_text(paths[1], markdown(result))
    return paths
