"""Vocabulary pruning: classes that no pixel of an image supports leave the softmax, and the others share their part.

python examples/leave_out_classes.py
"""

import gla_jax
from gla_jax.tiny_world.scenes import render
from gla_jax.tiny_world.vocabulary import CLASSES

scene = render(9, 224, 288, "test")
segmenter = gla_jax.Segmenter.from_pretrained("tiny-world", short_side=224)
shown = set(scene.labels.ravel().tolist())

for below in (0.0, 0.2):
    result = segmenter.with_settings(prune_below=below)(scene.image, CLASSES, scores=True)
    left = int((result.scores.max((1, 2)) > 0).sum())
    surest = result.scores.max(0).mean()
    print(f"prune_below={below}: {left} of {len(CLASSES)} classes are left, {len(shown)} are in the scene;")
    print(f"  {(result.labels == scene.labels).mean():.1%} of the pixels are right, at a probability of {surest:.2f}")
