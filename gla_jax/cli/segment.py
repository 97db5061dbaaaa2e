"""gla-jax segment."""

import os
import shlex
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gla_jax.cli import options
from gla_jax.cli.options import prepare_jax, results_folder
from gla_jax.models.registry import DEFAULT_MODEL
from gla_jax.support.errors import ImageError, UserError
from gla_jax.support.places import is_folder, is_remote

if TYPE_CHECKING:
    from gla_jax.outputs.run import Outcome


def segment(
    images: options.Images,
    classes: options.ClassNames = None,
    classes_file: options.ClassesFile = None,
    classes_from: options.ClassesFrom = None,
    background: options.Background = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Probability below which a pixel is background, 0 to 1. [default: a tuned preset's, else 0]"),
    ] = None,
    prune_below: options.PruneBelow = 0.0,
    background_margin: options.BackgroundMargin = 0.0,
    model: options.Model = DEFAULT_MODEL,
    method: options.Method = "gla",
    preset: options.Preset = options.DEFAULT_PRESET,
    short_side: options.ShortSide = None,
    crop: options.Crop = None,
    stride: options.Stride = None,
    templates: Annotated[
        Path | None, typer.Option(**options.URL, help="A text file of prompts with {} for the name.")
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(**options.URL, help="A folder with masks of every image, NAME.png or NAME.json: one label each."),
    ] = None,
    out: options.Results = Path("gla-jax-out"),
    recursive: Annotated[bool, typer.Option("--recursive", help="Also the images in subfolders of folders.")] = False,
    dtype: options.Dtype = "float32",
    precision: options.Precision = None,
    merge_overlaps: options.MergeOverlaps = False,
    scores: Annotated[bool, typer.Option("--scores", help="Also write the probability of every class.")] = False,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="Also write coco, coco-polygons, label-studio, cvat, yolo or voc; repeat it."),
    ] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="Print results.json on standard output.")] = False,
    batch: options.Batch = 1,
    mesh: Annotated[
        str | None,
        typer.Option(help="DATAxWINDOW devices, of this process or of all: images, and windows of an image, at once."),
    ] = None,
    distributed: options.Distributed = False,
    shard: options.Shard = None,
    ray: options.Ray = None,
    actors: options.Actors = None,
    cpus_per_actor: options.CpusPerActor = None,
    offline: options.Offline = False,
) -> None:
    """Segment images by the names of their classes.

    Writes NAME.index.png, NAME.palette.png and NAME.overlay.png for each image, a line of results.jsonl as soon as it
    is done, and results.json. The same command goes on where it was stopped; with other settings it needs another
    --out. A background that is not among the classes needs a threshold. Several processes, told by
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID or --distributed, share the images; with a --mesh over
    the devices of all of them they share the windows of every image. With --shard any number of runs that know nothing
    of each other segment the parts; the same command without it then writes results.json of all.
    """
    from gla_jax.results.dataset import check_formats
    from gla_jax.settings.options import names_numbers, settings_from_options, with_fields
    from gla_jax.text.prompts import check_enough, read_lines, with_background

    config = settings_from_options(
        method=method, preset=preset, short_side=short_side, crop=crop, stride=stride, dtype=dtype
    )
    fields = {"prune_below": prune_below, "background_margin": background_margin, "merge_overlaps": merge_overlaps}
    config = with_fields(config, fields)
    options.check_actors(ray, actors, cpus_per_actor)
    if ray and classes_from and not is_remote(classes_from):
        classes_from = classes_from.absolute()  # actors have a working folder of their own
    parsed = options.typed_classes(classes, classes_file, classes_from)
    background, threshold = options.typed_background(background, threshold, config)
    prompts = read_lines(templates, "templates") if templates else None
    paths = _find(images, out, recursive, classes)
    wanted = check_formats(formats or (), paths)
    if masks and not is_folder(masks):
        raise UserError(f"there is no folder {masks} with masks; write NAME.png or NAME.json for every image there.")
    masks = masks if masks is None or is_remote(masks) else masks.absolute()
    check_enough(parsed, background)  # after words behind the first class got their own sentence
    with_background(parsed, background, config.background_rules | {"threshold": threshold})  # its faults alone
    options.warn_idle_threshold(parsed, threshold)
    config, suit = with_fields(config, {"threshold": threshold, "precision": precision}), not names_numbers(preset)

    from gla_jax.distributed.processes import joined
    from gla_jax.distributed.shards import read_shard

    part = shard and read_shard(shard)
    if ray:
        if part or distributed or mesh:
            raise UserError("--ray deals shards by itself; leave out --shard, --distributed and --mesh.")
        from gla_jax.cluster.pool import Cluster
        from gla_jax.cluster.workers import SegmentOrder
        from gla_jax.cluster.workers import segment as segment_on_ray
        from gla_jax.support.progress import counter

        order = SegmentOrder(
            model,
            config,
            parsed,
            background,
            prompts,
            scores,
            batch,
            wanted,
            offline,
            paths,
            str(results_folder(out)),
            masks and str(masks),
            suit,
        )
        address = None if ray == options.RAY_HERE else ray
        with counter("segmented") as advance:
            done = segment_on_ray(
                order, Cluster(address, actors, cpus_per_actor), advance, lambda text: typer.echo(text, err=True)
            )
        _tell(done, len(paths), f"results in {out}", json_lines)
        return
    with joined(distributed, "finished images are kept, start all processes again to go on") as processes:
        prepare_jax()
        from gla_jax.distributed.mesh import read_mesh
        from gla_jax.outputs.run import Task, segment_files
        from gla_jax.segmenter import Segmenter

        devices = None if mesh is None else read_mesh(mesh, spanning=True)
        folder = results_folder(out)
        segmenter = Segmenter.from_pretrained(model, config, offline=offline, suit=suit, mesh=devices)
        task = Task(segmenter, parsed, background, prompts, scores, batch, wanted, masks)

        def say(text: str) -> None:
            if processes.is_first or devices is None or not devices.is_multi_process:
                typer.echo(text, err=True)

        done = segment_files(task, paths, folder, processes, say, part)
    if processes.is_first:
        rest = "; once all shards are done, run this without --shard" if part else ""
        count = len(part.part(len(paths))) if part else len(paths)
        _tell(done, count, f"results in {folder}{rest}", json_lines)
    elif done.failed:
        raise typer.Exit(1)


def _tell(done: "Outcome", count: int, where: str, json_lines: bool) -> None:
    """Say how many of `count` images are segmented. Raises typer.Exit when there are some that cannot be read."""
    if json_lines:
        typer.echo(done.text, nl=False)
    typer.echo(f"{done.images} of {count} images segmented; {where}", err=True)
    if done.failed:
        raise typer.Exit(1)


def _find(images: list[str], out: Path, recursive: bool, classes: list[str] | None) -> list[Path]:
    """The image files to segment, without pictures that runs left in `out` or in subfolders. Raises UserError."""
    from gla_jax.images.reading import find_images

    stray = [word for word in images if classes and not os.path.lexists(word) and not set("*?[/.") & set(word)]
    if stray:
        repeated = " ".join(f"--classes {shlex.quote(word)}" for word in (*classes, *stray)[:4])
        raise UserError(f"there is no image {stray[0]!r}; if it is a class, write --classes before each: {repeated}")

    def real(path: Path) -> str:
        return str(path) if is_remote(path) else os.path.realpath(path)

    results, endings = real(out), (".index.png", ".palette.png", ".overlay.png")

    @cache
    def of_a_run(folder: Path) -> bool:  # of another folder than `out`, reached through --recursive
        marks = (folder / name for name in ("results.jsonl", "shards"))
        return any(mark.exists() for mark in marks)

    paths = [
        path
        for path in find_images(images, recursive)
        if not (
            path.name.endswith(endings)
            and (real(path.parent) == results or (str(path) not in images and of_a_run(path.parent)))
        )
    ]
    if not paths:
        raise ImageError(f"all images of {', '.join(images)} are results in {out}; name others.")
    return paths
