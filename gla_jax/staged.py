"""One large image in steps that the host counts: the same functions as logits.py, windows and queries in chunks.

A step is short, so progress can be shown and Ctrl-C is heard; nothing is larger than the buffer itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gla_jax.attention.attend import FORMS, clearclip_queries, proxy_anchors
from gla_jax.attention.baselines import HOSTS
from gla_jax.attention.buffer import Buffer, fill_buffer
from gla_jax.attention.normalize import Normalization, normalization, shift
from gla_jax.config import MethodConfig, SegmenterConfig
from gla_jax.images.windows import Windows
from gla_jax.pipeline import (
    SegmenterParams,
    WindowTokens,
    compared_features,
    encode_windows,
    patch_features,
    segment_features,
)
from gla_jax.support.shapes import Array, Float
from gla_jax.towers.layers import Heads

QUERIES_OF_A_STEP = 4096
Progress = Callable[[int, int], None]


class _Chunk(NamedTuple):
    """What is kept of some windows: features for every pass of the host, values, and the residual if it is read."""

    features: tuple[Array, ...]
    values: Array
    residual: Array | None


@partial(jax.jit, static_argnames="host")
def encode_chunk(params: SegmenterParams, windows: Windows, config: SegmenterConfig, host: str) -> _Chunk:
    """The towers over one tower batch of windows, and of it what the later steps read."""
    tokens = encode_windows(params, windows, config)
    row = HOSTS[host]
    features = tuple(compared_features(tokens, name).astype(jnp.float32) for name in row.features)
    return _Chunk(features, tokens.heads.values[:, 1:], tokens.residual if row.whole_block else None)


_fill = jax.jit(fill_buffer)
_anchors = jax.jit(proxy_anchors)
_segment = jax.jit(segment_features)


@jax.jit
def _normalization(
    queries: Array, counts: Array, buffer: Buffer, windows: Array, config: MethodConfig
) -> Normalization:
    return normalization(queries, counts, buffer, windows, config, FORMS[config.attention].total)


@jax.jit
def _gather(queries: Array, norm: Normalization, buffer: Buffer, config: MethodConfig) -> Array:
    return FORMS[config.attention].gather(queries, norm, buffer, config)


@partial(jax.jit, static_argnames="patch_size")
def _first_queries(features: Array, valid: Array, origins: Array, config: MethodConfig, patch_size: int):
    return clearclip_queries(features, valid, origins, patch_size, config)


@jax.jit
def _project(gathered: Array, residual: Array | None, params: SegmenterParams, config: SegmenterConfig) -> Array:
    nothing = gathered[:, :0]
    tokens = WindowTokens(Heads(nothing, nothing, nothing), nothing if residual is None else residual, None)
    return patch_features(gathered, tokens, params, config)


def steps_of(windows: int, tokens: int, config: SegmenterConfig) -> int:
    """How many steps an image of `windows` windows takes (padded to whole tower batches)."""
    chunks = -(-windows // config.windows_at_once)
    if not config.method.global_buffer:
        return chunks
    method, passes = config.method, len(HOSTS[config.method.host].features)
    rounds = 2 if method.proxy_anchors or method.dynamic_scale is not None else 1
    return 2 * chunks + passes * rounds * -(-chunks * config.windows_at_once * tokens // QUERIES_OF_A_STEP)


def staged_features(
    params: SegmenterParams, windows: Windows, config: SegmenterConfig, progress: Progress | None = None
) -> Float[Array, "W S E"]:
    """segment_features in steps; W is a multiple of config.windows_at_once. progress(steps done, steps) after each."""
    counter = _Counter(progress)
    if not config.method.global_buffer:
        return _windows_alone(params, windows, config, counter)
    method = config.method
    chunks = []
    for chunk in _in_chunks(windows, config.windows_at_once):
        chunks.append(jax.block_until_ready(encode_chunk(params, chunk, config, method.host)))
        tokens = chunks[0].features[0].shape[1]
        counter(steps_of(len(windows.valid), tokens, config))
    total = steps_of(len(windows.valid), tokens, config)
    values = jnp.concatenate([chunk.values for chunk in chunks])
    residuals = [chunk.residual for chunk in chunks]
    features = [jnp.concatenate(parts) for parts in zip(*(chunk.features for chunk in chunks), strict=True)]
    del chunks, chunk  # a second copy of all tokens
    gathered = None
    while features:
        passed = _attend(features.pop(0), values, windows, params, method, lambda: counter(total))
        gathered = passed if gathered is None else gathered + passed
    del values
    gathered = gathered.reshape(len(windows.valid), tokens, -1)
    out = []
    for index, part in enumerate(_in_chunks(gathered, config.windows_at_once)):
        out.append(jax.block_until_ready(_project(part, residuals[index], params, config)))
        counter(total)
    return jnp.concatenate(out)


def _attend(
    features: Array,
    values: Array,
    windows: Windows,
    params: SegmenterParams,
    method: MethodConfig,
    step: Callable[[], None],
) -> Array:
    """What all tokens gather, [N C]: anchors in chunks, one normalisation, attention in chunks."""
    valid = jnp.asarray(windows.valid)
    first = _first_queries(features, valid, jnp.asarray(windows.origins), method, params.clip_spec.patch_size)
    buffer = _fill(features, values, valid)
    del features, values
    rows, counts = buffer.keys, jnp.ones_like(buffer.keys[:, 0])
    if method.proxy_anchors or method.dynamic_scale is not None:
        start = buffer.keys if first is None else first
        found = []
        for part, own in zip(_queries(start), _queries(buffer.keys), strict=True):
            found.append(jax.block_until_ready(_anchors(part, own, buffer, method)))
            step()
        counts = jnp.concatenate([anchors.counts for anchors in found])
        rows = jnp.concatenate([anchors.queries for anchors in found]) if method.proxy_anchors else rows
        del found
    norm = _normalization(rows, counts, buffer, valid.astype(jnp.float32).sum(), method)
    out = []
    for part, own in zip(_queries(rows), _queries(norm), strict=True):
        out.append(jax.block_until_ready(_gather(part, own, buffer, method)))
        step()
    return jnp.concatenate(out)


def _windows_alone(params: SegmenterParams, windows: Windows, config: SegmenterConfig, counter: "_Counter") -> Array:
    if config.method.dynamic_shift is not None:  # a chunk does not know W
        fixed = shift(jnp.asarray(windows.valid).astype(jnp.float32).sum(), config.method)
        config = replace(config, method=replace(config.method, dynamic_shift=None, shift=fixed))
    out = []
    for chunk in _in_chunks(windows, config.windows_at_once):
        out.append(jax.block_until_ready(_segment(params, chunk, config)))
        counter(-(-len(windows.valid) // config.windows_at_once))
    return jnp.concatenate(out)


def _in_chunks(tree, size: int) -> Iterator:
    length = len(jax.tree.leaves(tree)[0])
    for start in range(0, length, size):
        yield jax.tree.map(lambda leaf, start=start: leaf[start : start + size], tree)


def _queries(tree) -> Iterator:
    return _in_chunks(tree, QUERIES_OF_A_STEP)


class _Counter:
    def __init__(self, progress: Progress | None):
        self._progress, self._done = progress, 0

    def __call__(self, steps: int) -> None:
        self._done += 1
        if self._progress:
            self._progress(self._done, steps)


def padded_to_batches(count: int, config: SegmenterConfig) -> int:
    """The windows of an image, rounded up to whole tower batches."""
    return int(np.ceil(count / config.windows_at_once)) * config.windows_at_once
