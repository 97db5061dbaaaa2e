"""A folder of results that belongs to one run, and files of lines that survive its end: for `segment` and `eval`."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gla_jax.config import PlatformNumbers, SegmenterConfig, settings_as_dict
from gla_jax.support.errors import UserError
from gla_jax.support.files import read_json, write_json

SETTINGS_FILE = "run.json"
SYNC_SECONDS = 1.0


def taken_message(out: Path) -> str:
    """The sentence for a folder whose lock another run holds."""
    return f"another run is writing to {out}; wait for it or choose another --out."


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """Turn the system's errors about a full disk or a place that cannot be written to into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"results cannot be written to {out} ({error.strerror or error}); make room there or choose another --out."
        ) from error


class LineFile:
    """A file of lines, open for appending; a line survives a kill at once, and a power cut after a second at most."""

    def __init__(self, path: Path):
        """Open the file of a folder whose lock this run holds, without the half line that a killed run left."""
        self._out = path.parent
        with writing_to(self._out):
            self._file = path.open("ab", buffering=0)
            self._file.truncate(path.read_bytes().rfind(b"\n") + 1)
        self._synced = time.monotonic()

    def append(self, line: str) -> None:
        """Write a line, which ends with its newline."""
        rest = memoryview(line.encode())
        with writing_to(self._out):
            while rest:  # a disk that is nearly full takes a part
                rest = rest[self._file.write(rest) :]
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def close(self) -> None:
        """Make everything durable and let go of the file."""
        with writing_to(self._out), self._file:
            os.fsync(self._file.fileno())


def deciding_settings(config: SegmenterConfig) -> dict[str, Any]:
    """The settings that decide a result: without the numbers of a device, which change it by rounding alone."""
    settings = settings_as_dict(config)
    for part in (settings, settings["method"]):
        for name in PlatformNumbers._fields:
            part.pop(name, None)
    return settings


def claim_folder(out: Path, settings: dict[str, Any], has_records: bool) -> None:
    """Make `out`, whose lock the caller holds, the folder of a run with these settings, or check that it is.

    has_records: the folder holds records of images. Raises UserError when it is another run's or cannot be written.
    """
    path = out / SETTINGS_FILE
    if not path.exists():
        if has_records:
            raise UserError(f"{out} holds records but no {path.name}; choose another --out, or remove it.")
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
    return [] if before == now else [f"{name or 'all'} was {was} and is {is_now}"]
