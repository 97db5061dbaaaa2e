"""Results of a run as files, results.json and per_class.csv, and how they are read again."""

import csv
import io
import math
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gla_jax.config import METHODS, PRESET_ALIASES, settings_as_dict
from gla_jax.eval.paper import PAPER_SOURCE, not_comparable, paper_miou
from gla_jax.eval.protocols import common_windows, duplicates
from gla_jax.eval.records import COUNT
from gla_jax.eval.runner import Outcome, Run
from gla_jax.eval.schema import ANY_KEY, Number, first_fault
from gla_jax.eval.tally import Tally
from gla_jax.outputs.files import writing_to
from gla_jax.predict.one_key import one_key_percent, one_key_warning
from gla_jax.support.errors import UserError
from gla_jax.support.files import read_json, write_json, write_text
from gla_jax.support.version import VERSION

try:
    import resource
except ImportError:  # Windows
    resource = None

FORMAT = "gla-jax results 2"
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow")
BOUNDARY = ("ber_1", "ber_8", "control_1", "control_8")
FIGURES = ("miou", "macc", "aacc", *BOUNDARY)
MAX_NAMES = 5  # of classes in a warning

_FIGURE, _NUMBER = (None, Number(high=100.0)), Number()
_WINDOWS = {"short_side": (None, COUNT), "crop": COUNT, "stride": COUNT}
# Everything that comparisons, summaries and reports read.
_KINDS = {
    **dict.fromkeys(("version", "finished", "benchmark", "method"), str),
    "figures": dict.fromkeys(FIGURES, _FIGURE),
    "paper": (None, {"miou": Number(high=100.0)}),
    "not_comparable_with_paper": (None, [str]),
    "common_edges": {"windows": _WINDOWS, **dict.fromkeys(BOUNDARY, _FIGURE)},
    "images": {"measured": COUNT, "in_data": COUNT, "labelled": bool},
    "protocol": {"sha256": str, "setting": str, "tuned_for": (None, str), "windows": _WINDOWS, "duplicates": [str]}
    | {"threshold": _NUMBER, "logit_scale": _NUMBER, "area_threshold": _NUMBER, "queries": COUNT},
    "settings": {"dtype": str},
    "model": {"name": str, "sha256": str},
    "data": {"origin": str, "sha256": str},
    "speed": {"images_per_second": (None, _NUMBER), "seconds_per_image": {ANY_KEY: _NUMBER}, "processes": COUNT}
    | {"peak_memory_mib": dict.fromkeys(("host", "device"), (None, _NUMBER))},
    "machine": {"device": str, "devices": COUNT, "packages": {ANY_KEY: str}},
    "per_class": [{"class": str, "iou": _FIGURE, "accuracy": _FIGURE, "label": COUNT}],
    "per_image": {ANY_KEY: _FIGURE},
    "warnings": [str],
    "one_key": (None, {"percent": Number(high=100.0), "images": COUNT}),
}


def facts(run: Run) -> dict[str, Any]:
    """The part of the results that no image changes: the same for all its shards but for the data's origin."""
    row, paper = run.row, paper_miou(run.row.benchmark, run.row.setting, run.method)
    reasons = paper and not_comparable(row, run.method, run.segmenter.name, run.templates, run.images)
    if paper and run.shown:
        reasons = [*reasons, "classes by example"]
    return {
        "benchmark": row.benchmark,
        "method": run.method,
        "classes": list(row.classes),
        "ignore": run.dataset.ignore,
        "paper": None
        if not paper or reasons
        else {"miou": paper, "whose": f"the paper's figure, not measured here: {PAPER_SOURCE}"},
        "not_comparable_with_paper": reasons or None,
        "common_windows": vars(common_windows(row.benchmark)),
        "images": {"measured": run.images, "in_data": len(run.dataset.ids), "labelled": run.dataset.labelled},
        "protocol": {
            "sha256": row.sha256,
            "setting": row.setting,
            "windows": vars(row.windows),
            "threshold": row.settings.threshold,
            "logit_scale": row.settings.logit_scale,
            "area_threshold": row.area_threshold,
            "tuned_for": row.tuned_for,
            "duplicates": list(duplicates(row)),
            "queries": sum(map(len, row.prompts)),
        },
        "settings": settings_as_dict(run.segmenter.config),
        "model": {"name": run.segmenter.name, "sha256": run.segmenter.model_hash},
        "data": {"origin": run.dataset.origin, "sha256": run.dataset.fingerprint},
        **({"classes_from": {"origin": run.shown.origin, "sha256": run.shown.sha256}} if run.shown else {}),
    }


def machine() -> dict[str, Any]:
    """The machine of this process, and the most memory that it has held so far in MiB."""
    device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    unit = 1 if platform.system() == "Darwin" else 1024  # macOS counts in bytes, Linux in KiB
    host = resource and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {
        "peak_memory_mib": {"host": host and round(host / 2**20, 1), "device": device and round(device / 2**20, 1)},
        "machine": {
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "packages": {name: version(name) for name in PACKAGES},
        },
    }


def results(outcome: Outcome) -> dict[str, Any]:
    """Everything about a finished run as JSON values; figures in percent, None where there is none."""
    return results_of(facts(outcome.run), outcome.tally, outcome.processes, machine())


def results_of(facts: dict[str, Any], tally: Tally, processes: int, machine: dict[str, Any]) -> dict[str, Any]:
    """Results of the images of a tally.

    common_edges: boundary figures at the edges of GLA's windows; paper: only where the run may stand beside it.

    Args:
        facts: about the run.
        tally: sums over its images.
        processes: that worked at once.
        machine: that of the run.
    """
    areas, boundary, common_boundary = tally.counts
    scores = areas.scores()
    percent = None if tally.uncounted else one_key_percent(*tally.one_key)
    columns = ("class", "iou", "accuracy", "intersection", "prediction", "label")
    per_class = zip(
        facts["classes"], scores.iou.tolist(), scores.accuracy.tolist(), *map(np.ndarray.tolist, areas), strict=True
    )
    content = {
        "format": FORMAT,
        "version": VERSION,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "benchmark": facts["benchmark"],
        "method": facts["method"],
        "figures": {"miou": scores.miou, "macc": scores.macc, "aacc": scores.aacc, **boundary.rates()},
        "one_key": None if percent is None else {"percent": percent, "images": len(tally.image_ids)},
        "warnings": [*label_warnings(facts, tally), *one_key_warnings(facts["method"], tally, percent)],
        "paper": facts["paper"],
        "not_comparable_with_paper": facts["not_comparable_with_paper"],
        "common_edges": {"windows": facts["common_windows"], **common_boundary.rates()},
        **{key: facts[key] for key in ("images", "protocol", "settings", "model", "data")},
        **({"classes_from": facts["classes_from"]} if "classes_from" in facts else {}),
        "speed": _speed(tally, processes) | {"peak_memory_mib": machine["peak_memory_mib"]},
        "machine": machine["machine"],
        "per_class": [dict(zip(columns, values, strict=True)) for values in per_class],
        "per_image": dict(zip(tally.image_ids, tally.miou.tolist(), strict=True)),
    }
    return without_nan(content)


def label_warnings(facts: dict[str, Any], tally: Tally) -> list[str]:
    """A sentence for labels that do not look like the benchmark's: classes without a labelled pixel, ignored values."""
    labelled = tally.counts.areas.label
    missing = [name for name, pixels in zip(facts["classes"], labelled, strict=True) if not pixels]
    if not missing or not facts["images"]["labelled"]:
        return []
    names = ", ".join(missing[:MAX_NAMES]) + (f" and {len(missing) - MAX_NAMES} more" * (len(missing) > MAX_NAMES))
    share = 100 - 100 * labelled.sum() / max(tally.pixels, 1)
    ignored = f"; {share:.1f} % of all pixels are ignored, as those of value {facts['ignore']}" if share else ""
    return [f"no pixel is labelled {names} ({len(missing)} of {len(labelled)} classes){ignored}"]


def one_key_warnings(method: str, tally: Tally, percent: float | None) -> list[str]:
    """A sentence where many tokens keep one single key, and one where records of before do not say how many do.

    percent: of the tokens that do, None where that is unknown or the method does not attend by features.
    """
    if tally.uncounted and (method not in METHODS or METHODS[method].attends_by_features):
        return [
            f"{tally.uncounted} of {len(tally.image_ids)} images were measured before tokens that keep one single key "
            "were counted, so their share is left out; measure into another --out to have it"
        ]
    sentence = one_key_warning(percent)
    return [sentence] if sentence else []


def write_results(out: Path, content: dict[str, Any]) -> None:
    """results.json and per_class.csv, each whole or not at all. Raises UserError when they cannot be written."""
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(content["per_class"][0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(content["per_class"])  # an empty cell stands for None
    with writing_to(out):
        write_text(out / "per_class.csv", table.getvalue())
        write_json(out / "results.json", content)


def read_results(folder: Path) -> dict[str, Any]:
    """The results in a run's folder. Raises UserError when there are none that can be read."""
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no results.json; name the --out folder of a finished gla-jax eval.")
    content = read_json(path, "the results", "run the evaluation again")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not a result file of this program; name the --out folder of gla-jax eval.")
    content = {"warnings": [], "one_key": None} | content  # until 0.1 there were none
    if fault := first_fault(content, _KINDS):
        raise UserError(f"the results {path} are damaged ({fault}); run the evaluation again.")
    setting = content["protocol"]["setting"]
    content["protocol"]["setting"] = PRESET_ALIASES.get(setting, setting)
    return content


def _speed(tally: Tally, processes: int) -> dict[str, Any]:
    """Images a second over the whole run, kills and all, and the mean seconds of every stage of one image."""
    count, total = len(tally.image_ids), sum(tally.seconds.values())
    return {
        "images_per_second": count * processes / total if total else None,
        "seconds_per_image": {stage: seconds / count for stage, seconds in tally.seconds.items()},
        "median_seconds": float(np.median(tally.image_seconds)) if count else None,
        "processes": processes,
    }


def without_nan(value: Any) -> Any:
    """The value with None, which JSON has, for every NaN: a figure that does not exist."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
