"""What a run says about itself: results.json and per_class.csv, and how they are read again."""

import csv
import io
import json
import math
import platform
import resource
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gla_jax.eval.paper import PAPER_SOURCE, not_comparable, paper_miou
from gla_jax.eval.protocols import common_windows, duplicates
from gla_jax.eval.records import ImageRecord, writing_to
from gla_jax.eval.runner import Outcome
from gla_jax.support.files import write_text
from gla_jax.support.errors import UserError
from gla_jax.support.shapes import Float
from gla_jax.support.version import VERSION

FORMAT = "gla-jax results 2"
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "grain")
BOUNDARY = ("ber_1", "ber_8", "control_1", "control_8")
FIGURES = ("miou", "macc", "aacc", *BOUNDARY)


def image_miou(records: Iterable[ImageRecord], classes: int) -> Float[np.ndarray, " images"]:
    """mIoU of every image by itself, percent; NaN without a labelled pixel."""
    return np.array([record.full_areas(classes).scores().miou for record in records], np.float64)


def results(outcome: Outcome) -> dict[str, Any]:
    """Everything about a finished run as JSON values; figures in percent, None where there is none.

    common_edges: boundary figures at the edges of GLA's windows; paper: only where the run may stand beside it.
    """
    run, row = outcome.run, outcome.run.row
    areas = outcome.areas()
    scores = areas.scores()
    paper = paper_miou(row.benchmark, row.setting, run.method)
    reasons = paper and not_comparable(row, run.method, run.segmenter.name, run.templates, run.images)
    figures = {"miou": scores.miou, "macc": scores.macc, "aacc": scores.aacc, **outcome.boundary().rates()}
    by_image = image_miou(outcome.records, len(row.classes))
    per_class = [
        {"class": name, "iou": iou, "accuracy": accuracy, "intersection": i, "prediction": p, "label": g}
        for name, iou, accuracy, i, p, g in zip(
            row.classes, scores.iou.tolist(), scores.accuracy.tolist(), *(a.tolist() for a in areas), strict=True
        )
    ]
    return _without_nan(
        {
            "format": FORMAT,
            "version": VERSION,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "benchmark": row.benchmark,
            "method": run.method,
            "figures": figures,
            "paper": None
            if not paper or reasons
            else {"miou": paper, "whose": f"the paper's figure, not measured here: {PAPER_SOURCE}"},
            "not_comparable_with_paper": reasons or None,
            "common_edges": {"windows": vars(common_windows(row.benchmark)), **outcome.common_boundary().rates()},
            "images": {
                "measured": run.images,
                "in_data": len(run.dataset.ids),
                "labelled": run.dataset.labelled,
            },
            "protocol": {
                "sha256": row.sha256,
                "setting": row.setting,
                "windows": vars(row.windows),
                "threshold": row.threshold,
                "logit_scale": row.logit_scale,
                "area_threshold": row.area_threshold,
                "tuned_for": row.tuned and row.tuned.method,
                "duplicates": list(duplicates(row)),
                "queries": sum(map(len, row.prompts)),
            },
            "settings": run.settings()["settings"],
            "model": {"name": run.segmenter.name, "sha256": run.segmenter.model_hash},
            "data": {"origin": run.dataset.origin, "sha256": run.dataset.fingerprint},
            "speed": _speed(outcome),
            "machine": _machine(),
            "per_class": per_class,
            "per_image": {r.image_id: m for r, m in zip(outcome.records, by_image.tolist(), strict=True)},
        }
    )


def write_results(out: Path, content: dict[str, Any]) -> None:
    """results.json and per_class.csv, each whole or not at all. Raises UserError when they cannot be written."""
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(content["per_class"][0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in content["per_class"])
    with writing_to(out):
        write_text(out / "per_class.csv", table.getvalue())
        write_text(out / "results.json", json.dumps(content, indent=1) + "\n")


def read_results(folder: Path) -> dict[str, Any]:
    """The results in a run's folder. Raises UserError when there are none that can be read."""
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no results.json; name the --out folder of a finished gla-jax eval.")
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}); run the evaluation again.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not a result file of this program; name the --out folder of gla-jax eval.")
    return content


def _speed(outcome: Outcome) -> dict[str, Any]:
    """Images a second over the whole run, kills and all, and the mean seconds of every stage of one image."""
    stages: dict[str, float] = {}
    for record in outcome.records:
        for stage, seconds in record.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    total = sum(stages.values())
    count = len(outcome.records)
    return {
        "images_per_second": count * outcome.processes / total if total else None,
        "seconds_per_image": {stage: seconds / count for stage, seconds in stages.items()},
        "median_seconds": float(np.median([sum(r.seconds.values()) for r in outcome.records])) if count else None,
        "processes": outcome.processes,
        "peak_memory_mib": _peak_memory(),
    }


def _peak_memory() -> dict[str, float | None]:
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if platform.system() == "Darwin" else 1024
    device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "host": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1),
        "device": device and round(device / 2**20, 1),
    }


def _machine() -> dict[str, Any]:
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: None stands for a figure that does not exist."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
