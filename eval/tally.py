"""Sums over the records of a run, and the few numbers that results hold of every image.

Records come as columns, in parts of any size: a million of them never lie in memory at once, and parts in evaluation
order give the figures of all records at once, digit by digit.
"""

import json
import re
import zlib
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from gla_jax.eval.metrics.areas import Areas
from gla_jax.eval.metrics.boundary import BoundaryCounts
from gla_jax.eval.records import Counts, ImageRecord, parse_line
from gla_jax.support.arrays import Float

_WHOLE = r"\d{1,14}"  # below the limit of a count
_FOUR, _TWO = (rf"\[{_WHOLE}(?:,{_WHOLE}){{{more}}}\]" for more in (3, 1))
_STAGE = r'"[ a-z]+":\d{1,8}(?:\.\d+)?(?:e-\d+)?'
# A line as this program writes it: one match in place of a walk through what json.loads makes of it.
_USUAL = re.compile(
    rf'(\{{"image_id":"([^"\\]+)","size":({_TWO}),"resized":{_TWO},"areas":(\[(?:{_FOUR}(?:,(?=\[)|(?=\])))*\]),'
    rf'"errors":({_FOUR}),"pairs":({_FOUR}),"common_errors":({_FOUR}),"common_pairs":({_FOUR}),'
    rf'"seconds":(\{{(?:{_STAGE}(?:,(?=")|(?=\}})))*\}})(?:,"one_key":({_TWO}))?\}})\t([0-9a-f]{{8}})\n',
    re.ASCII,
)
_UNCOUNTED = (-1, -1)
_PUNCTUATION = str.maketrans("[],", "   ")


class Columns(NamedTuple):
    """Records of N images side by side.

    sizes int64 [N 2], boundary int64 [N 4 4] (errors, pairs, common errors, common pairs), areas int64 [rows 4] (class,
    intersection, prediction, label) with the number of rows of each image in lengths int64 [N]; one_key int64 [N 2]
    (tokens that keep one single key, all), -1 where a record of before has none.
    """

    image_ids: list[str]
    sizes: np.ndarray
    boundary: np.ndarray
    lengths: np.ndarray
    areas: np.ndarray
    seconds: list[dict[str, float]]
    one_key: np.ndarray

    def impossible(self, classes: int) -> str | None:
        """The first image whose counts cannot be those of an image of its size with that many classes."""
        owner = np.repeat(np.arange(len(self.lengths)), self.lengths)
        index, intersection, *both = self.areas.T
        bad = (intersection > np.minimum(*both)) | (index >= classes)
        sums = [np.bincount(owner, column, minlength=len(self.lengths)) for column in both]
        wrong = np.maximum(*sums) > self.sizes.prod(1)
        wrong |= self.one_key[:, 0] > self.one_key[:, 1]
        wrong[owner[bad]] = True
        twice = np.unique(owner * max(classes, 1) + np.minimum(index, classes - 1), return_index=True)[1]
        wrong[np.delete(owner, twice)] = True
        return self.image_ids[int(wrong.argmax())] if wrong.any() else None


def columns_of_records(records: Sequence[ImageRecord]) -> Columns:
    """The columns of records."""
    numbers = [
        (record.size, record.errors + record.pairs + record.common_errors + record.common_pairs) for record in records
    ]
    sizes, boundary = zip(*numbers, strict=True) if numbers else ((), ())
    return Columns(
        [record.image_id for record in records],
        np.array(sizes, np.int64).reshape(-1, 2),
        np.array(boundary, np.int64).reshape(-1, 4, 4),
        np.array([len(record.areas) for record in records], np.int64),
        np.array(list(chain.from_iterable(record.areas for record in records)), np.int64).reshape(-1, 4),
        [record.seconds for record in records],
        np.array([record.one_key or _UNCOUNTED for record in records], np.int64).reshape(-1, 2),
    )


def columns_of_lines(lines: Sequence[str]) -> Columns:
    """The columns of whole lines (see line_id), five times as fast as through records."""
    matches = [_USUAL.fullmatch(line) for line in lines]
    if not all(matches):
        return columns_of_records(list(filter(None, map(parse_line, lines))))
    _, image_ids, sizes, areas, *boundary, seconds, one_key, _ = zip(
        *(match.groups() for match in matches), strict=True
    )
    return Columns(
        list(image_ids),
        _numbers(sizes).reshape(-1, 2),
        np.stack([_numbers(column).reshape(-1, 4) for column in boundary], 1),
        np.array([text.count("[") - 1 for text in areas], np.int64),
        _numbers(areas).reshape(-1, 4),
        list(map(json.loads, seconds)),
        _numbers(text or str(_UNCOUNTED)[1:-1] for text in one_key).reshape(-1, 2),
    )


def line_id(line: str) -> str | None:
    """The image of a record's line, None when the line is cut or damaged."""
    if match := _USUAL.fullmatch(line):
        return match[2] if f"{zlib.crc32(match[1].encode()):08x}" == match[11] else None
    record = parse_line(line)
    return record and record.image_id


def _numbers(texts: Iterable[str]) -> np.ndarray:
    return np.fromstring(" ".join(texts).translate(_PUNCTUATION), np.int64, sep=" ")


class Tally:
    """The sums so far.

    counts: over all images; image_ids and miou: of every image in the order they came, percent; pixels: of all images;
    seconds: sum of every stage; image_seconds: of all stages of an image; one_key: tokens that keep one single key, and
    all; uncounted: images whose records lack these.
    """

    def __init__(self, classes: int):
        """Start with no image of a benchmark with that many classes."""
        self.counts = Counts(Areas.zeros(classes), BoundaryCounts.zeros(), BoundaryCounts.zeros())
        self.image_ids: list[str] = []
        self.pixels = 0
        self.seconds: dict[str, float] = {}
        self.image_seconds: list[float] = []
        self.one_key, self.uncounted = (0, 0), 0
        self._miou: list[Float[np.ndarray, " images"]] = []

    def add(self, columns: Columns) -> "Tally":
        """Add further images."""
        self.image_ids += columns.image_ids
        self.pixels += int(columns.sizes.prod(1).sum())
        for seconds in columns.seconds:
            for stage, value in seconds.items():
                self.seconds[stage] = self.seconds.get(stage, 0.0) + value
            self.image_seconds.append(sum(seconds.values()))
        counted = columns.one_key[columns.one_key[:, 0] >= 0]
        self.one_key = tuple((counted.sum(0) + self.one_key).tolist())
        self.uncounted += len(columns.one_key) - len(counted)
        boundary = columns.boundary.sum(0)
        index, *areas = columns.areas.T
        for counts, column in zip(self.counts.areas, areas, strict=True):
            np.add.at(counts, index, column)
        for counts, more in zip((*self.counts.boundary, *self.counts.common_boundary), boundary, strict=True):
            counts += more
        self._miou.append(_image_miou(columns))
        return self

    @property
    def miou(self) -> Float[np.ndarray, " images"]:
        """mIoU of every image by itself, percent; NaN without a labelled pixel."""
        return np.concatenate([np.zeros(0), *self._miou])


def tally_of(records: Iterable[ImageRecord], classes: int) -> Tally:
    """The sums of records of a benchmark with that many classes."""
    return Tally(classes).add(columns_of_records(list(records)))


def _image_miou(columns: Columns) -> Float[np.ndarray, " images"]:
    _, intersection, prediction, label = columns.areas.T
    union = prediction + label - intersection
    present = union > 0
    iou = 100.0 * intersection[present] / union[present]
    counts = np.bincount(
        np.repeat(np.arange(len(columns.lengths)), columns.lengths)[present], minlength=len(columns.lengths)
    )
    means, start = np.full(len(counts), np.nan), 0
    for image, count in enumerate(counts.tolist()):
        if count:  # not reduceat: it adds in another order, which gives another last digit
            means[image] = np.add.reduce(iou[start : start + count]) / count
        start += count
    return means
