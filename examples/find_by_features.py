"""Features without classes: find what looks alike in other images, then ask the same features by words.

python examples/find_by_features.py
"""

import numpy as np

import gla_jax
from gla_jax.tiny_world.scenes import render
from gla_jax.tiny_world.vocabulary import CLASSES

segmenter = gla_jax.Segmenter.from_pretrained("tiny-world", short_side=224)
scenes = [render(seed, 224, 288, "test") for seed in (9, 10, 11, 12)]
maps = [segmenter.features(scene.image) for scene in scenes]
print(maps[0])

# Rows have length one, so a product is a cosine; any library for nearest neighbours takes these rows.
rows = np.concatenate([found.features.reshape(-1, found.features.shape[-1]) for found in maps])
places = np.concatenate([found.positions.reshape(-1, 2) for found in maps]).astype(int)
scene_of_row = np.repeat(np.arange(len(maps)), [found.features[..., 0].size for found in maps])
truth = np.array([scenes[scene].labels[y, x] for scene, (y, x) in zip(scene_of_row, places, strict=True)])

others = scene_of_row > 0
shared = ~others & np.isin(truth, truth[others])  # cells of the first scene whose class is in another one
nearest = np.flatnonzero(others)[(rows[shared] @ rows[others].T).argmax(1)]
print(f"{np.mean(truth[nearest] == truth[shared]):.1%} of the nearest cells have the class of the query")
print(f"{np.mean(truth[others] == truth[shared][:, None]):.1%} of the cells have it by chance")

labels = segmenter.segment_features(maps[0], CLASSES).labels
print(f"{np.mean(labels == segmenter(scenes[0].image, CLASSES).labels):.1%} of the pixels are as in one call")
