"""A baseline from outside: a function for CLIP's last block, registered under a name, alone and with GLA.

python examples/own_baseline.py
"""

import jax
import jax.numpy as jnp
import numpy as np

import gla_jax
from gla_jax.tiny_world.scenes import render
from gla_jax.tiny_world.vocabulary import CLASSES


def cosine_attention(qkv, num_heads: int):
    """softmax(20 cos(k, k)) over the tokens of a window, all heads together; qkv: three arrays [W t C], CLS first."""
    keys = qkv.keys / jnp.linalg.norm(qkv.keys, axis=-1, keepdims=True)
    cosine = jnp.einsum("wtc,wsc->wts", keys, keys, precision="highest")
    return jnp.einsum("wts,wsc->wtc", jax.nn.softmax(20 * cosine), qkv.values, precision="highest")


# features: GLA compares CLIP's keys, so that gla-cosine is a method too.
gla_jax.register_baseline(
    gla_jax.Baseline("cosine", "Cosine of keys", attention=cosine_attention, gla="gla-cosine", features=("keys",))
)
scene = render(9, 336, 448, "test")
segmenter = gla_jax.Segmenter.from_pretrained("tiny-world", method="cosine")
for name in ("clip", "cosine", "gla-cosine"):
    labels = segmenter.with_settings(method=name)(scene.image, CLASSES).labels
    print(f"{name:10s} {np.mean(labels == scene.labels):6.1%} of the pixels are right")
