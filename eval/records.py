"""Durable counts of every finished image: one line each, checked when read, so a killed run loses and doubles none.

A line is JSON, a tab and its CRC-32. Every process appends to its own file of OUT/records; the lines of all files
together, one per image, are the run.
"""

import fcntl
import json
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gla_jax.eval.metrics.areas import Areas
from gla_jax.eval.metrics.boundary import BoundaryCounts
from gla_jax.support.files import write_text
from gla_jax.support.errors import UserError

SYNC_SECONDS = 1.0


@dataclass(frozen=True)
class ImageRecord:
    """What one image adds to the figures.

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

    def full_areas(self, classes: int) -> Areas:
        """The areas with a row for every class."""
        table = np.zeros((3, classes), np.int64)
        for index, *counts in self.areas:
            table[:, index] = counts
        return Areas(*table)

    def boundary(self) -> BoundaryCounts:
        """The boundary counts at the edges of the run's windows, as arrays."""
        return BoundaryCounts(np.array(self.errors, np.int64), np.array(self.pairs, np.int64))

    def common_boundary(self) -> BoundaryCounts:
        """The boundary counts at the edges of GLA's windows, as arrays."""
        return BoundaryCounts(np.array(self.common_errors, np.int64), np.array(self.common_pairs, np.int64))

    def line(self) -> str:
        """The record as one line of a file."""
        content = json.dumps(asdict(self), separators=(",", ":"))
        return f"{content}\t{zlib.crc32(content.encode()):08x}\n"


def image_record(
    image_id: str,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    areas: Areas,
    boundaries: tuple[BoundaryCounts, BoundaryCounts],
    seconds: dict[str, float],
) -> ImageRecord:
    """The record of an image; sizes are its own and the resized one, boundaries those of the run and of GLA."""
    occurring = np.flatnonzero(areas.prediction + areas.label)
    rows = tuple(tuple(int(counts[index]) for counts in areas) for index in occurring)
    return ImageRecord(
        image_id,
        *sizes,
        tuple((int(index), *row) for index, row in zip(occurring, rows, strict=True)),
        *(tuple(counts.tolist()) for boundary in boundaries for counts in boundary),
        {stage: round(value, 6) for stage, value in seconds.items()},
    )


def parse_line(line: str) -> ImageRecord | None:
    """The record of a line, None when it is cut or damaged."""
    content, tab, crc = line.rstrip("\n").rpartition("\t")
    if not (tab and line.endswith("\n")) or crc != f"{zlib.crc32(content.encode()):08x}":
        return None
    fields = json.loads(content)
    for name in ("size", "resized", "errors", "pairs", "common_errors", "common_pairs"):
        fields[name] = tuple(fields[name])
    fields["areas"] = tuple(tuple(row) for row in fields["areas"])
    return ImageRecord(**fields)


def read_records(out: Path) -> dict[str, ImageRecord]:
    """The records in a run's folder by image; lines that are cut or damaged are as if they were not there."""
    records: dict[str, ImageRecord] = {}
    for path in sorted((out / "records").glob("*.jsonl")):
        with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
            for record in map(parse_line, lines):
                if record is not None:
                    records.setdefault(record.image_id, record)
    return records


class RecordFile:
    """One process's file of records, open for appending.

    Raises UserError when another run holds it or it cannot be written.
    """

    def __init__(self, out: Path, process: int = 0):
        path = out / "records" / f"process-{process:04d}.jsonl"
        self._out = out
        with writing_to(out):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise UserError(f"another run is writing to {out}; wait for it or choose another --out.") from None
        self._end_after_last_line(path)
        self._synced = time.monotonic()

    def append(self, record: ImageRecord) -> None:
        """Write a record; it survives a kill at once, and a power cut after a second at most."""
        line = memoryview(record.line().encode())
        with writing_to(self._out):
            while line:  # a disk that is nearly full takes a part
                line = line[os.write(self._file, line) :]
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._file)
                self._synced = time.monotonic()

    def close(self) -> None:
        """Make everything durable and let go of the file."""
        with writing_to(self._out):
            os.fsync(self._file)
            os.close(self._file)

    def _end_after_last_line(self, path: Path) -> None:
        """Cut what a killed run left half written, so that the next record starts a line of its own."""
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        os.ftruncate(self._file, end)
        os.lseek(self._file, 0, os.SEEK_END)


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """Turn what the system says about a full disk or a place that cannot be written to into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"results cannot be written to {out} ({error.strerror or error}); make room there or choose another --out."
        ) from error


def claim_folder(out: Path, settings: dict[str, Any]) -> None:
    """Make `out` the folder of a run with these settings, or check that it is.

    Raises UserError when it is not or cannot be written.
    """
    path = out / "run.json"
    if not path.exists():
        if (out / "records").exists():
            raise UserError(f"{out} holds records but no run.json; choose another --out, or remove it.")
        with writing_to(out):
            out.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(settings, indent=1) + "\n")
        return
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); choose another --out, or remove {out}.") from None
    if differences := _differences(found, json.loads(json.dumps(settings))):
        raise UserError(
            f"{out} holds a run with other settings ({'; '.join(differences[:4])}); choose another --out, or remove it."
        )


def _differences(found: Any, wanted: Any, name: str = "") -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        names = sorted(found.keys() | wanted.keys())
        return [
            line
            for key in names
            for line in _differences(found.get(key), wanted.get(key), f"{name}.{key}" if name else key)
        ]
    if found == wanted:
        return []
    return [f"{name} was {_short(found)} and is {_short(wanted)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
