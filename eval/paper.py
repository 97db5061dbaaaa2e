"""The paper's figures, which this project has not measured, and whether a run may stand beside them."""

from gla_jax.config import METHODS, PRESETS
from gla_jax.eval.benchmarks import BENCHMARKS, PAPER_BENCHMARKS, PAPER_MODEL
from gla_jax.eval.protocols import Protocol, protocol

# mIoU as the paper reports it (ViT-B/16, Table 1) by preset and method: in the order of PAPER_BENCHMARKS, then the
# average it prints.
PAPER_MIOU: dict[tuple[str, str], tuple[float, ...]] = {
    ("336-224-112", "gla"): (66.3, 36.1, 37.7, 84.2, 39.9, 26.9, 40.8, 20.0, 44.0),
    ("336-224-112", "gla, u and w per data set"): (66.7, 36.3, 37.7, 84.7, 40.2, 27.2, 41.2, 20.5, 44.3),
    ("336-224-112", "sclip"): (59.1, 30.4, 30.5, 80.4, 34.2, 22.4, 32.2, 16.1, 38.2),
    ("336-224-112", "gla-sclip"): (59.8, 32.0, 32.8, 80.5, 35.1, 24.2, 35.1, 18.0, 39.8),
    ("448-336-112", "proxyclip"): (61.3, 35.3, 37.5, 80.3, 39.1, 26.5, 38.1, 20.2, 42.3),
    ("448-336-112", "gla"): (63.2, 35.8, 37.7, 81.5, 39.7, 26.8, 38.5, 20.3, 42.9),
    ("448-448-224-scale-50", "clearclip"): (51.8, 32.6, 33.0, 80.9, 35.9, 23.9, 30.0, 16.7, 38.1),
    ("448-448-224-scale-50", "gla-clearclip"): (55.6, 33.2, 34.6, 79.7, 36.5, 24.6, 32.7, 17.4, 39.3),
    ("448-448-224", "gla"): (63.4, 35.8, 37.3, 80.4, 39.4, 26.3, 33.5, 19.1, 41.9),
}
PAPER_SOURCE = "Lee et al., arXiv 2603.23030, Table 1, ViT-B/16"


def paper_miou(benchmark: str, setting: str, method: str) -> float | None:
    """The paper's mIoU for one cell of its table, None where it has none."""
    row = PAPER_MIOU.get((setting, method))
    return row[PAPER_BENCHMARKS.index(benchmark)] if row and benchmark in PAPER_BENCHMARKS else None


def paper_average(setting: str, method: str) -> float | None:
    """The paper's average over its eight benchmarks, None where it has none."""
    row = PAPER_MIOU.get((setting, method))
    return row[-1] if row else None


def paper_methods(benchmark: str, setting: str) -> list[str]:
    """The methods that the paper has a figure for."""
    return [method for preset, method in PAPER_MIOU if preset == setting and benchmark in PAPER_BENCHMARKS]


def not_comparable(row: Protocol, method: str, model: str, templates: tuple[str, ...] | None, images: int) -> list[str]:
    """Reasons why a run must not stand beside the paper's figure for its setting and method; none when it may.

    Args:
        row: the protocol.
        method: name of the method.
        model: name of the model.
        templates: the model's prompt templates, None for CLIP's 80.
        images: number of images that were measured.
    """
    reasons = []
    if not _is_the_papers(model, method):
        reasons.append(f"the model is not named {PAPER_MODEL}, so its weights may differ")
    if row.setting in PRESETS and row != protocol(row.benchmark, row.setting, method=method):
        reasons.append("another protocol")
    if templates is not None:
        reasons.append("other prompt templates")
    if images != BENCHMARKS[row.benchmark].images:
        reasons.append(f"{images} of {BENCHMARKS[row.benchmark].images} images")
    return reasons


def _is_the_papers(model: str, method: str) -> bool:
    # A method that compares no features of a foundation model gives the same with any.
    parts = None if METHODS[method].reads_vfm else 1
    return model.split("+")[:parts] == PAPER_MODEL.split("+")[:parts]
