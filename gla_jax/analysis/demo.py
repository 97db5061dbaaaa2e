"""The demo: one held-out scene of tiny-world, ProxyCLIP against GLA-CLIP, a picture and figures."""

from pathlib import Path
from typing import Any

import numpy as np

from gla_jax.config import WindowConfig
from gla_jax.eval.metrics.areas import image_areas
from gla_jax.eval.metrics.boundary import boundary_counts
from gla_jax.pictures.drawing import Entry, Panel, flat, palette, panels, with_window_grid
from gla_jax.predict.model import image_grid
from gla_jax.segmenter import Segmenter
from gla_jax.support.files import write_json, write_png
from gla_jax.tiny_world.scenes import Scene, render
from gla_jax.tiny_world.vocabulary import CLASSES

# One in which a cloth's mark is out of sight of some windows; the average over 200 scenes is in the card.
DEFAULT_SCENE = 9
HEIGHT, WIDTH = 336, 448
COMPARED = {"ProxyCLIP": "proxyclip", "GLA-CLIP": "gla"}


def figures(labels: np.ndarray, scene: Scene, windows: WindowConfig) -> dict[str, float]:
    """mIoU over the classes that occur in truth or prediction, pixel accuracy, boundary error rate; percent."""
    grid = image_grid(scene.labels.shape, windows)
    scores = image_areas(labels, scene.labels, len(CLASSES)).scores()
    rates = boundary_counts(labels, scene.labels, (grid.height, grid.width), windows).rates()
    return {
        "miou": round(scores.miou, 2),
        "pixel_accuracy": round(scores.aacc, 2),
        "boundary_error_rate": round(rates["ber_1"], 2),
        "control_rate": round(rates["control_1"], 2),
    }


def run_demo(folder: Path, seed: int) -> dict[str, Any]:
    """Segment a scene with both methods; writes demo.png and demo.json into folder and returns the latter."""
    scene = render(seed, HEIGHT, WIDTH, "test")
    segmenter = Segmenter.from_pretrained("tiny-world")
    windows, predicted, rows = segmenter.config.windows, {}, {}
    for name, method in COMPARED.items():
        labels = segmenter.with_settings(method=method)(scene.image, CLASSES).labels
        predicted[name], rows[name] = labels, figures(labels, scene, windows)

    grid = image_grid(scene.labels.shape, windows)
    present, colours = np.unique(scene.labels), palette(CLASSES)
    entries = [
        Entry(CLASSES[label], tuple(colours[label].tolist()), "" if label in present else "not in the scene")
        for label in np.unique([scene.labels, *predicted.values()])
    ]
    row = [
        Panel(with_window_grid(scene.image, grid), "Image", f"{grid.count} windows of {grid.crop} pixels"),
        Panel(flat(scene.labels, colours), "Ground truth", "known: the scene is drawn"),
    ]
    for name, labels in predicted.items():
        note = f"mIoU {rows[name]['miou']:.1f}   boundary error {rows[name]['boundary_error_rate']:.1f} %"
        row.append(Panel(flat(labels, colours), name, note))
    write_png(folder / "demo.png", panels(row, entries))
    document = {
        "scene": seed,
        "size": [HEIGHT, WIDTH],
        "classes_in_the_scene": [CLASSES[label] for label in present],
        "vocabulary": len(CLASSES),
        "model_hash": segmenter.model_hash,
        "methods": rows,
    }
    write_json(folder / "demo.json", document, indent=2)
    return document
