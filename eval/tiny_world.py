"""Measures the shipped tiny-world model on held-out scenes:

python -m gla_jax.eval.tiny_world [--scenes 200] [--model DIR] [--dtype bfloat16] [--json FILE]

Prints mIoU over all classes, pixel accuracy, boundary error rate and its control rate in percent, for ProxyCLIP (each
window alone), GLA-CLIP (all windows together) and GLA-CLIP with random weights; for towers in bfloat16 also the share
of pixels whose label is that of float32.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from gla_jax.checkpoints.model_folder import Checkpoint, digest, initial_params
from gla_jax.eval.metrics.areas import Areas, image_areas, mean_present
from gla_jax.eval.metrics.boundary import BoundaryCounts, boundary_counts
from gla_jax.eval.results import without_nan
from gla_jax.predict.model import image_grid
from gla_jax.segmenter import Segmenter
from gla_jax.support.errors import UserError
from gla_jax.support.files import write_json
from gla_jax.support.progress import track
from gla_jax.tiny_world.scenes import render
from gla_jax.tiny_world.vocabulary import CLASSES, FIRST_CLOTH, GROUNDS, HELD_OUT_CLASSES

HEIGHT, WIDTH = 336, 448
PROXYCLIP, GLA, RANDOM = "ProxyCLIP", "GLA-CLIP", "random weights (GLA-CLIP)"
COLUMNS = ("mIoU", "grounds", "pairs", "held out", "accuracy", "BER", "control", "as float32")
KEYS = ("miou", "miou_grounds", "miou_pairs", "miou_held_out", "aacc", "ber_1", "control_1", "equal")


def contenders(segmenter: Segmenter, seed: int = 0) -> dict[str, Segmenter]:
    """The three rows of the table by name, of one loaded tiny-world; seed is of the random weights."""
    keys = jax.random.split(jax.random.key(seed))
    gla = segmenter.with_settings(method="gla")
    random = map(_with_random_params, (segmenter.clip, segmenter.vfm), keys)
    return {PROXYCLIP: gla.with_settings(method="proxyclip"), GLA: gla, RANDOM: Segmenter(*random, gla.config)}


def _with_random_params(part: Checkpoint, key: jax.Array) -> Checkpoint:
    params = jax.tree.map(np.asarray, initial_params(part.spec, key))
    return dataclasses.replace(part, params=params, sha256=digest(params))


def measure(
    segmenter: Segmenter, seeds: Sequence[int], reference: Segmenter | None = None, name: str = "scenes"
) -> dict[str, float]:
    """Figures in percent over the test scenes of some seeds.

    miou: mean over the classes that occur; miou_grounds, miou_pairs, miou_held_out: of parts of them; aacc: pixel
    accuracy; ber_1, ber_8, control_1, control_8: eval/metrics/boundary.py; equal: pixels labelled as by the reference.

    Args:
        segmenter: the model and its settings.
        seeds: of the scenes.
        reference: labels of this one are counted as equal or not.
        name: of the progress.
    """
    areas, boundary, equal = Areas.zeros(len(CLASSES)), BoundaryCounts.zeros(), []
    windows = segmenter.config.windows
    grid = image_grid((HEIGHT, WIDTH), windows)
    for seed in track(seeds, name):
        scene = render(seed, HEIGHT, WIDTH, "test")
        labels = segmenter(scene.image, CLASSES).labels
        areas = areas.merge(image_areas(labels, scene.labels, len(CLASSES)))
        boundary = boundary.merge(boundary_counts(labels, scene.labels, (grid.height, grid.width), windows))
        if reference:
            equal.append((labels == reference(scene.image, CLASSES).labels).mean())
    scores = areas.scores()
    # A class that occurs in no scene cannot be labelled rightly, only guessed: it is left out.
    iou = np.where(areas.label > 0, scores.iou, np.nan)
    held_out = np.isin(np.arange(len(CLASSES)), HELD_OUT_CLASSES)
    cloth = np.arange(len(CLASSES)) >= FIRST_CLOTH
    return {
        "miou": mean_present(iou),
        "miou_grounds": mean_present(iou[: len(GROUNDS)]),
        "miou_pairs": mean_present(iou[cloth & ~held_out]),
        "miou_held_out": mean_present(iou[held_out]),
        "aacc": scores.aacc,
        **boundary.rates(),
        **({"equal": 100 * float(np.mean(equal))} if equal else {}),
    }


def table(results: Mapping[str, Mapping[str, float]]) -> Table:
    """The results as a table, one row a method."""
    shown = [key for key in KEYS if any(key in figures for figures in results.values())]
    grid = Table("", title="tiny-world, held-out scenes, %")
    for key in shown:
        grid.add_column(COLUMNS[KEYS.index(key)], justify="right")
    for method, figures in results.items():
        grid.add_row(method, *(f"{figures[key]:.1f}" for key in shown))
    return grid


def main(
    scenes: Annotated[int, typer.Option(min=1, help="Number of held-out scenes.")] = 200,
    model: Annotated[str, typer.Option(help="tiny-world, or the folder of another training.")] = "tiny-world",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
    random: Annotated[bool, typer.Option(help="Measure random weights too.")] = True,
    dtype: Annotated[str, typer.Option(help="Of the towers: float32 or bfloat16.")] = "float32",
) -> None:
    """Print the table of ProxyCLIP, GLA-CLIP and random weights on held-out scenes."""
    try:
        rows = contenders(Segmenter.from_pretrained(model, dtype=dtype))
        references = contenders(Segmenter.from_pretrained(model)) if dtype != "float32" else {}
    except UserError as error:
        raise typer.BadParameter(str(error)) from None
    if not random:
        del rows[RANDOM]
    results = {}
    for name, segmenter in rows.items():
        results[name] = measure(segmenter, range(scenes), references.get(name), name)
        print(name, " ".join(f"{key} {value:.2f}" for key, value in results[name].items()), flush=True)
    Console().print(table(results))
    if json_file:
        write_json(json_file, without_nan({"scenes": scenes, "model": model, "results": results}))


if __name__ == "__main__":
    typer.run(main)
