"""Shards of a run put together: the results of one run over all images, or one sentence on why there are none.

A shard that is finished has shard.json beside its records. Shards belong together when they agree on every setting, on
the model, the data and the images of the run; together they must hold every image once. A shard that was measured
twice, here and elsewhere, counts once.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gla_jax.eval.job import Job, open_runs, read_job
from gla_jax.eval.records import COUNT
from gla_jax.eval.report.pictures import Picture, report_pictures
from gla_jax.eval.results import facts, machine, results_of
from gla_jax.eval.runner import Outcome, Run
from gla_jax.eval.schema import ANY_KEY, first_fault
from gla_jax.eval.tally import Columns, Tally, columns_of_lines, line_id
from gla_jax.outputs.files import differences, writing_to
from gla_jax.support.errors import UserError
from gla_jax.support.files import read_json, write_json

SHARD_FILE, FORMAT = "shard.json", "gla-jax shard 1"
IMAGES_AT_ONCE = 2**14
_KINDS = {
    "format": str,
    "order": COUNT,
    "first": COUNT,
    "images": {"of_run": COUNT, "sha256": str},
    "image_ids": [str],
    "settings": {ANY_KEY: object},
    "facts": {"benchmark": str, "classes": [str], "data": {"origin": str}, "images": {"measured": COUNT}},
    "job": (None, {ANY_KEY: object}),
    "processes": COUNT,
    "machine": {"peak_memory_mib": {ANY_KEY: object}, "machine": {ANY_KEY: object}},
}


@dataclass(frozen=True)
class MeasuredShard:
    """A finished shard: its folder, the content of its shard.json, and its images as a range of the run's."""

    folder: Path
    content: dict[str, Any]

    @property
    def images(self) -> range:
        """Indices of its images in evaluation order."""
        first = self.content["first"]
        return range(first, first + len(self.content["image_ids"]))

    @property
    def agreed(self) -> dict[str, Any]:
        """The facts that all shards of a run have in common."""
        # Beside the settings that decide, facts hold the numbers of a device and the place of the data.
        run = {key: value for key, value in self.content["facts"].items() if key not in ("data", "settings")}
        return {"settings": self.content["settings"], "images": self.content["images"], "run": run}


def finish_shard(outcome: Outcome, job: Job | None, order: int = 0) -> None:
    """Write shard.json beside the records of a shard, which is then finished. Raises UserError.

    job: by which pictures are made; order: of the benchmark among those of the command.
    """
    run = outcome.run
    content = {
        "format": FORMAT,
        "order": order,
        "first": run.part.start,
        "images": {"of_run": run.images, "sha256": _hash(run.dataset.ids[: run.images])},
        "image_ids": [run.dataset.ids[index] for index in run.part],
        "settings": run.settings(),
        "facts": facts(run),
        "job": job and job.as_dict(),
        "processes": outcome.processes,
        "machine": machine(),
    }
    with writing_to(run.folder):
        write_json(run.folder / SHARD_FILE, content)


def is_finished(run: Run) -> bool:
    """True when the run's shard is finished and of the same settings and images."""
    if not (run.folder / SHARD_FILE).exists():
        return False
    content = _read(run.folder).content
    images = {"of_run": run.images, "sha256": _hash(run.dataset.ids[: run.images])}
    return content["images"] == images and not differences(content["settings"], json.loads(json.dumps(run.settings())))


def find_shards(outs: Sequence[Path]) -> dict[str, list[MeasuredShard]]:
    """The finished shards in the --out folders of runs, by benchmark. Raises UserError when one has none."""
    shards: dict[str, list[MeasuredShard]] = {}
    for out in dict.fromkeys(outs):
        folders = [out] if (out / SHARD_FILE).is_file() else []
        for pattern in ("shards/*-of-*", "*/shards/*-of-*"):
            folders += sorted(path for path in out.glob(pattern) if (path / SHARD_FILE).is_file())
        if not folders:
            raise UserError(f"{out} holds no finished shard; name the --out folders of gla-jax eval with --shard I/N.")
        for shard in map(_read, folders):
            shards.setdefault(shard.content["facts"]["benchmark"], []).append(shard)
    return dict(sorted(shards.items(), key=lambda item: item[1][0].content["order"]))


def merge(shards: Sequence[MeasuredShard]) -> tuple[dict[str, Any], Tally]:
    """Results and sums of all images of a run whose finished shards these are.

    Raises UserError for shards that do not belong together, and for images that are in none, or in two that differ.
    """
    first = shards[0]
    for shard in shards[1:]:
        if found := differences(first.agreed, shard.agreed):
            raise UserError(
                f"{first.folder} and {shard.folder} are shards of different runs ({'; '.join(found[:4])}, first and "
                "second); merge the shards of one run."
            )
    groups = _covering(shards)
    ids = itertools.chain.from_iterable(group[0].content["image_ids"] for group in groups)
    if _hash(ids) != first.content["images"]["sha256"]:
        raise UserError(f"the shards of {first.folder.parent} name other images than their run; measure them again.")
    tally = Tally(len(first.content["facts"]["classes"]))
    for group in groups:
        for columns in _columns(group):
            tally.add(columns)
    contents = [group[0].content for group in groups]
    processes = max(content["processes"] for content in contents)
    return results_of(first.content["facts"], tally, processes, _machine(contents)), tally


def pictures_of(shard: MeasuredShard, tally: Tally) -> list[Picture]:
    """The pictures of a report, for which model and data are opened as the shard's own command opened them.

    Raises UserError when they are not here, or are others than the shard's.
    """
    (run,) = open_runs([read_job(shard.content["job"])], shard.folder)
    if differences(shard.content["settings"], json.loads(json.dumps(run.settings()))):
        raise UserError("the model or the data here are not those of the shards.")
    return report_pictures(run, tally.miou)


def _read(folder: Path) -> MeasuredShard:
    path, advice = folder / SHARD_FILE, "measure the shard again"
    content = read_json(path, "the shard", advice)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not of a shard of this program; {advice}.")
    if fault := first_fault(content, _KINDS):
        raise UserError(f"the shard {path} is damaged ({fault}); {advice}.")
    return MeasuredShard(folder, content)


def _covering(shards: Sequence[MeasuredShard]) -> list[list[MeasuredShard]]:
    """Shards of equal images together, in evaluation order. Raises UserError where images are missing or in two."""
    total, end = shards[0].content["images"]["of_run"], 0
    groups: list[list[MeasuredShard]] = []
    for shard in sorted(shards, key=lambda shard: (shard.images.start, shard.images.stop)):
        if not shard.images:
            continue
        if groups and groups[-1][0].images == shard.images:
            groups[-1].append(shard)
            continue
        if shard.images.start < end:
            twice = shard.content["image_ids"][0]
            raise UserError(
                f"the image {twice} is in {groups[-1][0].folder} and in {shard.folder}, which are of different "
                "numbers of shards; leave out one of them."
            )
        _check_gap(shards, end, shard.images.start)
        groups.append([shard])
        end = shard.images.stop
    _check_gap(shards, end, total)
    return groups


def _check_gap(shards: Sequence[MeasuredShard], start: int, stop: int) -> None:
    if start == stop:
        return
    total = shards[0].content["images"]["of_run"]
    homes = {shard.folder.parent for shard in shards}
    started = sorted(
        path
        for home in homes
        for path in home.glob("*-of-*")
        if (path / "records").is_dir() and not (path / SHARD_FILE).is_file()
    )
    begun = f"; {started[0]} was begun and not finished" if started else ""
    raise UserError(
        f"images {start} to {stop - 1} of {total} (counted from 0) are in no finished shard{begun}; measure that shard."
    )


def _columns(group: Sequence[MeasuredShard]) -> Iterator[Columns]:
    """The records of a shard's images in order, from whichever folders have them.

    Raises UserError for images without a record, or with two that differ.
    """
    shard = group[0]
    ids, classes = shard.content["image_ids"], len(shard.content["facts"]["classes"])
    lines: dict[str, str] = {}
    for folder in dict.fromkeys(member.folder for member in group):
        for path in sorted((folder / "records").glob("*.jsonl")):
            with path.open(encoding="utf-8", errors="replace", newline="\n") as content:
                for line in content:
                    if image_id := line_id(line):
                        before = lines.setdefault(image_id, line)
                        if before != line and _counts(before) != _counts(line):
                            raise UserError(
                                f"the image {image_id} has two records that differ, one of them in {path}; machines "
                                f"that count alike must measure it, so leave out one of the folders."
                            )
    missing = [image_id for image_id in ids if image_id not in lines]
    if missing:
        raise UserError(
            f"{shard.folder} lacks the records of {len(missing)} of its images, the first is {missing[0]}; measure the "
            "shard again."
        )
    for start in range(0, len(ids), IMAGES_AT_ONCE):
        columns = columns_of_lines([lines[image_id] for image_id in ids[start : start + IMAGES_AT_ONCE]])
        if wrong := columns.impossible(classes):
            raise UserError(f"{shard.folder} has a record of {wrong} that no image can have; measure the shard again.")
        yield columns


def _counts(line: str) -> str:
    """A record's line without its seconds, which differ each time, and one_key, which records of before lack."""
    return line.rpartition(',"seconds":')[0]


def _machine(contents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The machine of the first shard, and the most memory that any of them held."""
    peaks = [content["machine"]["peak_memory_mib"] for content in contents]
    most = {
        key: max((peak[key] for peak in peaks if isinstance(peak.get(key), int | float)), default=None)
        for key in ("host", "device")
    }
    return {"peak_memory_mib": most, "machine": contents[0]["machine"]["machine"]}


def _hash(image_ids: Any) -> str:
    """SHA-256 over ids in order."""
    sha = hashlib.sha256()
    for image_id in image_ids:
        sha.update(f"{image_id}\n".encode())
    return sha.hexdigest()
