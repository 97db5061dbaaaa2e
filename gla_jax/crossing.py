"""How much attention crosses from window to window, and how large anchors are, stage by stage over whole images."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gla_jax.attention.attend import Queries, clearclip_queries, prepare_queries
from gla_jax.attention.buffer import Buffer, fill_buffer
from gla_jax.attention.dense import attention_weights
from gla_jax.attention.hosts import HOSTS
from gla_jax.config import MethodConfig
from gla_jax.explain import attention_stages
from gla_jax.images import as_rgb
from gla_jax.logits import SegmenterParams, WindowTokens, compared_features, encode_windows
from gla_jax.segmenter import Segmenter, image_windows
from gla_jax.shapes import Array, Float
from gla_jax.windows import Windows

QUERIES_AT_ONCE = 512


@dataclass(frozen=True)
class Crossing:
    """One image under one stage: every token [W S] of its windows.

    outside: the share of a token's attention on other windows, 0 to 1; counts: the tokens of its anchor (m), None
    before there are anchors.
    """

    outside: Float[np.ndarray, "W S"]
    counts: Float[np.ndarray, "W S"] | None


_encode = jax.jit(encode_windows)


@jax.jit
def _prepare(
    params: SegmenterParams, tokens: WindowTokens, windows: Windows, method: MethodConfig
) -> tuple[Queries, Buffer]:
    (feature,) = HOSTS[method.host].features
    features, valid = compared_features(tokens, feature), jnp.asarray(windows.valid)
    buffer = fill_buffer(features, tokens.heads.values[:, 1:], valid)
    origins = jnp.asarray(windows.origins)
    first = clearclip_queries(features, valid, origins, params.clip_spec.patch_size, method)
    count = valid.astype(jnp.float32).sum()
    return prepare_queries(buffer.keys if first is None else first, buffer.keys, buffer, count, method), buffer


@partial(jax.jit, static_argnames=("size", "tokens"))
def _outside(queries: Queries, start: Array, buffer: Buffer, method: MethodConfig, size: int, tokens: int) -> Array:
    part = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), queries)
    weights = attention_weights(part.rows, part.norm, buffer, method)
    window = (start + jnp.arange(size)) // tokens
    other = window[:, None] != (jnp.arange(buffer.keys.shape[0]) // tokens)[None]
    return jnp.where(other, weights, 0.0).sum(1)


def crossings(segmenter: Segmenter, image: "np.ndarray | str | Path") -> dict[str, Crossing]:
    """Every stage of GLA by name for one image. Raises UserError for a method that is not the whole of GLA."""
    methods = attention_stages(segmenter.config.method)
    windows, grid = image_windows(as_rgb(image), segmenter.config.windows)
    found = {}
    with jax.default_matmul_precision("highest"):
        tokens = _encode(segmenter.params, windows, segmenter.config)
        for name, method in methods.items():
            queries, buffer = _prepare(segmenter.params, tokens, windows, method)
            total = buffer.keys.shape[0]
            count = total // len(windows.valid)
            outside = np.zeros(total, np.float32)
            size = min(QUERIES_AT_ONCE, total)
            for start in range(0, total, size):
                start = min(start, total - size)  # the last part overlaps the one before
                outside[start : start + size] = _outside(queries, np.int32(start), buffer, method, size, count)
            kept = slice(grid.count * count)
            counts = np.asarray(queries.counts)[kept].reshape(grid.count, count) if method.proxy_anchors else None
            found[name] = Crossing(outside[kept].reshape(grid.count, count), counts)
    return found


def summary(images: Iterable[dict[str, Crossing]]) -> dict[str, dict[str, float]]:
    """Over the tokens of all images, by stage: mean share of attention outside the own window, percent; mean and median
    tokens of an anchor, and the percentage of tokens that are alone in theirs.
    """
    images = list(images)
    rows = {}
    for name in images[0]:
        outside = np.concatenate([image[name].outside.ravel() for image in images])
        rows[name] = {"tokens": len(outside), "outside": 100 * float(outside.mean(dtype=np.float64))}
        if images[0][name].counts is not None:
            counts = np.concatenate([image[name].counts.ravel() for image in images])
            rows[name] |= {
                "anchor_mean": float(counts.mean(dtype=np.float64)),
                "anchor_median": float(np.median(counts)),
                "alone": 100 * float((counts == 1).mean()),
            }
    return rows
