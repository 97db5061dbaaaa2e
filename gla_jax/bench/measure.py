"""What a model costs on this machine: seconds, operations a second, memory and compile time, part by part.

Every part runs the functions that segment an image. Weights, windows, features and text may be random: none of these
programs depends on what the numbers are.
"""

import os
import platform
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gla_jax.attention.attend import aggregate_values
from gla_jax.attention.ring import WINDOW_AXIS
from gla_jax.bench.memory import (
    GIB,
    ProgramBytes,
    device_peak,
    forget_host_peak,
    host_peak,
    machine_memory,
    program_bytes,
)
from gla_jax.checkpoints.model_folder import Params, VfmSpec, abstract_params
from gla_jax.config import METHODS, MethodConfig, SegmenterConfig, settings_as_dict
from gla_jax.distributed.mesh import make_mesh, padded_windows, place_params
from gla_jax.images.windows import WindowGrid, Windows, bucket
from gla_jax.labels.label_map import Layout, label_map, layout, whole_logits
from gla_jax.pipeline import SegmenterParams, WindowTokens, aggregate_windows, encode_windows, patch_features
from gla_jax.predict.cost import (
    Widths,
    attention_flops,
    blank_windows,
    clip_flops,
    image_flops,
    model_widths,
    projection_flops,
    vfm_flops,
)
from gla_jax.segmenter import WINDOWS_IN_ONE_PROGRAM, Segmenter, image_grid
from gla_jax.settings.options import check_choice, settings_from_options
from gla_jax.support.errors import UserError
from gla_jax.support.progress import track
from gla_jax.support.shapes import Array
from gla_jax.support.vectors import l2_normalize
from gla_jax.support.version import VERSION
from gla_jax.towers.clip_image import ClipImage, ClipImageSpec
from gla_jax.towers.dino import DinoSpec
from gla_jax.towers.layers import QKV

if TYPE_CHECKING:
    from jax.sharding import Mesh

FORMAT = "gla-jax bench 1"
RANDOM = "random"
PARTS = ("towers", "attention", "labels", "image")
ALL_PARTS = "all"
# The published pair: CLIP ViT-B/16 and DINO ViT-B/8.
CLIP_BASE = ClipImageSpec(224, 16, width=768, depth=12, num_heads=12, mlp_width=3072, embed_dim=512)
DINO_BASE = DinoSpec(224, 8, width=768, depth=12, num_heads=12, mlp_width=3072)
CEILING_SIZES = {"cpu": (512, 1024, 2048)}
ACCELERATOR_CEILING_SIZES = (2048, 4096, 8192)
MAX_REPEAT_SECONDS = 60.0  # what is slower than this is repeated once


@dataclass(frozen=True)
class Options:
    """What `gla-jax bench` is asked for; checked by read_options.

    size: (height, width) in pixels; memory_limit: bytes, None for half of the machine's; max_windows: the sweep goes
    there in doublings, None for no sweep.
    """

    model: str
    size: tuple[int, int]
    config: SegmenterConfig
    parts: tuple[str, ...] = PARTS
    queries: int = 21
    repeats: int = 5
    max_windows: int | None = None
    memory_limit: float | None = None
    devices: int = 1
    profile: Path | None = None

    @property
    def grid(self) -> WindowGrid:
        """The windows of the image."""
        return image_grid(self.size, self.config.windows)


@dataclass(frozen=True)
class Row:
    """One measurement.

    windows and tokens of the image, without padding; flops: operations by cost.py's formulas in each dtype; ideal:
    seconds that they take at the ceiling; seconds: one a repeat, empty where the program was not run because it needs
    more than the memory limit. compile_seconds: of lowering and
    compiling; of a part of several programs the first call less the median one. program: XLA's plan for one device,
    None for several programs; host_before and host_peak: resident memory of this process before and while it ran,
    None where the system does not tell; device_peak: of the accelerator, None where it was higher before.
    """

    part: str
    name: str
    windows: int
    tokens: int
    flops: dict[str, float]
    ideal: float
    seconds: tuple[float, ...] = ()
    compile_seconds: float | None = None
    program: ProgramBytes | None = None
    host_before: int | None = None
    host_peak: int | None = None
    device_peak: int | None = None

    @property
    def stopped(self) -> bool:
        """Whether the program would need more memory than there may be."""
        return not self.seconds

    @property
    def median(self) -> float:
        """The median of the seconds; NaN when stopped."""
        return median(self.seconds) if self.seconds else float("nan")

    @property
    def total_flops(self) -> float:
        """The operations in all dtypes."""
        return sum(self.flops.values())

    @property
    def share_of_ceiling(self) -> float:
        """The speed as a share of the ceiling, 0 to about 1; NaN when stopped."""
        return self.ideal / self.median

    def as_dict(self) -> dict[str, Any]:
        """What bench.json says of it."""
        figures = {
            "seconds_median": self.median,
            "images_per_second": 1 / self.median,
            "flops_per_second": self.total_flops / self.median,
            "share_of_ceiling": self.share_of_ceiling,
        }
        known = dict.fromkeys(figures) if self.stopped else figures
        return asdict(self) | {"seconds": list(self.seconds), "stopped": self.stopped} | known


@dataclass(frozen=True)
class Bench:
    """What every measurement shares; ceiling: operations a second of a matrix product in each dtype."""

    repeats: int
    memory_limit: float
    ceiling: dict[str, float] = field(default_factory=dict)
    profile: Path | None = None

    def ideal(self, flops: Mapping[str, float]) -> float:
        """Seconds of some operations at the ceiling."""
        return sum(count / self.ceiling[dtype] for dtype, count in flops.items())

    def of_devices(self, count: int) -> "Bench":
        """The same where several devices work: accelerators add up, processors' devices share the cores."""
        factor = 1 if jax.devices()[0].platform == "cpu" else count
        return replace(self, ceiling={dtype: factor * value for dtype, value in self.ceiling.items()})


@dataclass(frozen=True)
class Work:
    """Something to measure: where it stands in the table, its size and its operations."""

    part: str
    name: str
    windows: int
    tokens: int
    flops: dict[str, float]


def read_options(
    *,
    model: str,
    size: str,
    dtype: str,
    parts: str,
    crop: int | None = None,
    stride: int | None = None,
    sweep: bool = False,
    max_windows: int = 64,
    memory_limit: float | None = None,
    **counts: Any,
) -> Options:
    """Options from what a user types; size is HEIGHTxWIDTH, parts are parted by commas, memory_limit is in GiB.

    Raises UserError.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", size)
    if not match or 0 in (sides := (int(match[1]), int(match[2]))):
        raise UserError(f"size {size!r} is not HEIGHTxWIDTH in pixels; write it as in 336x504.")
    names = [check_choice(name.strip(), (*PARTS, ALL_PARTS), "part") for name in parts.split(",")]
    if memory_limit is not None and memory_limit <= 0:
        raise UserError(f"memory limit {memory_limit:g} is no memory; give GiB above 0.")
    return Options(
        model,
        sides,
        settings_from_options(short_side="native", crop=crop, stride=stride, dtype=dtype),
        PARTS if ALL_PARTS in names else tuple(part for part in PARTS if part in names),
        max_windows=max_windows if sweep else None,
        memory_limit=None if memory_limit is None else memory_limit * GIB,
        **counts,
    )


def command_line(options: Mapping[str, Any]) -> str:
    """The command that asks for some options, by their names in it; None and False are left out."""
    words = ["gla-jax", "bench"]
    for name, value in options.items():
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)


def split_processor(devices: int) -> None:
    """Let the processor count as several devices. Too late once JAX has looked: then there are those it found."""
    with suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", devices)


class Textless(Segmenter):
    """A segmenter of image towers alone: text features come from elsewhere."""

    def __init__(self, params: SegmenterParams, config: SegmenterConfig, mesh: "Mesh | None" = None):
        self.params = params if mesh is None else place_params(params, mesh)
        self.config, self.mesh = config, mesh


def random_params(clip: ClipImageSpec, vfm: VfmSpec, dtype: str, seed: int = 0) -> SegmenterParams:
    """Towers of some sizes with random weights, drawn by NumPy, which compiles nothing."""
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> Array:
        noise = rng.standard_normal(leaf.shape, np.float32) * np.float32(0.02)
        of_norm = path[-1].key == "scale"
        return jnp.asarray(noise + np.float32(1) if of_norm else noise, dtype)

    def weights(shapes: Params) -> Params:
        return jax.tree_util.tree_map_with_path(draw, dict(shapes))

    pixels = jax.ShapeDtypeStruct((1, 3, clip.patch_size, clip.patch_size), jnp.float32)
    image = jax.eval_shape(ClipImage(clip).init, jax.random.key(0), pixels)["params"]
    return SegmenterParams(weights(image), clip, weights(abstract_params(vfm)), vfm)


def load_params(options: Options, offline: bool = False) -> SegmenterParams:
    """The towers that --model names. Raises UserError when they cannot be loaded or do not fit the sizes."""
    config = options.config
    if options.model != RANDOM:
        return Segmenter.from_pretrained(options.model, config, offline=offline).params
    if config.windows.crop % CLIP_BASE.patch_size:
        raise UserError(
            f"crop {config.windows.crop} does not divide into the patches of {CLIP_BASE.patch_size} pixels that the "
            f"random towers read; choose a multiple of {CLIP_BASE.patch_size}."
        )
    return random_params(CLIP_BASE, DINO_BASE, config.dtype)


def measure_ceiling(dtype: str, sizes: Sequence[int], repeats: int) -> float:
    """Operations a second of the best square matrix product of some sizes, in the precision that towers run in."""
    best = 0.0
    for size in sizes:
        matrix = jnp.asarray(np.random.default_rng(0).standard_normal((size, size), np.float32), dtype)
        product = jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest")).lower(matrix, matrix).compile()
        seconds = repeated(lambda run=product, m=matrix: run(m, m), repeats)
        best = max(best, 2 * size**3 / min(seconds))
    return best


def repeated(run: Callable[[], Any], repeats: int) -> tuple[float, ...]:
    """Seconds of up to `repeats` runs, at least one; no more of them when they have taken a minute together."""
    taken: list[float] = []
    while len(taken) < repeats and sum(taken) < MAX_REPEAT_SECONDS:
        begun = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - begun)
    return tuple(taken)


def measure(work: Work, bench: Bench, run: Callable[[], Any], **compiled: Any) -> Row:
    """Warm up, run and time one piece of work; compiled: what is known of its program before it runs.

    With bench.profile one more run is traced, so that tracing slows none that is timed.
    """
    device = jax.devices()[0]
    highest_before = device_peak(device)
    begun = time.perf_counter()
    jax.block_until_ready(run())
    first = time.perf_counter() - begun
    known = forget_host_peak()
    before = host_peak() if known else None
    seconds = repeated(run, bench.repeats)
    peak, highest = host_peak() if known else None, device_peak(device)
    if bench.profile is not None:
        with jax.profiler.trace(bench.profile / f"{work.part} {work.name}".replace(" ", "-")):
            jax.block_until_ready(run())
    return Row(
        **asdict(work),
        ideal=bench.ideal(work.flops),
        seconds=seconds,
        host_before=before,
        host_peak=peak,
        device_peak=highest if highest != highest_before else None,
        **({"compile_seconds": max(first - median(seconds), 0.0)} | compiled),
    )


def measure_program(work: Work, bench: Bench, function: Callable, arguments: tuple) -> Row:
    """Compile a jitted function, and run it unless it needs more memory than the limit."""
    with jax.default_matmul_precision("highest"):
        begun = time.perf_counter()
        program = function.lower(*arguments).compile()
        compiled = {"compile_seconds": time.perf_counter() - begun, "program": program_bytes(program)}
    needed = compiled["program"]
    if needed is not None and needed.total > bench.memory_limit:
        return Row(**asdict(work), ideal=bench.ideal(work.flops), **compiled)
    return measure(work, bench, lambda: program(*arguments), **compiled)


def tower_rows(params: SegmenterParams, options: Options, bench: Bench) -> Iterator[Callable[[], Row]]:
    """CLIP, the vision foundation model, and the way from gathered values to the joint space."""
    config, clip, vfm = options.config, params.clip_spec, params.vfm_spec
    widths, count = model_widths(clip, vfm, config), options.grid.count
    crop, tokens = config.windows.crop, count * widths.tokens
    windows = jax.device_put(blank_windows(bucket(count), config))
    clip_alone = replace(config, method=METHODS["vanilla"])  # a host that reads no features

    def work(name: str, flops: float) -> Work:
        return Work("towers", name, count, tokens, {config.dtype: flops})

    # What nobody reads is not computed: CLIP falls out of the second program.
    features = jax.jit(lambda *given: encode_windows(*given).features)
    work_clip = work("CLIP", count * clip_flops(clip, crop))
    yield lambda: measure_program(work_clip, bench, jax.jit(encode_windows), (params, windows, clip_alone))
    work_vfm = work("features", count * vfm_flops(vfm, crop))
    yield lambda: measure_program(work_vfm, bench, features, (params, windows, config))

    gathered = random_array((bucket(count), widths.tokens, widths.values))
    nothing = gathered[:, :0]
    unread = WindowTokens(QKV(nothing, nothing, nothing), nothing, None)
    work_joint = work("projection", projection_flops(clip, tokens, whole_block=False))
    yield lambda: measure_program(work_joint, bench, jax.jit(patch_features), (gathered, unread, params, config))


def random_array(shape: tuple[int, ...], dtype: str = "float32") -> Array:
    """Normal noise on the device."""
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32), dtype)


def random_image(size: tuple[int, int]) -> np.ndarray:
    """An RGB image of uint8 noise of size (h, w)."""
    return np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)


def attention_forms(devices: int) -> tuple[str, ...]:
    """The forms of attention that are compared."""
    return ("dense", "blockwise", "ring") if devices > 1 else ("dense", "blockwise")


def attention_row(form: str, part: str, windows: int, widths: Widths, options: Options, bench: Bench) -> Row:
    """The attention alone in one form: from features and values of all windows to what every token gathers."""
    method = replace(options.config.method, attention=form)
    work = Work(part, form, windows, windows * widths.tokens, {"float32": attention_flops(widths, windows, method)})

    def buffer(padded: int) -> tuple[Array, Array, Array]:
        features = random_array((padded, widths.tokens, widths.features))
        return features, random_array((padded, widths.clip_tokens, widths.values)), jnp.arange(padded) < windows

    if form == "ring":
        return sharded_row(work, method, buffer, options.devices, bench)
    return measure_program(
        work, bench, jax.jit(lambda *given: aggregate_values(*given, method)), buffer(bucket(windows))
    )


def sharded_row(
    work: Work, method: MethodConfig, buffer: Callable[[int], tuple[Array, ...]], devices: int, bench: Bench
) -> Row:
    """The attention with windows split over devices; XLA's plan is that of each of them, the ceiling that of all."""
    mesh, split = bench_mesh(devices), PartitionSpec(WINDOW_AXIS)
    given = jax.device_put(buffer(padded_windows(work.windows, mesh)), NamedSharding(mesh, split))

    def local(*own: Array) -> Array:
        return aggregate_values(*own, method)

    program = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=split, out_specs=split))
    return measure_program(work, bench.of_devices(devices), program, given)


def bench_mesh(devices: int) -> "Mesh":
    """A mesh of the first devices. Raises UserError when there are fewer."""
    if devices > len(jax.devices()):
        raise UserError(f"{devices} devices are asked for and {len(jax.devices())} are here; lower --devices.")
    return make_mesh(devices=jax.devices()[:devices])


def label_flops(where: Layout, tokens: int, queries: int, width: int) -> float:
    """From features to the label map: 2NEQ of the logits, then upsampling along each axis, tile by tile.

    A tile of r x c pixels that sees b x d tokens, k of the b in a pixel row, is 2bdcQ for its columns and 2krcQ for
    its rows.
    """
    upsampling = 0
    for down, _, rows, columns in where.tiles():
        band, pixels = columns.matrix.shape
        upsampling += len(rows.starts) * band * pixels + rows.taps.shape[1] * (down.stop - down.start) * pixels
    return 2.0 * queries * (tokens * width + upsampling)


def labels_of(features: Array, grid: WindowGrid, bank: Array, options: Options) -> np.ndarray:
    """The label map of an image of the asked size, every query a class of its own."""
    where = layout(grid, features.shape[1], options.size)
    with jax.default_matmul_precision("highest"):
        logits = whole_logits(features, bank)
        classes = np.arange(options.queries, dtype=np.int32)
        return label_map(logits, where, classes, float(options.config.logit_scale))


def label_row(params: SegmenterParams, bank: Array, options: Options, bench: Bench) -> Row:
    """From features in the joint space to the label map of the image."""
    grid, tokens = options.grid, model_widths(params.clip_spec, params.vfm_spec, options.config).tokens
    features = random_array((bucket(grid.count), tokens, bank.shape[1]))
    total = grid.count * tokens
    flops = label_flops(layout(grid, tokens, options.size), total, *bank.shape)
    work = Work("labels", "stitching", grid.count, total, {"float32": flops})
    return measure(work, bench, lambda: labels_of(features, grid, bank, options))


def image_row(form: str, params: SegmenterParams, bank: Array, options: Options, bench: Bench) -> Row:
    """An image from pixels to labels, as Segmenter does it: in one program, or in steps when it has many windows."""
    config = replace(options.config, method=replace(options.config.method, attention=form))
    if form == "ring":
        bench = bench.of_devices(options.devices)
        # The mesh chooses the form on its devices.
        segmenter = Textless(params, options.config, bench_mesh(options.devices))
    else:
        segmenter = Textless(params, config)
    grid, clip = options.grid, params.clip_spec
    widths = model_widths(clip, params.vfm_spec, config)
    tokens, attention = grid.count * widths.tokens, attention_flops(widths, grid.count, config.method)
    flops = dict.fromkeys((config.dtype, "float32"), 0.0)
    flops[config.dtype] += image_flops(clip, params.vfm_spec, grid.count, config) - attention
    flops["float32"] += attention + label_flops(layout(grid, widths.tokens, options.size), tokens, *bank.shape)
    image = random_image(options.size)
    work = Work("image", form, grid.count, tokens, flops)
    return measure(work, bench, lambda: labels_of(*segmenter.window_features(image), bank, options))


@jax.jit
def stages(params: SegmenterParams, windows: Windows, config: SegmenterConfig) -> dict[str, Array]:
    """What the towers and the method make of every token, each [W t C]."""
    tokens = encode_windows(params, windows, config)
    joint = patch_features(aggregate_windows(tokens, windows, params, config.method), tokens, params, config)
    return {"values": tokens.qkv.values[:, 1:], "features": tokens.features, "joint": joint}


def compares(options: Options) -> bool:
    """Whether there is another dtype to compare with float32, on an image that fits into one program."""
    return options.config.dtype != "float32" and options.grid.count <= WINDOWS_IN_ONE_PROGRAM


def agreement(params: SegmenterParams, options: Options, offline: bool = False) -> dict[str, Any]:
    """How an image's tokens and labels compare with those of float32 towers of the same weights.

    values and features: of the towers; joint: after the method, where a rounded similarity may flip a hard mask; of
    each the cosine over all tokens, "mean" and "least". labels: the share of equal pixels, every query a class.
    """
    whole = replace(options, config=replace(options.config, dtype="float32"))
    bank = l2_normalize(random_array((options.queries, params.clip_spec.embed_dim)))
    windows, grid = Textless(params, options.config).prepare(random_image(options.size))
    found, labels = [], []
    with jax.default_matmul_precision("highest"):
        for towers, asked in ((params, options), (load_params(whole, offline), whole)):
            tokens = stages(towers, windows, asked.config)
            found.append({name: np.asarray(l2_normalize(rows[: grid.count])) for name, rows in tokens.items()})
            labels.append(labels_of(tokens["joint"], grid, bank, asked))
    cosines = {name: (found[0][name] * found[1][name]).sum(-1) for name in found[0]}
    figures = {name: {"mean": float(each.mean()), "least": float(each.min())} for name, each in cosines.items()}
    return figures | {"labels": float((labels[0] == labels[1]).mean())}


def part_rows(params: SegmenterParams, options: Options, bench: Bench) -> Iterator[Callable[[], Row]]:
    """The measurements of the chosen parts, in order, each made when it is called."""
    widths = model_widths(params.clip_spec, params.vfm_spec, options.config)
    bank = l2_normalize(random_array((options.queries, params.clip_spec.embed_dim)))
    forms, windows = attention_forms(options.devices), options.grid.count
    if "towers" in options.parts:
        yield from tower_rows(params, options, bench)
    if "attention" in options.parts:
        yield from (partial(attention_row, form, "attention", windows, widths, options, bench) for form in forms)
    if "labels" in options.parts:
        yield partial(label_row, params, bank, options, bench)
    if "image" in options.parts:
        # Dense attention is there to be compared; whether it fits is measured alone.
        yield from (partial(image_row, form, params, bank, options, bench) for form in forms if form != "dense")


def sweep_rows(widths: Widths, options: Options, bench: Bench) -> Iterator[Row]:
    """The attention alone over 1, 2, 4, ... windows in every form; a form that needs too much memory ends there."""
    forms = list(attention_forms(options.devices))
    unlogged = replace(bench, profile=None)
    for windows in track(doublings(options.max_windows), "windows swept"):
        for form in tuple(forms):
            row = attention_row(form, "sweep", windows, widths, options, unlogged)
            if row.stopped:
                forms.remove(form)
            yield row


def doublings(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`."""
    return [2**power for power in range(most.bit_length())]


@dataclass(frozen=True)
class Report:
    """Everything that was measured, with what it was measured on."""

    head: dict[str, Any]
    parts: tuple[Row, ...]
    sweep: tuple[Row, ...]

    def as_dict(self) -> dict[str, Any]:
        """The whole of bench.json."""
        rows = {"parts": [row.as_dict() for row in self.parts], "sweep": [row.as_dict() for row in self.sweep]}
        return self.head | rows


def run_bench(options: Options, command: str, offline: bool = False) -> Report:
    """Load or draw the towers and measure what is asked for; command: as it was typed, for the record."""
    if options.devices > 1:
        bench_mesh(options.devices)  # before the weights are loaded
    params = load_params(options, offline)
    config, device = options.config, jax.devices()[0]
    sizes = CEILING_SIZES.get(device.platform, ACCELERATOR_CEILING_SIZES)
    dtypes = sorted({"float32", config.dtype})
    limit = options.memory_limit or machine_memory(device) / 2
    ceiling = {dtype: measure_ceiling(dtype, sizes, options.repeats) for dtype in track(dtypes, "ceilings measured")}
    bench = Bench(options.repeats, limit, ceiling, options.profile)
    parts = tuple(run() for run in track(list(part_rows(params, options, bench)), "parts measured"))
    widths = model_widths(params.clip_spec, params.vfm_spec, config)
    sweep = tuple(sweep_rows(widths, options, bench)) if options.max_windows else ()
    grid = options.grid
    head = {
        "format": FORMAT,
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": VERSION,
        "machine": machine(options.devices),
        "model": {"name": options.model, "clip": asdict(params.clip_spec), "vfm": asdict(params.vfm_spec)},
        "settings": settings_as_dict(config),
        "image": {
            "size": list(options.size),
            "windows": grid.count,
            "tokens": grid.count * widths.tokens,
            "queries": options.queries,
        },
        "repeats": options.repeats,
        "memory_limit": int(limit),
        "ceiling": {"sizes": list(sizes), "flops_per_second": ceiling},
        "agreement": agreement(params, options, offline) if compares(options) else None,
    }
    return Report(head, parts, sweep)


def machine(devices: int) -> dict[str, Any]:
    """What the figures hold for: device, cores, memory and versions."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": devices,
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory": machine_memory(device),
        "system": platform.platform(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "program_cache": jax.config.jax_compilation_cache_dir,  # it shortens compile_seconds
    }


def processor() -> str:
    """The processor's name, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
