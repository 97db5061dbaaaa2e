"""One model, several methods: every part of GLA is a field of a frozen config, and weights are loaded once.

python examples/swap_a_host.py
"""

from dataclasses import replace

import numpy as np

import gla_jax
from gla_jax.tiny_world.scenes import render
from gla_jax.tiny_world.vocabulary import CLASSES

scene = render(9, 336, 448, "test")
segmenter = gla_jax.Segmenter.from_pretrained("tiny-world")
gla = segmenter.config

configs = {name: replace(gla, method=gla_jax.METHODS[name]) for name in ("maskclip", "clearclip", "proxyclip")}
configs["GLA without anchors"] = replace(gla, method=replace(gla.method, proxy_anchors=False))
configs["GLA"] = gla

for name, config in configs.items():
    labels = segmenter.with_config(config)(scene.image, CLASSES).labels
    print(f"{name:20s} {np.mean(labels == scene.labels):6.1%} of the pixels are right")
