"""Measures the shipped tiny-world model on held-out scenes:

python -m gla_jax.eval.tiny_world [--scenes 200] [--model DIR] [--dtype bfloat16] [--json FILE]

Prints mIoU over all classes, pixel accuracy, boundary error rate and its control rate in percent, for ProxyCLIP (each
window alone), GLA-CLIP (all windows together) and GLA-CLIP with random weights; for towers in bfloat16 also the share
of pixels whose label is that of float32.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import jax
import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from gla_jax.checkpoints.model_folder import Checkpoint, digest, initial_params
from gla_jax.config import METHODS
from gla_jax.images.resize import rescale_size
from gla_jax.settings.options import settings_from_options
from gla_jax.support.errors import UserError
from gla_jax.tiny_world.scenes import render
from gla_jax.tiny_world.vocabulary import CLASSES, FIRST_CLOTH, GROUNDS, HELD_OUT_CLASSES

if TYPE_CHECKING:
    from gla_jax.segmenter import Segmenter

HEIGHT, WIDTH = 336, 448
PROXYCLIP, GLA, RANDOM = "ProxyCLIP", "GLA-CLIP", "random weights (GLA-CLIP)"


def contenders(segmenter: "Segmenter", seed: int = 0) -> dict[str, "Segmenter"]:
    """The three rows of the table by name, of one loaded tiny-world; seed is of the random weights."""
    from gla_jax.segmenter import Segmenter

    clip_key, vfm_key = jax.random.split(jax.random.key(seed))
    random = Segmenter(
        _with_random_params(segmenter.clip, clip_key),
        _with_random_params(segmenter.vfm, vfm_key),
        dataclasses.replace(segmenter.config, method=METHODS["gla"]),
    )
    by_method = {
        name: segmenter.with_config(dataclasses.replace(segmenter.config, method=METHODS[method]))
        for name, method in ((PROXYCLIP, "proxyclip"), (GLA, "gla"))
    }
    return by_method | {RANDOM: random}


def _with_random_params(part: Checkpoint, key: jax.Array) -> Checkpoint:
    params = jax.tree.map(np.asarray, initial_params(part.spec, key))
    return dataclasses.replace(part, params=params, sha256=digest(params))


def measure(
    segmenter: "Segmenter", seeds: Iterator[int] | range, reference: "Segmenter | None" = None
) -> dict[str, float]:
    """Figures in percent over the test scenes of some seeds.

    miou: mean over the classes that occur; miou_grounds, miou_pairs, miou_held_out: of parts of them; aacc: pixel
    accuracy; ber_1, ber_8, control_1, control_8: eval/boundary.py; equal: pixels labelled as by the reference, if any.
    """
    from gla_jax.eval.metrics.areas import Areas, image_areas
    from gla_jax.eval.metrics.boundary import BoundaryCounts, boundary_counts

    areas, boundary = Areas.zeros(len(CLASSES)), BoundaryCounts.zeros()
    windows, equal = segmenter.config.windows, []
    for seed in seeds:
        scene = render(seed, HEIGHT, WIDTH, "test")
        labels = segmenter(scene.image, CLASSES).labels
        if reference is not None:
            equal.append((labels == reference(scene.image, CLASSES).labels).mean())
        resized = rescale_size(HEIGHT, WIDTH, windows.short_side or HEIGHT, windows.long_side)
        areas = areas.merge(image_areas(labels, scene.labels, len(CLASSES)))
        boundary = boundary.merge(boundary_counts(labels, scene.labels, resized, windows))
    scores = areas.scores()
    # A class that occurs in no scene cannot be found, only guessed: it is left out.
    iou = np.where(areas.label > 0, scores.iou, np.nan)
    held_out = np.isin(np.arange(len(CLASSES)), HELD_OUT_CLASSES)
    cloth = np.arange(len(CLASSES)) >= FIRST_CLOTH
    return {
        "miou": _mean(iou),
        "miou_grounds": _mean(iou[: len(GROUNDS)]),
        "miou_pairs": _mean(iou[cloth & ~held_out]),
        "miou_held_out": _mean(iou[held_out]),
        "aacc": scores.aacc,
        **boundary.rates(),
        **({"equal": 100 * float(np.mean(equal))} if equal else {}),
    }


def _mean(figures: np.ndarray) -> float:
    present = figures[~np.isnan(figures)]
    return float(present.mean()) if present.size else float("nan")


def table(results: Mapping[str, Mapping[str, float]]) -> Table:
    """The results as a table, one row a method."""
    columns = {
        "mIoU": "miou",
        "grounds": "miou_grounds",
        "pairs": "miou_pairs",
        "held out": "miou_held_out",
        "accuracy": "aacc",
        "BER": "ber_1",
        "control": "control_1",
        "as float32": "equal",
    }
    columns = {name: key for name, key in columns.items() if any(key in figures for figures in results.values())}
    made = Table(title="tiny-world, held-out scenes, %")
    made.add_column("")
    for name in columns:
        made.add_column(name, justify="right")
    for method, figures in results.items():
        made.add_row(method, *(f"{figures[key]:.1f}" for key in columns.values()))
    return made


def main(
    scenes: Annotated[int, typer.Option(min=1, help="Number of held-out scenes.")] = 200,
    model: Annotated[str, typer.Option(help="tiny-world, or the folder of another training.")] = "tiny-world",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
    random: Annotated[bool, typer.Option(help="Measure random weights too.")] = True,
    dtype: Annotated[str, typer.Option(help="Of the towers: float32 or bfloat16.")] = "float32",
) -> None:
    """Print the table of ProxyCLIP, GLA-CLIP and random weights on held-out scenes."""
    from gla_jax.segmenter import Segmenter

    console = Console()
    try:
        rows = contenders(Segmenter.from_pretrained(model, settings_from_options(dtype=dtype)))
        references = contenders(Segmenter.from_pretrained(model)) if dtype != "float32" else {}
    except UserError as error:
        raise typer.BadParameter(str(error)) from None
    if not random:
        del rows[RANDOM]
    results = {}
    for name, segmenter in rows.items():
        seeds = track(range(scenes), name, console=console, disable=not console.is_terminal)
        results[name] = measure(segmenter, seeds, references.get(name))
        print(name, " ".join(f"{key} {value:.2f}" for key, value in results[name].items()), flush=True)
    console.print(table(results))
    if json_file:
        json_file.write_text(json.dumps({"scenes": scenes, "model": model, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
