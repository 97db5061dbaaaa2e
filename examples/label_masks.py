"""Masks from any tool, such as SAM's, get one label each: here the cloths' own outlines stand for them.

python examples/label_masks.py
"""

import numpy as np

import gla_jax
from gla_jax.tiny_world.scenes import render
from gla_jax.tiny_world.vocabulary import CLASSES

scene = render(9, 224, 288, "test")
masks = [scene.labels == label for label in np.unique(scene.labels)]  # bool [h w]; COCO's run lengths would do too
segmenter = gla_jax.Segmenter.from_pretrained("tiny-world", short_side=224)

plain = segmenter(scene.image, CLASSES)
pooled = segmenter(scene.image, CLASSES, masks=masks)
for name, result in (("by themselves", plain), ("by their masks", pooled)):
    several = sum(len(np.unique(result.labels[mask])) > 1 for mask in masks)
    right = (result.labels == scene.labels).mean()
    print(f"pixels {name}: {right:.1%} of the pixels are right, {several} of {len(masks)} masks have several labels")
