"""A run of `gla-jax segment`: image files through the one loop, resumed where it was stopped."""

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from gla_jax.config import settings_as_dict
from gla_jax.distributed.processes import Processes
from gla_jax.distributed.shards import FOLDER, Shard
from gla_jax.images.masks import masks_of, read_masks
from gla_jax.images.reading import read_image
from gla_jax.images.windows import WindowGrid
from gla_jax.outputs.files import (
    SETTINGS_FILE,
    as_lines,
    checked_line,
    claim_folder,
    line_file,
    output_names,
    parse_line,
    question_settings,
    record,
    taken_message,
    writing_to,
)
from gla_jax.pictures.drawing import palette
from gla_jax.predict.one_key import is_published, one_key_percent, one_key_warning
from gla_jax.predict.predict import Ready, label_images, pooled_labels
from gla_jax.results.dataset import FORMATS, Labelled
from gla_jax.results.segmentation import ENDINGS, Segmentation, pictures_exist
from gla_jax.segmenter import Segmenter
from gla_jax.support.arrays import Bool, UInt8
from gla_jax.support.batches import Stopwatch, read_ahead
from gla_jax.support.errors import ImageError
from gla_jax.support.files import SECONDS_TO_LOCK, folder_lock, remove_leftovers, write_text
from gla_jax.support.places import stamp as stamp_of_file
from gla_jax.support.progress import counter, steps
from gla_jax.support.steps import Progress
from gla_jax.text.prompts import Classes, with_background

SECONDS_BETWEEN_RECORDS = 5.0
SECONDS_TO_CLAIM = 30.0
LINES = "results{}.jsonl"  # of the first process, results-1.jsonl and so on of others
Say = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """Everything that decides the results of an image.

    segmenter: its settings hold the threshold; background: the class of pixels below it; templates: prompts with {}
    for the name, None for the model's; scores: also the probability of every class; batch: images with one padded
    number of windows that go through the towers together; formats: names of other tools' layouts, written at the end;
    masks: a folder with NAME.png or NAME.json for the results NAME of every image, whose masks get one label each.
    """

    segmenter: Segmenter
    classes: Classes
    background: str | None = None
    templates: Sequence[str] | None = None
    scores: bool = False
    batch: int = 1
    formats: Sequence[str] = ()
    masks: Path | None = None

    def settings(self) -> dict[str, Any]:
        """A run in the same folder must agree on all of it."""
        templates = self.segmenter.templates if self.templates is None else self.templates
        own = {"templates": templates and list(templates), "scores": self.scores}
        masks = {"masks": str(self.masks)} if self.masks else {}
        return question_settings("segment", self.segmenter, self.classes, self.background) | own | masks

    def document(self, images: list[Any], failed: list[Any], complete: bool) -> dict[str, Any]:
        """The whole of results.json, whose classes are in the order of the index PNG's pixels.

        complete: whether all images of the run are in it.
        """
        config = self.segmenter.config
        names, _, _ = with_background(self.classes, self.background, config.background_rules)
        return {
            "complete": complete,
            "model": self.segmenter.name,
            "model_hash": self.segmenter.model_hash,
            "classes": list(names),
            "palette": [f"#{bytes(colour).hex()}" for colour in palette(names)],
            "queries": list(self.classes.prompts),
            "settings": settings_as_dict(config) | {"background": self.background},
            "images": images,
            "failed": failed,
        }


class Outcome(NamedTuple):
    """Numbers of images that are segmented and that cannot be read, and the text of results.json."""

    images: int
    failed: int
    text: str


class File(NamedTuple):
    """An image file: its place among those of the run, its path, and the name of its results."""

    index: int
    path: Path
    name: str


class Read(NamedTuple):
    """A file, its size in bytes and time of change, its pixels or the reason why there are none, and its masks."""

    file: File
    stamp: list[Any] | None
    pixels: UInt8[np.ndarray, "h w 3"] | None
    error: str = ""
    masks: Iterator[Bool[np.ndarray, "h w"]] | None = None


def segment_files(
    task: Task,
    paths: Sequence[Path],
    folder: Path,
    processes: Processes,
    say: Say,
    shard: Shard | None = None,
    wait: float = 0,
) -> Outcome:
    """Segment image files and write their results; the same at every process.

    A bad image is complained about and skipped; images that an earlier run of the same task has done are not done
    again unless their file has changed. Of a shard only records and results.json lie in a folder of its own.

    Args:
        task: what to do with every image.
        paths: image files.
        folder: an existing one, which is locked.
        processes: of the run; they share the images, or the windows of each where the mesh spans them.
        say: takes sentences for the user.
        shard: only its part of the files.
        wait: seconds to wait for another run to let go of the folder.

    Raises UserError when another run holds the folder or has other settings, or the disk is full.
    """
    files = [File(*row) for row in zip(range(len(paths)), paths, output_names(paths), strict=True)]
    files = [files[index] for index in shard.part(len(files))] if shard else files
    home = folder / shard.place if shard else folder
    together = task.segmenter.mesh is not None and task.segmenter.mesh.is_multi_process
    with ExitStack() as stack:
        before = {}
        if processes.is_first:
            if processes.count == 1 and not (folder / SETTINGS_FILE).exists():
                # Classes that cannot be used must not claim the folder for themselves.
                task.segmenter.question(task.classes, task.background, task.templates)
            if shard:  # all shards claim the folder, one after the other
                with folder_lock(folder, taken_message(folder), wait=max(wait, SECONDS_TO_CLAIM)):
                    claim_folder(folder, task.settings(), any(folder.glob(LINES.format("*"))))
            stack.enter_context(folder_lock(home, taken_message(home), wait=wait))
            remove_leftovers(folder, min_age=SECONDS_TO_LOCK if shard else 0)
            if not shard:
                claim_folder(folder, task.settings(), any(folder.glob(LINES.format("*"))))
            before = _finished(folder, files, task)
        # All processes take the first one's word: in a mesh over all they must run the same programs.
        first, *_ = processes.gather("claimed", json.dumps(before).encode())
        rows: dict[int, dict[str, Any]] = {int(index): row for index, row in json.loads(first).items()}
        failed: dict[int, dict[str, str]] = {}
        if rows:
            rest = "the rest follows" if len(rows) < len(files) else "nothing is left to do"
            say(f"{len(rows)} of {len(files)} images were done before in {home}; {rest}.")
        lines = None
        if processes.is_first or not together:
            number = "" if processes.is_first else f"-{processes.index}"
            lines = stack.enter_context(closing(line_file(home / LINES.format(number))))

        def keep(complete: bool = False) -> str:
            images, bad = ([part[index] for index in sorted(part)] for part in (rows, failed))
            text = as_lines(task.document(images, bad, complete))
            if processes.is_first:
                write_text(home / "results.json", text)
            return text

        mine = files if together else files[processes.index :: processes.count]
        left = [file for file in mine if file.index not in rows]
        keep()
        try:
            advance = stack.enter_context(counter(processes.named("segmented")))
            advance(len(mine) - len(left), len(mine))
            kept = time.monotonic()
            segmented = _segmented(task, left, folder if lines else None, say) if left else ()
            for number, (read, row) in enumerate(segmented, 1):
                if row is None:
                    failed[read.file.index] = {"image": str(read.file.path), "error": read.error}
                else:
                    rows[read.file.index] = row
                    if lines:
                        lines.append(checked_line(row | {"file": read.stamp}))
                advance(len(mine) - len(left) + number, len(mine))
                if time.monotonic() - kept > SECONDS_BETWEEN_RECORDS:
                    keep()
                    kept = time.monotonic()
        except BaseException:  # Ctrl-C above all
            keep()
            raise
        for part in processes.gather("records", json.dumps([rows, failed]).encode()):
            for mapping, more in zip((rows, failed), json.loads(part), strict=True):
                mapping.update((int(index), row) for index, row in more.items())
        if processes.is_first and not shard:
            _write_formats(task, [rows[index] for index in sorted(rows)], folder)
        return Outcome(len(rows), len(failed), keep(complete=True))


def _segmented(
    task: Task, files: Sequence[File], folder: Path | None, say: Say
) -> Iterator[tuple[Read, dict[str, Any] | None]]:
    """Each file with its row of results.json, None for one that cannot be read; pictures go to `folder`, if any."""
    model, watch = task.segmenter.model, Stopwatch()
    names, question = task.segmenter.question(task.classes, task.background, task.templates)
    bad: list[Read] = []

    def read(file: File) -> Ready:
        stamp = _stamp(file, task)  # before the content, so that a change meanwhile is noticed
        try:
            pixels = read_image(file.path)
            masks = task.masks and read_masks(masks_of(task.masks, file.name), pixels.shape[:2])
        except ImageError as error:
            return Ready(Read(file, stamp, None, str(error)), None)
        return Ready(Read(file, stamp, pixels, masks=masks), model.prepare(pixels))

    def readable() -> Iterator[Ready]:
        for ready in read_ahead(files, read, threads=1):
            if ready.prepared is None:
                say(ready.item.error)
                bad.append(ready.item)
            else:
                yield ready

    def around(group: Sequence[Ready]) -> AbstractContextManager[Progress] | None:
        read = group[0].item
        windows = model.steps_through(read.pixels.shape[:2])
        return _watched(task, read.file.path, group[0].prepared.grid, say) if windows else None

    scores = task.scores or task.masks is not None
    # Counted for all images, as others would be another program; the first tells whether the numbers suit the features.
    options = {"batch": task.batch, "scores": scores, "counting": not is_published(model), "around": around}
    images, first = label_images(model, readable(), question, watch, **options), True
    for read, prediction in images:
        labels = prediction.labels
        if read.masks is not None:
            labels = pooled_labels(prediction, read.masks, question, model.config)
        kept = prediction.scores if task.scores else None
        result = Segmentation(labels, names, read.pixels, kept, task.background)
        if folder is not None:
            result.save(folder, read.file.name)
        watch.mark("write")
        yield read, record(result, read.file.path, read.file.name, sum(watch.take().values()))
        if first and prediction.one_key and (sentence := one_key_warning(one_key_percent(*prediction.one_key))):
            say(f"{read.file.path}: {sentence}.")
        first = False
        while bad:
            yield bad.pop(0), None
    yield from ((item, None) for item in bad)


def _write_formats(task: Task, rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write all images of the run in the task's formats, from their index PNGs: earlier runs wrote some of them."""
    names, _, _ = with_background(task.classes, task.background, task.segmenter.config.background_rules)

    def labelled() -> Iterator[Labelled]:
        for row in rows:
            with (folder / f"{row['name']}{ENDINGS[0]}").open("rb") as file, Image.open(file) as picture:
                yield Labelled(np.asarray(picture), row["image"], row["name"])

    for name in task.formats:
        with writing_to(folder):
            FORMATS[name](labelled(), names, task.background, folder)


@contextmanager
def _watched(task: Task, path: Path, grid: WindowGrid, say: Say) -> Iterator[Progress]:
    """Say what a large image will cost, and show its steps."""
    from gla_jax.predict.cost import estimate, merged_share

    params, config = task.segmenter.params, task.segmenter.config
    say(f"{path}: {grid.count} windows, {estimate(params, config, grid.count, merged_share(grid, params, config))}")
    with steps(str(path)) as progress:
        yield progress


def _stamp(file: File, task: Task) -> list[Any] | None:
    try:
        own = stamp_of_file(file.path)
        return own if task.masks is None else [own, stamp_of_file(masks_of(task.masks, file.name))]
    except (OSError, ValueError, ImageError):
        return None


def _finished(folder: Path, files: Sequence[File], task: Task) -> dict[int, dict[str, Any]]:
    """The rows of files that were done before, by index, and whose file and pictures are as they were."""
    by_name = {file.name: file for file in files}
    rows: dict[int, dict[str, Any]] = {}
    for path in sorted(
        itertools.chain(*(folder.glob(f"{place}{LINES.format('*')}") for place in ("", f"{FOLDER}/*/")))
    ):
        with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
            for row in filter(None, map(parse_line, lines)):
                file, stamp = by_name.get(row["name"]), row.pop("file", None)
                if file is None:
                    continue
                # A later line of another image means that its pictures took the place of these.
                rows.pop(file.index, None)
                if row.get("image") == str(file.path) and stamp and stamp == _stamp(file, task):
                    rows[file.index] = row
    return {index: row for index, row in rows.items() if pictures_exist(folder, row["name"], task.scores)}
