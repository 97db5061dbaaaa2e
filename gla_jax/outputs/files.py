"""Names and contents of the files that `gla-jax segment` writes, every one whole or not there."""

import json
import os
import secrets
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from gla_jax.config import (
    LATER_FIELDS,
    LATER_METHOD_FIELDS,
    PlatformNumbers,
    SegmenterConfig,
    later_fields,
    settings_as_dict,
)
from gla_jax.predict.examples import ExampleClasses
from gla_jax.results.segmentation import Segmentation
from gla_jax.segmenter import Segmenter
from gla_jax.support.errors import UserError
from gla_jax.support.files import read_json, write_json, write_text
from gla_jax.support.places import is_remote
from gla_jax.support.web import is_web
from gla_jax.text.prompts import Classes

SETTINGS_FILE = "run.json"
SYNC_SECONDS = 1.0
OBJECT_SECONDS = 5.0  # what a killed run loses on an object store


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


class LineObjects:
    """Lines on an object store, which has no appending: an object for those of a few seconds, none of which changes."""

    def __init__(self, path: Path):
        """Write beside `path`, under its name with the number of an object before the ending."""
        self._path, self._run, self._count = path, secrets.token_hex(4), 0
        self._lines: list[str] = []
        self._written = time.monotonic()

    def append(self, line: str) -> None:
        """Keep a line, which ends with its newline; all are written a few seconds later."""
        self._lines.append(line)
        if time.monotonic() - self._written > OBJECT_SECONDS:
            self._write()

    def close(self) -> None:
        """Write what is left."""
        self._write()

    def _write(self) -> None:
        if self._lines:
            name = f"{self._path.stem}.{self._run}-{self._count:06d}{self._path.suffix}"
            with writing_to(self._path.parent):
                write_text(self._path.parent / name, "".join(self._lines))
            self._lines, self._count = [], self._count + 1
        self._written = time.monotonic()


def line_file(path: Path) -> "LineFile | LineObjects":
    """Lines at a path of a folder whose lock this run holds."""
    return LineObjects(path) if is_remote(path) else LineFile(path)


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
    for name in set(LATER_FIELDS) - later_fields(config).keys():  # so that runs of before them go on
        del settings[name]
    for name in LATER_METHOD_FIELDS:
        if not settings["method"][name]:
            del settings["method"][name]
    return settings


def question_settings(command: str, segmenter: Segmenter, classes: Classes, background: str | None) -> dict[str, Any]:
    """Model, classes and settings of a run, in which all runs of a folder agree.

    Args:
        command: the name of the command.
        segmenter: the model, whose settings hold the threshold.
        classes: names and prompts.
        background: the class of pixels below the threshold.
    """
    examples = {"examples": classes.sha256} if isinstance(classes, ExampleClasses) else {}
    return examples | {
        "command": command,
        "model": {"name": segmenter.name, "sha256": segmenter.model_hash},
        "classes": list(map(list, zip(classes.prompts, classes.class_of_prompt, strict=True))),
        "background": background,
        "settings": deciding_settings(segmenter.config),
    }


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
    if found := differences(before, json.loads(json.dumps(settings))):
        raise UserError(
            f"{out} holds a run with other settings ({'; '.join(found[:4])}); choose another --out, or remove it."
        )


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Say of every value in which two JSON values differ what it was and is; name: of the value."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        parts = ((before.get(key), now.get(key), f"{name}.{key}".removeprefix(".")) for key in keys)
        return [line for part in parts for line in differences(*part)]
    was, is_now = (text if len(text) <= 40 else f"{text[:37]}..." for text in map(json.dumps, (before, now)))
    return [] if before == now else [f"{name or 'all'} was {was} and is {is_now}"]


MAX_NAME_BYTES = 200  # of the 255 of a file name: the rest is for the ending and for the file that is written beside


def output_names(paths: Sequence[Path]) -> list[str]:
    """A name for the results of each image, at most 200 bytes and no two alike on any file system.

    Its stem; where stems are equal its ending too, then its folders below those that all share, then a number.
    """
    places = [
        PurePosixPath(urlsplit(path.as_posix()).path if is_web(path) else path.as_posix())
        if is_remote(path)
        else Path(os.path.abspath(path))
        for path in paths
    ]
    try:
        shared = len(Path(os.path.commonpath([place.parent for place in places])).parts)
    except ValueError:  # of several stores
        shared = 0
    spellings = (
        lambda place: place.name.replace(".", "_"),
        lambda place: "_".join((*place.parent.parts[shared:], place.stem)),
        lambda place: "_".join((*place.parent.parts[shared:], place.name.replace(".", "_"))),
    )
    names = [_shortened(place.stem) for place in places]
    for spelling in spellings:
        taken = Counter(map(str.casefold, names))
        names = [
            _shortened(spelling(place)) if taken[name.casefold()] > 1 else name
            for name, place in zip(names, places, strict=True)
        ]
    return _numbered(names)


def _shortened(name: str) -> str:
    """The end of a name, where paths differ most, of as many bytes as leave room for the endings of the results."""
    spelled = os.fsencode(name)
    return spelled[-MAX_NAME_BYTES:].decode(errors="ignore") if len(spelled) > MAX_NAME_BYTES else name


def _numbered(names: Sequence[str]) -> list[str]:
    """Names of which no two are alike: the second of several that are equal but for case gets _2 and so on."""
    taken = Counter(map(str.casefold, names))
    unlike: list[str] = []
    seen: set[str] = set()
    for name in names:
        number, candidate = 1, name
        # A number must not make it the name of another image.
        while candidate.casefold() in seen or (number > 1 and candidate.casefold() in taken):
            number += 1
            candidate = f"{name}_{number}"
        seen.add(candidate.casefold())
        unlike.append(candidate)
    return unlike


def record(result: Segmentation, path: Path, name: str, seconds: float) -> dict[str, Any]:
    """An image's entry in results.json: size [h, w], seconds, pixel shares of the classes that occur."""
    shares = {label: round(share, 6) for label, share in result.shares().items() if share > 0}
    size = list(result.labels.shape)
    return {"image": str(path), "name": name, "size": size, "seconds": round(seconds, 3), "shares": shares}


def checked_line(row: dict[str, Any]) -> str:
    """A line of results.jsonl: JSON whose last field is the CRC-32 of the rest."""
    text = json.dumps(row)
    return f'{text[:-1]}, "crc32": "{zlib.crc32(text.encode()):08x}"}}\n'


def parse_line(line: str) -> dict[str, Any] | None:
    """The content of a line of results.jsonl, None when it is cut or damaged."""
    text, _, crc = line.rpartition(', "crc32": "')
    text += "}"
    if crc != f'{zlib.crc32(text.encode(errors="replace")):08x}"}}\n':
        return None
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("name"), str) else None


def as_lines(document: dict[str, Any]) -> str:
    """JSON with one line for each image."""
    head = json.dumps({key: value for key, value in document.items() if key not in ("images", "failed")}, indent=1)
    lists = []
    for key in ("images", "failed"):
        rows = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in document[key])
        lists.append(f' "{key}": [\n{rows}\n ]' if rows else f' "{key}": []')
    text = head.removesuffix("\n}") + ",\n" + ",\n".join(lists) + "\n}\n"
    # A file name that is not UTF-8 has letters that no encoding holds; JSON spells them as Python does.
    return text.encode(errors="backslashreplace").decode()
