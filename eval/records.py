"""Durable counts of every finished image: one line each, checked when read, so a killed run loses and doubles none.

A line is JSON, a tab and its CRC-32. Every process appends to a file of its own in OUT/records; the lines of all files
together, one per image, are the run.
"""

import json
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gla_jax.eval.metrics.areas import Areas
from gla_jax.eval.metrics.boundary import BoundaryCounts
from gla_jax.eval.schema import ANY_KEY, Number, first_fault
from gla_jax.support.errors import UserError
from gla_jax.support.files import read_json, write_json
from gla_jax.support.locks import folder_lock

SYNC_SECONDS = 1.0
COUNT = Number(whole=True)
_FIELDS = {
    "image_id": str,
    "areas": [[COUNT]],
    **{key: [COUNT] for key in ("size", "resized", "errors", "pairs", "common_errors", "common_pairs")},
    "seconds": {ANY_KEY: Number()},
}


class Counts(NamedTuple):
    """Counts of one image or of many: areas, and boundaries at the edges of the run's windows and at those of GLA's."""

    areas: Areas
    boundary: BoundaryCounts
    common_boundary: BoundaryCounts

    @classmethod
    def zeros(cls, classes: int) -> "Counts":
        """The counts of no image."""
        return cls(Areas.zeros(classes), BoundaryCounts.zeros(), BoundaryCounts.zeros())

    def merge(self, other: "Counts") -> "Counts":
        """The counts of both sets of images together."""
        return Counts(*(part.merge(more) for part, more in zip(self, other, strict=True)))


@dataclass(frozen=True)
class ImageRecord:
    """One image's part of the figures, as it stands in a file.

    areas: (class, intersection, prediction, label) for the classes that occur; errors and pairs: its boundary counts at
    the edges of the run's windows, common_errors and common_pairs at those of GLA's; seconds: per stage; size and
    resized: (height, width) in pixels.
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
        content = json.dumps(asdict(self), separators=(",", ":"))
        return f"{content}\t{zlib.crc32(content.encode()):08x}\n"


def image_record(
    image_id: str, size: tuple[int, int], resized: tuple[int, int], counts: Counts, seconds: dict[str, float]
) -> ImageRecord:
    """The record of an image from its counts: the inverse of ImageRecord.counts.

    Args:
        image_id: name of the image.
        size: height and width of the image in pixels.
        resized: height and width of the image that was cut into windows.
        counts: as arrays.
        seconds: per stage.
    """
    occurring = np.flatnonzero(counts.areas.prediction + counts.areas.label)
    rows = np.column_stack([occurring, *(area[occurring] for area in counts.areas)]).tolist()
    boundaries = (tuple(row.tolist()) for boundary in counts[1:] for row in boundary)
    rounded = {stage: round(value, 6) for stage, value in seconds.items()}
    return ImageRecord(image_id, size, resized, tuple(map(tuple, rows)), *boundaries, rounded)


def parse_line(line: str) -> ImageRecord | None:
    """The record of a line, None when it is cut or damaged."""
    content, tab, crc = line.rstrip("\n").rpartition("\t")
    if not (tab and line.endswith("\n")) or crc != f"{zlib.crc32(content.encode()):08x}":
        return None
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if first_fault(fields, _FIELDS):
        return None
    fields["areas"] = map(tuple, fields["areas"])
    return ImageRecord(
        **{name: tuple(fields[name]) if isinstance(kind, list) else fields[name] for name, kind in _FIELDS.items()}
    )


def read_records(out: Path) -> dict[str, ImageRecord]:
    """The records in a run's folder by image; lines that are cut or damaged are as if they were not there."""
    records: dict[str, ImageRecord] = {}
    for path in sorted((out / "records").glob("*.jsonl")):
        with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
            for record in filter(None, map(parse_line, lines)):
                records.setdefault(record.image_id, record)
    return records


class RecordFile:
    """One process's file of records, open for appending and locked, which also holds the run's folder."""

    def __init__(self, out: Path, process: int = 0):
        """Lock and open it; a folder is created. Raises UserError when another run holds it or it cannot be written."""
        name = f"process-{process:04d}"
        self._out, taken = out, f"another run is writing to {out}; wait for it or choose another --out."
        with writing_to(out), ExitStack() as held:
            held.enter_context(folder_lock(out / "records", taken, f".{name}.lock"))
            path = out / "records" / f"{name}.jsonl"
            self._file = held.enter_context(path.open("ab", buffering=0))
            # Cut what a killed run left half written, so that the next record starts a line of its own.
            self._file.truncate(path.read_bytes().rfind(b"\n") + 1)
            self._held = held.pop_all()
        self._synced = time.monotonic()

    def append(self, record: ImageRecord) -> None:
        """Write a record; it survives a kill at once, and a power cut after a second at most."""
        line = memoryview(record.line().encode())
        with writing_to(self._out):
            while line:  # a disk that is nearly full takes a part
                line = line[os.write(self._file.fileno(), line) :]
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def close(self) -> None:
        """Make everything durable and let go of the file and the folder."""
        with writing_to(self._out), self._held:
            os.fsync(self._file.fileno())


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """Turn the system's errors about a full disk or a place that cannot be written to into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"results cannot be written to {out} ({error.strerror or error}); make room there or choose another --out."
        ) from error


def claim_folder(out: Path, settings: dict[str, Any]) -> None:
    """Make `out`, whose lock the first process holds, the folder of a run with these settings, or check that it is.

    Raises UserError when it is not or cannot be written.
    """
    path = out / "run.json"
    if not path.exists():
        if read_records(out):
            raise UserError(f"{out} holds records but no run.json; choose another --out, or remove it.")
        with writing_to(out):
            write_json(path, settings)
        return
    before = read_json(path, "the settings", f"choose another --out, or remove {out}")
    if differences := _differences(before, json.loads(json.dumps(settings))):
        raise UserError(
            f"{out} holds a run with other settings ({'; '.join(differences[:4])}); choose another --out, or remove it."
        )


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        parts = ((before.get(key), now.get(key), f"{name}.{key}".removeprefix(".")) for key in keys)
        return [line for part in parts for line in _differences(*part)]
    was, is_now = (text if len(text) <= 40 else f"{text[:37]}..." for text in map(json.dumps, (before, now)))
    return [] if before == now else [f"{name} was {was} and is {is_now}"]
