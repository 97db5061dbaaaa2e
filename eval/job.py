"""Runs as the command line asks for them: plain values, by which another process or machine opens the same run."""

from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from beartype.door import is_bearable

from gla_jax.distributed.shards import FOLDER
from gla_jax.eval.benchmarks import TINY_WORLD
from gla_jax.eval.datasets.by_example import benchmark_examples, warn_of_measured_examples
from gla_jax.eval.datasets.dataset import Dataset
from gla_jax.eval.protocols import Protocol, with_steps
from gla_jax.eval.runner import Run, open_benchmark
from gla_jax.models.registry import DEFAULT_MODEL
from gla_jax.models.suited import suited
from gla_jax.segmenter import Segmenter
from gla_jax.settings.options import names_numbers, with_fields
from gla_jax.support.errors import UserError
from gla_jax.support.places import place


@dataclass(frozen=True)
class Job:
    """One benchmark with the options of `gla-jax eval`, in their words; model None: the benchmark's default.

    Options with a default came later: files of jobs from before lack them.
    """

    benchmark: str
    data: str | None
    model: str | None
    method: str
    preset: str
    drop_duplicates: bool
    limit: int | None
    dtype: str
    precision: str | None
    save_predictions: bool
    threads: int
    batch: int
    mesh: str | None
    offline: bool
    classes_from: str | None = None
    prune_below: float = 0.0
    background_margin: float = 0.0
    merge_overlaps: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The job as JSON values."""
        return asdict(self)


def read_job(values: Any) -> Job:
    """The job that a file holds. Raises UserError when it is none."""
    later = {option.name: option.default for option in fields(Job) if option.default is not MISSING}
    values, hints = later | values if isinstance(values, dict) else {}, get_type_hints(Job)
    if any(not is_bearable(values.get(name, ...), hint) for name, hint in hints.items()):
        raise UserError("it does not say how its run was started.")
    return Job(**{name: values[name] for name in hints})


def open_data(jobs: Sequence[Job], out: Path, sharded: bool) -> list[tuple[Dataset, Protocol, Path]]:
    """Data, protocol and folder of every job: `out` or, of several, a folder of it for each.

    sharded: the folder keeps the fingerprint of the data for the processes of other shards. Raises UserError.
    """
    opened = []
    for job in jobs:
        asked = {"drop_duplicates": job.drop_duplicates, "unlabelled": job.save_predictions}
        home = out if len(jobs) == 1 else out / job.benchmark
        kept = home / FOLDER / "data.json" if sharded else None
        data = place(job.data) if job.data else None
        dataset, row = open_benchmark(job.benchmark, data, job.preset, method=job.method, kept=kept, **asked)
        opened.append((dataset, with_steps(row, job.prune_below, job.background_margin), home))
    return opened


def open_runs(jobs: Sequence[Job], out: Path, sharded: bool = False) -> list[Run]:
    """The runs of jobs, in the folders of open_data.

    Every data set is opened, and every setting checked, before a model is loaded. Raises UserError.
    """
    return runs_of(jobs, open_data(jobs, out, sharded))


def runs_of(jobs: Sequence[Job], data: Sequence[tuple[Dataset, Protocol, Path]]) -> list[Run]:
    """The runs of jobs whose data is open. Raises UserError."""
    from gla_jax.distributed.mesh import read_mesh

    opened = []
    for job, (dataset, row, home) in zip(jobs, data, strict=True):
        fields = {"precision": job.precision, "merge_overlaps": job.merge_overlaps}
        config = with_fields(row.config(job.method, job.dtype), fields)
        shown = job.classes_from and benchmark_examples(job.classes_from, job.benchmark, row.classes)
        if shown:
            warn_of_measured_examples(shown, dataset)
        opened.append(
            (job, dataset, row, home, config, shown or None, job.mesh and read_mesh(job.mesh, spanning=False))
        )
    segmenters: dict[str, Segmenter] = {}
    runs = []
    for job, dataset, row, home, config, shown, mesh in opened:
        name = job.model or (TINY_WORLD if job.benchmark == TINY_WORLD else DEFAULT_MODEL)
        if name not in segmenters:
            segmenters[name] = Segmenter.from_pretrained(name, config, offline=job.offline, mesh=mesh)
        vfm = segmenters[name].vfm
        segmenter = segmenters[name].with_config(config if names_numbers(job.preset) else suited(config, vfm))
        runs.append(
            Run(
                dataset,
                row,
                job.method,
                segmenter,
                home,
                limit=job.limit,
                save_predictions=job.save_predictions,
                threads=job.threads,
                batch=job.batch,
                templates=segmenter.templates,
                shown=shown,
            )
        )
    return runs
