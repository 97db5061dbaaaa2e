"""Numbers of a config are pytree leaves: vmap runs one program over many values of a setting.

python examples/sweep_a_setting.py
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

import gla_jax
from gla_jax.text.prompts import parse_classes
from gla_jax.tiny_world.scenes import render
from gla_jax.tiny_world.vocabulary import CLASSES

scene = render(9, 224, 336, "test")
segmenter = gla_jax.Segmenter.from_pretrained("tiny-world", short_side=224)
windows, grid, _ = segmenter.prepare(scene.image)
text_embeddings = segmenter.text_embeddings(parse_classes(CLASSES))
thresholds = jnp.array([-0.5, 0.55, 0.9, 0.999])


@jax.jit
def sweep(params, windows, text_embeddings, config):
    """Token logits [settings W S Q], one for every value of the similarity above which keys are an anchor's positives.

    Weights and windows are arguments: what a compiled function closes over becomes a constant of its program.
    """

    def logits(threshold):
        changed = replace(config, method=replace(config.method, anchor_threshold=threshold))
        return gla_jax.segment_logits(params, windows, text_embeddings, changed)

    return jax.vmap(logits)(thresholds)


swept = sweep(segmenter.params, windows, text_embeddings, segmenter.config)
classes = swept[:, : grid.count].argmax(-1)
for threshold, tokens in zip(thresholds, classes, strict=True):
    changed = jnp.mean((tokens != classes[1]).astype(jnp.float32))
    print(f"rho {threshold:6.3f}: {changed:6.2%} of the tokens have another class than at 0.55")
