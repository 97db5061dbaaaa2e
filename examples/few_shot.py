"""Few-shot segmentation without text: classes are shown by some labelled images, to a foundation model alone.

python examples/few_shot.py
"""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

import gla_jax
from gla_jax.tiny_world.scenes import render
from gla_jax.tiny_world.vocabulary import CLASSES

SHOWN, OTHERS = (110, 140), (10, 45)  # scenes: the first show all classes of the others
# A folder of images/, labels/ (index PNGs) and classes.json, as `gla-jax eval folder` reads it.
folder = Path("shown")
for name in ("images", "labels"):
    (folder / name).mkdir(parents=True, exist_ok=True)
for seed in SHOWN:
    scene = render(seed, 224, 288, "test")
    Image.fromarray(scene.image).save(folder / "images" / f"{seed}.png")
    Image.fromarray(scene.labels.astype("uint8")).save(folder / "labels" / f"{seed}.png")

shown = {label for seed in SHOWN for label in render(seed, 224, 288, "test").labels.ravel().tolist()}
(folder / "classes.json").write_text(json.dumps({label: CLASSES[label] for label in sorted(shown)}))

classes = gla_jax.classes_from(folder)
dino = str(files("gla_jax.tiny_world") / "weights" / "vfm")  # no CLIP, so no text: its features are keys and values
scenes = [render(seed, 224, 288, "test") for seed in OTHERS]
for name, model in (("the foundation model alone", dino), ("both towers", "tiny-world")):
    segmenter = gla_jax.Segmenter.from_pretrained(model, short_side=224)
    right = []
    for scene in scenes:
        result = segmenter(scene.image, classes)
        named = np.array([CLASSES.index(label) for label in result.classes])[result.labels]
        right.append((named == scene.labels).mean())
    print(f"{name}: {np.mean(right):.1%} of the pixels are right")
