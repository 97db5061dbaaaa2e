"""The command line. Heavy imports wait inside the commands: --help answers at once."""

import sys
import tempfile
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gla_jax.cli.eval import app as eval_app
from gla_jax.support.errors import UserError, about_files
from gla_jax.support.version import VERSION

app = typer.Typer(
    help="Segment images by text alone: GLA-CLIP on JAX.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(eval_app, name="eval")
# typer's own, whether it brings click with it or imports it.
UsageError = typer.BadParameter.__base__
DEFAULT_MODEL = "clip-vit-base-patch16+dino-vitb8"
INTERRUPTED = 130


class Family(StrEnum):
    """The families of weights that convert."""

    clip = "clip"
    dino = "dino"
    dinov2 = "dinov2"


def say(text: str) -> None:
    """A line for people, on standard error."""
    typer.echo(text, err=True)


def prepare_jax() -> None:
    """Keep compiled programs between runs, so that only the first one waits for the compiler."""
    import jax

    from gla_jax.support.cache import cache_folder

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("programs")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"gla-jax {VERSION}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Segment images by text alone: GLA-CLIP on JAX."""


@app.command()
def segment(
    images: Annotated[list[str], typer.Argument(help="Image files, folders of images, glob patterns.")],
    classes: Annotated[
        list[str] | None, typer.Option("--classes", help='One class with its synonyms, "cat; tabby"; repeat it.')
    ] = None,
    classes_file: Annotated[Path | None, typer.Option(help="A text file with one class a line.")] = None,
    background: Annotated[str | None, typer.Option(help="The class of pixels below the threshold, or none.")] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Probability below which a pixel is background, 0 to 1. [default: a tuned preset's, else 0]"),
    ] = None,
    model: Annotated[str, typer.Option(help="CLIP+VFM, by name (gla-jax models) or folder.")] = DEFAULT_MODEL,
    method: Annotated[str, typer.Option(help="gla, proxyclip, maskclip, clearclip, sclip, clip, ...")] = "gla",
    preset: Annotated[
        str, typer.Option(help="Of the paper: sclip, proxyclip, clearclip, clip-dinoiser; or a file of gla-jax tune.")
    ] = "sclip",
    short_side: Annotated[str | None, typer.Option(help="Pixels the short side is resized to, or native.")] = None,
    crop: Annotated[int | None, typer.Option(help="Side of a window in pixels.")] = None,
    stride: Annotated[int | None, typer.Option(help="Step between windows in pixels.")] = None,
    templates: Annotated[Path | None, typer.Option(help="A text file of prompts with {} for the name.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("gla-jax-out"),
    dtype: Annotated[str, typer.Option(help="Of the towers: float32 or bfloat16.")] = "float32",
    scores: Annotated[bool, typer.Option("--scores", help="Also write the probability of every class.")] = False,
    json_lines: Annotated[bool, typer.Option("--json", help="Print results.json on standard output.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Images with one number of windows that go through together.")] = 1,
    mesh: Annotated[
        str | None,
        typer.Option(help="DATAxWINDOW devices, of this process or of all: images, and windows of an image, at once."),
    ] = None,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="One of several processes of a cluster's launcher.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never reach for the network.")] = False,
) -> None:
    """Segment images by the names of their classes.

    Writes NAME.index.png, NAME.palette.png and NAME.overlay.png for each image, and results.json, which holds what is
    done so far while it runs. A background that is not among the classes needs a threshold. Several processes, told by
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID or --distributed, share the images; with a --mesh over
    the devices of all of them they share the windows of every image.
    """
    from gla_jax.images.reading import find_images
    from gla_jax.settings.options import settings_from_options
    from gla_jax.text.prompts import parse_classes, read_lines

    config = settings_from_options(
        method=method, preset=preset, short_side=short_side, crop=crop, stride=stride, dtype=dtype
    )
    given = list(classes or []) + (read_lines(classes_file, "classes") if classes_file else [])
    if not given:
        raise UserError('there are no classes; name some with --classes "cat; tabby" or --classes-file FILE.')
    parsed = parse_classes(given)
    background = None if background in (None, "none") else background
    if threshold is None:
        threshold = config.threshold if background else 0.0
    prompts = read_lines(templates, "templates") if templates else None
    paths = find_images(images)
    folder = _folder(out)

    prepare_jax()
    from gla_jax.distributed.processes import joined

    with joined(distributed, "start all processes again") as processes:
        from gla_jax.distributed.mesh import read_mesh
        from gla_jax.outputs.files import (
            Segmented,
            as_lines,
            gathered,
            output_names,
            segment_files,
            summary,
            write_text,
        )
        from gla_jax.segmenter import Segmenter, with_background
        from gla_jax.support.progress import track

        with_background(parsed, background, threshold)  # before the weights are loaded
        devices = None if mesh is None else read_mesh(mesh, spanning=True)
        segmenter = Segmenter.from_pretrained(model, config, offline=offline, mesh=devices)
        segmenter.text_embeddings(parsed, prompts)
        options = {"background": background, "threshold": threshold, "scores": scores, "templates": prompts}
        files = list(zip(range(len(paths)), paths, output_names(paths), strict=True))
        together = devices is not None and devices.is_multi_process
        mine = files if together else [files[index] for index in processes.share(len(files))]
        writes = processes.is_first or not together

        def keep(done: Segmented, complete: bool = False) -> str:
            document = summary(segmenter, parsed, done, complete=complete, background=background, threshold=threshold)
            text = as_lines(document)
            if processes.is_first:
                write_text(folder / "results.json", text)
            return text

        done = segment_files(
            segmenter,
            track(mine, processes.named("segmented")),
            parsed,
            folder if writes else None,
            say if writes else lambda _: None,
            batch=batch,
            keep=keep,
            **options,
        )
        everything = gathered(done, processes)
        text = keep(everything, complete=True)
        if processes.is_first:
            if json_lines:
                typer.echo(text, nl=False)
            say(f"{len(everything.records)} of {len(paths)} images segmented; results in {folder}")
    if everything.failed:
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the picture and the figures.")] = Path("gla-jax-demo"),
    scene: Annotated[int | None, typer.Option(min=0, help="Number of the held-out scene.")] = None,
) -> None:
    """Segment a bundled scene with ProxyCLIP and with GLA-CLIP, and compare both with the truth."""
    folder = _folder(out)
    prepare_jax()
    from gla_jax.analysis.demo import DEFAULT_SCENE, run_demo

    figures = run_demo(folder, DEFAULT_SCENE if scene is None else scene)
    for name, row in figures["methods"].items():
        typer.echo(
            f"{name:10s} mIoU {row['miou']:5.1f}   pixel accuracy {row['pixel_accuracy']:5.1f}   "
            f"boundary error rate {row['boundary_error_rate']:4.1f}"
        )
    typer.echo(f"{folder / 'demo.png'}\n{folder / 'demo.json'}")


@app.command()
def ablate(
    benchmark: Annotated[str, typer.Argument(help="What to measure on; gla-jax eval --list names all.")] = "tiny-world",
    data: Annotated[Path | None, typer.Option(help="Folder of the data, or the folder that holds it.")] = None,
    model: Annotated[
        str | None, typer.Option(help=f"CLIP+VFM, by name or folder. [default: tiny-world on itself, {DEFAULT_MODEL}]")
    ] = None,
    stages: Annotated[bool, typer.Option("--stages", help="Each part of GLA after the other; the default.")] = False,
    hosts: Annotated[bool, typer.Option("--hosts", help="Every host without and with GLA.")] = False,
    grid: Annotated[
        list[str] | None, typer.Option("--grid", help='"anchor_threshold=0.4,0.5,0.6"; repeat it for all combinations.')
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Of stages and grids: proxyclip, clearclip, sclip, proxyclip-clip. [default: proxyclip]"),
    ] = None,
    preset: Annotated[str, typer.Option(help="Setting of the paper: sizes, prompts, thresholds.")] = "sclip",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("gla-jax-ablation"),
    dtype: Annotated[str, typer.Option(help="Of the towers: float32 or bfloat16.")] = "float32",
    offline: Annotated[bool, typer.Option("--offline", help="Never reach for the network.")] = False,
) -> None:
    """Measure what each part of the method brings, or a grid of settings; the towers run once an image.

    Writes ablation.json, ablation.csv and ablation.png.
    """
    if stages + hosts + bool(grid) > 1:
        raise UserError("--stages, --hosts and --grid are three ablations; choose one of them.")
    if hosts and host:
        raise UserError(f"--hosts measures all hosts, {host} among them; leave --host out.")
    prepare_jax()
    from rich.console import Console

    from gla_jax.analysis import ablate as ablation
    from gla_jax.config import PRESETS
    from gla_jax.eval.benchmarks import TINY_WORLD
    from gla_jax.eval.runner import open_benchmark
    from gla_jax.segmenter import Segmenter
    from gla_jax.settings.options import check_choice

    host = check_choice(host or "proxyclip", ablation.GLA_BASELINES, "host of GLA")
    check_choice(preset, PRESETS, "preset")  # its rows have numbers of their own, not those of a tuned file
    axes = ablation.parse_axes(grid or ())
    dataset, row = open_benchmark(benchmark, data, preset)
    base = row.config("gla", dtype)
    if hosts:
        asked = ablation.hosts(base)
    elif axes:
        asked = ablation.grid(base, host, axes)
    else:
        asked = ablation.stages(base, host)
    name = model or (TINY_WORLD if benchmark == TINY_WORLD else DEFAULT_MODEL)
    segmenter = Segmenter.from_pretrained(name, asked.settings[0].config, offline=offline)
    folder = _folder(out)
    Console().print(ablation.run_ablation(segmenter, asked, dataset, row, folder, limit))
    typer.echo(f"{folder / 'ablation.png'}\n{folder / 'ablation.csv'}\n{folder / 'ablation.json'}")


@app.command()
def tune(
    benchmark: Annotated[str, typer.Argument(help="What to fit to; gla-jax eval --list names all.")] = "tiny-world",
    data: Annotated[Path | None, typer.Option(help="Folder of the data, or the folder that holds it.")] = None,
    model: Annotated[
        str | None, typer.Option(help=f"CLIP+VFM, by name or folder. [default: tiny-world on itself, {DEFAULT_MODEL}]")
    ] = None,
    method: Annotated[str, typer.Option(help="gla, gla-clearclip, gla-sclip or gla-clip.")] = "gla",
    preset: Annotated[str, typer.Option(help="Setting of the paper to start from, or a file.")] = "sclip",
    images: Annotated[int, typer.Option(min=1, help="How many labelled images, spread over the data, are used.")] = 8,
    hold_out: Annotated[float, typer.Option(min=0, max=0.9, help="Share of them that only measures.")] = 0.25,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the fit, one image each.")] = 60,
    out: Annotated[Path, typer.Option(help="The preset file to write.")] = Path("gla-jax-preset.json"),
    force: Annotated[bool, typer.Option("--force", help="Write the fit even if it is worse.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never reach for the network.")] = False,
) -> None:
    """Fit rho, alpha_beta, alpha_gamma, the logit scale and the background threshold to a few labelled images.

    Writes a preset for gla-jax segment, eval, explain and crossing --preset FILE.
    """
    if out.suffix != ".json":
        raise UserError(f"{out} does not end with .json, by which --preset knows a file; choose another --out.")
    _folder(out.parent)
    prepare_jax()
    from gla_jax.analysis import tune as tuning
    from gla_jax.eval.benchmarks import TINY_WORLD
    from gla_jax.eval.protocols import prompt_list
    from gla_jax.eval.runner import open_benchmark
    from gla_jax.segmenter import Segmenter

    dataset, row = open_benchmark(benchmark, data, preset)
    config = row.config(method)
    tuning.coordinates(config)  # before the weights are loaded
    name = model or (TINY_WORLD if benchmark == TINY_WORLD else DEFAULT_MODEL)
    segmenter = Segmenter.from_pretrained(name, config, offline=offline)
    dataset = tuning.fitting_scenes(dataset)
    report = tuning.tune(segmenter, dataset, row, images=images, hold_out=hold_out, steps=steps)
    for line in report.lines():
        typer.echo(line)
    keep_start = report.worse and not force
    origin = {"benchmark": benchmark, "setting": preset, "model_hash": segmenter.model_hash}
    tuning.write_preset(out, report, method, prompt_list(preset), origin, keep_start)
    if report.worse:
        kept = (
            "the preset keeps the start; --force writes the fit" if keep_start else "the preset holds the fit even so"
        )
        say(f"the fit is worse than the start on images that were not fitted: {kept}.")
    if benchmark != TINY_WORLD:
        say(f"the preset names its images of {benchmark}: leave them out of what you report with it.")
    typer.echo(str(out))


@app.command()
def explain(
    image: Annotated[Path, typer.Argument(help="An image file.")],
    at: Annotated[str | None, typer.Option(help="X,Y: the pixel whose token asks.")] = None,
    boundaries: Annotated[
        bool, typer.Option("--boundaries", help="Also compare the labels at window edges without and with GLA.")
    ] = False,
    classes: Annotated[
        list[str] | None, typer.Option("--classes", help='One class with its synonyms, "cat; tabby"; repeat it.')
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="An index or binary PNG: the object at X,Y, and the truth at window edges.")
    ] = None,
    model: Annotated[str, typer.Option(help="CLIP+VFM, by name (gla-jax models) or folder.")] = DEFAULT_MODEL,
    method: Annotated[str, typer.Option(help="gla, gla-clearclip or gla-clip.")] = "gla",
    preset: Annotated[
        str, typer.Option(help="Of the paper: sclip, proxyclip, clearclip, clip-dinoiser; or a file of gla-jax tune.")
    ] = "sclip",
    anchor_threshold: Annotated[
        float | None, typer.Option(help="rho, the cosine above which a token is a positive. [default: the preset's]")
    ] = None,
    short_side: Annotated[str | None, typer.Option(help="Pixels the short side is resized to, or native.")] = None,
    crop: Annotated[int | None, typer.Option(help="Side of a window in pixels.")] = None,
    stride: Annotated[int | None, typer.Option(help="Step between windows in pixels.")] = None,
    out: Annotated[Path | None, typer.Option(help="The PNG file to write.  [default: NAME.explain.png]")] = None,
    dtype: Annotated[str, typer.Option(help="Of the towers: float32 or bfloat16.")] = "float32",
    offline: Annotated[bool, typer.Option("--offline", help="Never reach for the network.")] = False,
) -> None:
    """Draw what one pixel's token attends to, stage by stage of GLA, and where labels flip at window edges."""
    from gla_jax.settings.options import settings_from_options

    config = settings_from_options(
        method=method,
        preset=preset,
        short_side=short_side,
        crop=crop,
        stride=stride,
        dtype=dtype,
        anchor_threshold=anchor_threshold,
    )
    out = out or Path(f"{image.stem}.explain.png")
    prepare_jax()
    from gla_jax.analysis.explain import attention_stages
    from gla_jax.analysis.explain_files import read_request, write_pictures
    from gla_jax.segmenter import Segmenter

    attention_stages(config.method)
    request = read_request(image, at, mask, classes or (), boundaries, out)
    _folder(out.parent)
    segmenter = Segmenter.from_pretrained(model, config, offline=offline)
    for line in write_pictures(segmenter, request, out):
        typer.echo(line)


@app.command()
def crossing(
    images: Annotated[
        list[str], typer.Argument(help="Image files, folders of images, glob patterns; or tiny-world for its scenes.")
    ],
    labels: Annotated[
        Path | None, typer.Option(help="Folder of an index PNG for each image, NAME.png; 255 is ignored.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images.")] = None,
    model: Annotated[
        str | None, typer.Option(help=f"CLIP+VFM, by name or folder. [default: tiny-world on itself, {DEFAULT_MODEL}]")
    ] = None,
    method: Annotated[str, typer.Option(help="gla, gla-clearclip or gla-clip.")] = "gla",
    preset: Annotated[str, typer.Option(help="Sizes of the paper, or a file of gla-jax tune.")] = "sclip",
    anchor_threshold: Annotated[
        float | None, typer.Option(help="rho, the cosine above which a token is a positive. [default: the preset's]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the figures as JSON.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never reach for the network.")] = False,
) -> None:
    """Print how much attention crosses windows, and how large anchors are, stage by stage over whole images.

    With labels (tiny-world brings its own) also how much of it falls on tokens of the own class.
    """
    import json

    from gla_jax.analysis.explain import attention_stages
    from gla_jax.settings.options import settings_from_options

    config = settings_from_options(method=method, preset=preset, anchor_threshold=anchor_threshold)
    attention_stages(config.method)  # before the weights are loaded
    prepare_jax()
    from gla_jax.analysis import crossing as measuring
    from gla_jax.support.files import write_text
    from gla_jax.segmenter import Segmenter
    from gla_jax.support.progress import track

    samples, read = measuring.find_samples(images, labels, limit)
    name = model or (measuring.TINY_WORLD if images == [measuring.TINY_WORLD] else DEFAULT_MODEL)
    segmenter = Segmenter.from_pretrained(name, config, offline=offline)
    figures = measuring.summary(measuring.crossings(segmenter, *read(each)) for each in track(samples, "images"))
    typer.echo("\n".join(measuring.lines(figures)))
    if out:
        content = {"images": len(samples), "model_hash": segmenter.model_hash} | figures
        write_text(_folder(out.parent) / out.name, json.dumps(content, indent=1) + "\n")


@app.command()
def bench(
    model: Annotated[
        str,
        typer.Option(help="CLIP+VFM, by name (gla-jax models) or folder; random: weights of the default model's size."),
    ] = "random",
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the image in pixels; it is cut as it is.")] = "336x504",
    queries: Annotated[int, typer.Option(min=1, help="Text queries.")] = 21,
    crop: Annotated[int | None, typer.Option(help="Side of a window in pixels.")] = None,
    stride: Annotated[int | None, typer.Option(help="Step between windows in pixels.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the towers: float32 or bfloat16.")] = "float32",
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each part, at most; the median counts.")] = 5,
    parts: Annotated[str, typer.Option(help="Of towers,attention,labels,image; all for all four.")] = "all",
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Also the attention alone over 1, 2, 4, ... windows, with a picture.")
    ] = False,
    max_windows: Annotated[int, typer.Option(min=1, help="Where the sweep ends.")] = 64,
    memory_limit: Annotated[
        float | None, typer.Option(help="GiB above which a program is not run. [default: half of the machine's]")
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="Above 1 the attention is also split over so many.")] = 1,
    profile: Annotated[Path | None, typer.Option(help="Folder for a JAX trace of each part.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("gla-jax-bench"),
    offline: Annotated[bool, typer.Option("--offline", help="Never reach for the network.")] = False,
) -> None:
    """Measure seconds, operations a second, memory and compile time of each part, dense against streaming attention.

    Writes bench.json, bench.md and, with --sweep, bench.png.
    """
    given = {name: value for name, value in locals().items() if name not in ("out", "offline")}
    from gla_jax.bench import measure as benchmark
    from gla_jax.bench.report import markdown, write_report

    command = benchmark.command_line(given | {"max_windows": max_windows if sweep else None})
    options = benchmark.read_options(**given)
    folder = _folder(out)
    if devices > 1:
        benchmark.split_processor(devices)
    # No prepare_jax: a cache of compiled programs would hide what compiling takes.
    report = benchmark.run_bench(options, command, offline)
    written = write_report(report, folder)
    typer.echo(markdown(report))
    typer.echo("\n".join(map(str, written)))


@app.command()
def convert(
    family: Annotated[Family, typer.Argument(help="What the weights are of.")],
    source: Annotated[str, typer.Argument(help="A hub id, a folder, or a .safetensors, .bin, .pt or .pth file.")],
    out: Annotated[Path, typer.Argument(help="The model folder to make.")],
    activation: Annotated[str | None, typer.Option(help="quick_gelu or gelu, where the source does not say.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads of the image tower, likewise.")] = None,
    text_heads: Annotated[int | None, typer.Option(help="Attention heads of the text tower, likewise.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Compare every stage with PyTorch (needs torch).")] = False,
    images: Annotated[list[str] | None, typer.Option("--image", help="An image to verify on; repeat it.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never reach for the network.")] = False,
) -> None:
    """Convert PyTorch weights into a model folder, without PyTorch."""
    from gla_jax import convert as conversion
    from gla_jax.convert.reference import require_torch
    from gla_jax.images.reading import find_images, read_image

    if images and not verify:
        raise UserError(f"--image {images[0]} is only looked at by --verify; add that or leave the image out.")
    pixels = []
    if verify:  # what is missing is said before minutes of work
        require_torch()
        pixels = [read_image(path) for path in find_images(images)] if images else []
    manifest = conversion.convert(
        family.value, source, out, activation=activation, num_heads=heads, text_heads=text_heads, offline=offline
    )
    dropped = sum("dropped" in row for row in manifest["tensors"].values())
    typer.echo(f"{out}: {len(manifest['tensors']) - dropped} tensors converted, {dropped} dropped (see manifest.json)")
    if verify:
        from rich.console import Console

        from gla_jax.convert.verify import verify as compare

        result = compare(out, source, pixels, offline=offline)
        Console().print(result.table())
        if not result.passed:
            raise typer.Exit(1)


@app.command()
def models() -> None:
    """List the models that are known by name."""
    from rich.console import Console

    from gla_jax.models.registry import models_table

    Console().print(models_table())


def _folder(path: Path) -> Path:
    """A folder for results, made where it is missing; that it can be written to is tried out before the work."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {path} cannot be made ({error.strerror}); choose another with --out.") from None
    try:
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        reason = error.strerror
        raise UserError(f"the folder {path} cannot be written to ({reason}); choose another with --out.") from None
    return path


def _warn(message: Warning | str, category: type[Warning], *_: object) -> None:
    say(f"warning: {message}")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 when a part failed, 2 for a user's mistake, 130 for Ctrl-C."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = _warn
        try:
            status = app(arguments, standalone_mode=False) or 0
        except UserError as error:
            say(f"error: {error}")
            return 2
        except UsageError as error:
            error.show()
            return error.exit_code
        except OSError as error:
            say(f"error: {about_files(error)}")
            return 2
        except (KeyboardInterrupt, typer.Abort):
            status = INTERRUPTED
        if status == INTERRUPTED:  # typer makes Ctrl-C a status
            say("stopped; nothing half-written is left")
        return status


def script() -> None:
    """The entry point of the installed command."""
    sys.exit(main())
