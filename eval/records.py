"""Durable counts of every finished image: one line each, checked when read, so a killed run loses and doubles none.

A line is JSON, a tab and its CRC-32. Every process appends to a file of its own in OUT/records; the lines of all files
together, one per image, are the run.
"""

import json
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gla_jax.eval.metrics.areas import Areas
from gla_jax.eval.metrics.boundary import BoundaryCounts
from gla_jax.eval.schema import ANY_KEY, Number, first_fault
from gla_jax.outputs.files import LineFile, LineObjects, line_file, taken_message, writing_to
from gla_jax.support.files import folder_lock

COUNT = Number(high=2.0**48, whole=True)  # so that the counts of many images fit into 64 bits
_FIELDS = {
    "image_id": str,
    "areas": [[COUNT] * 4],
    **{key: [COUNT] * 2 for key in ("size", "resized")},
    **{key: [COUNT] * 4 for key in ("errors", "pairs", "common_errors", "common_pairs")},
    "seconds": {ANY_KEY: Number(high=1e9)},
    "one_key": (None, [COUNT] * 2),
}


class Counts(NamedTuple):
    """Counts of one image or of many: areas, and boundaries at the edges of the run's windows and at those of GLA's."""

    areas: Areas
    boundary: BoundaryCounts
    common_boundary: BoundaryCounts


@dataclass(frozen=True)
class ImageRecord:
    """One image's part of the figures, as it stands in a file.

    areas: (class, intersection, prediction, label) for the classes that occur; errors and pairs: its boundary counts at
    the edges of the run's windows, common_errors and common_pairs at those of GLA's; seconds: per stage; size and
    resized: (height, width) in pixels; one_key: tokens that keep one single key and all that attend by features, None
    in records of before they were counted.
    """

    image_id: str
    size: tuple[int, int]
    resized: tuple[int, int]
    areas: tuple[tuple[int, int, int, int], ...]
    errors: tuple[int, ...]
    pairs: tuple[int, ...]
    common_errors: tuple[int, ...]
    common_pairs: tuple[int, ...]
    seconds: dict[str, float]
    one_key: tuple[int, int] | None = None

    def counts(self, classes: int) -> Counts:
        """The counts as arrays, with a row for every class."""
        table = np.zeros((3, classes), np.int64)
        for index, *areas in self.areas:
            table[:, index] = areas
        rows = (self.errors, self.pairs, self.common_errors, self.common_pairs)
        errors, pairs, *common = (np.array(row, np.int64) for row in rows)
        return Counts(Areas(*table), BoundaryCounts(errors, pairs), BoundaryCounts(*common))

    def line(self) -> str:
        """The record as one line of a file."""
        fields = {name: value for name, value in asdict(self).items() if value is not None}
        content = json.dumps(fields, separators=(",", ":"))
        return f"{content}\t{zlib.crc32(content.encode()):08x}\n"


def image_record(
    image_id: str,
    size: tuple[int, int],
    resized: tuple[int, int],
    counts: Counts,
    seconds: dict[str, float],
    one_key: tuple[int, int],
) -> ImageRecord:
    """The record of an image from its counts: the inverse of ImageRecord.counts.

    Args:
        image_id: name of the image.
        size: height and width of the image in pixels.
        resized: height and width of the image that was cut into windows.
        counts: as arrays.
        seconds: per stage.
        one_key: tokens that keep one single key, and all that attend by features.
    """
    occurring = np.flatnonzero(counts.areas.prediction + counts.areas.label)
    rows = np.column_stack([occurring, *(area[occurring] for area in counts.areas)]).tolist()
    boundaries = (tuple(row.tolist()) for boundary in counts[1:] for row in boundary)
    rounded = {stage: round(value, 6) for stage, value in seconds.items()}
    return ImageRecord(image_id, size, resized, tuple(map(tuple, rows)), *boundaries, rounded, one_key)


def parse_line(line: str) -> ImageRecord | None:
    """The record of a line, None when it is cut or damaged."""
    content, _, crc = line.rpartition("\t")
    if crc != f"{zlib.crc32(content.encode()):08x}\n":
        return None
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return None
    fields = {"one_key": None} | fields if isinstance(fields, dict) else fields  # records of before have none
    if first_fault(fields, _FIELDS) or not _possible(fields["areas"], *fields["size"]):
        return None
    one_key = None if fields["one_key"] is None else tuple(fields["one_key"])
    if one_key and one_key[0] > one_key[1]:
        return None
    lists = {name: tuple(fields[name]) for name, kind in _FIELDS.items() if isinstance(kind, list)}
    areas = tuple(map(tuple, fields["areas"]))
    return ImageRecord(fields["image_id"], **lists | {"areas": areas}, seconds=fields["seconds"], one_key=one_key)


def _possible(areas: list[list[int]], height: int, width: int) -> bool:
    """True for areas that an image of this size can have, a row for each class."""
    sums = [sum(column) for column in zip(*areas, strict=True)][1:]
    each = all(intersection <= min(prediction, label) for _, intersection, prediction, label in areas)
    return each and max(sums, default=0) <= height * width and len({index for index, *_ in areas}) == len(areas)


def read_records(out: Path, classes: int | None = None) -> dict[str, ImageRecord]:
    """The records in a run's folder by image; lines that are cut or damaged are as if they were not there.

    classes: lines about classes that do not exist are damaged too.
    """
    records: dict[str, ImageRecord] = {}
    for path in sorted((out / "records").glob("*.jsonl")):
        with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
            for record in filter(None, map(parse_line, lines)):
                if classes is None or all(index < classes for index, *_ in record.areas):
                    records.setdefault(record.image_id, record)
    return records


@contextmanager
def record_file(out: Path, process: int = 0, wait: float = 0) -> Iterator[LineFile | LineObjects]:
    """One process's file of records, open for appending; its lock holds the run's folder, which is created.

    wait: seconds to wait for another run to let go of it. Raises UserError when one holds it or it cannot be written.
    """
    name = f"process-{process:04d}"
    with ExitStack() as held:
        with writing_to(out):
            held.enter_context(folder_lock(out / "records", taken_message(out), f".{name}.lock", wait))
        yield held.enter_context(closing(line_file(out / "records" / f"{name}.jsonl")))
