"""One model, several methods: every part of GLA is a field of the settings, and weights are loaded once.

python examples/swap_a_baseline.py
"""

import numpy as np

import gla_jax
from gla_jax.tiny_world.scenes import render
from gla_jax.tiny_world.vocabulary import CLASSES

scene = render(9, 336, 448, "test")
gla = gla_jax.Segmenter.from_pretrained("tiny-world", method="gla")

segmenters = {name: gla.with_settings(method=name) for name in ("maskclip", "clearclip", "proxyclip")}
segmenters["GLA without anchors"] = gla.with_settings(proxy_anchors=False)
segmenters["GLA with rho 0.6"] = gla.with_settings(rho=0.6)
segmenters["GLA"] = gla

for name, segmenter in segmenters.items():
    labels = segmenter(scene.image, CLASSES).labels
    print(f"{name:20s} {np.mean(labels == scene.labels):6.1%} of the pixels are right")
