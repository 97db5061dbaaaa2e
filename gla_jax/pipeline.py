"""The order from windows to token logits: towers, aggregation, projection, similarity to the text (DESIGN 2).

Pure functions: they jit, vmap and differentiate. The same functions run as one program or, for large images, in steps
over chunks of windows and queries (segment_in_steps).
"""

from collections.abc import Iterator
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gla_jax.attention.attend import FORMS, attend_alone, attend_buffer, by_window, image_buffer
from gla_jax.attention.baselines import window_attention
from gla_jax.attention.buffer import Buffer, neighbourhood_queries, resample_tokens
from gla_jax.attention.merging import merged_rows
from gla_jax.attention.one_key import Attended, OneKeyCount, one_key_count
from gla_jax.config import BASELINES, MethodConfig, SegmenterConfig
from gla_jax.images.windows import Windows
from gla_jax.support.arrays import Array, Float, inverse_norms, typed
from gla_jax.support.steps import ONE_PROGRAM, OneProgram, Progress, Steps
from gla_jax.towers.kinds import build_tower
from gla_jax.towers.placement import step_batch
from gla_jax.window_tokens import SegmenterParams, WindowTokens, encode_alone, stitch_windows
from gla_jax.window_tokens import encode_windows as encode_windows  # the step before those here

QUERY_CHUNK = 4096  # queries of a step, at least
STEP_BLOCKS = 4  # of queries, at least: what a step prepares of all keys is for as many


class Counted(NamedTuple):
    """rows: one for every token of an image, or of a batch; one_key: tokens that keep one single key, where counted."""

    rows: Float[Array, "*B _"]
    one_key: OneKeyCount | None = None


def query_chunk(queries: int, method: MethodConfig) -> int:
    """Queries of a step of a large image: QUERY_CHUNK and STEP_BLOCKS blocks at least, and up to twice as many.

    Equal steps where there are any: a shorter last one would be a program of its own, that prepares all keys once more.
    """
    least = max(QUERY_CHUNK, STEP_BLOCKS * method.max_block)
    equal = [size for size in range(least, 2 * least + 1) if queries % size == 0]
    # Every block of queries reads all keys.
    return min(equal, key=lambda size: queries // size * -(-size // method.max_block), default=least)


@typed
def first_queries(
    features: Float[Array, "W S D"], windows: Windows, params: SegmenterParams, method: MethodConfig
) -> Float[Array, "N D"] | None:
    """Queries of the anchors' first iteration where they are not the keys: ClearCLIP starts from neighbourhoods.

    Without the global buffer a window sees no other one, so its neighbourhoods end with it. Merged as the keys are.
    """
    if not (BASELINES[method.baseline].from_neighbours and method.proxy_anchors):
        return None
    valid, origins = jnp.asarray(windows.valid), jnp.asarray(windows.origins)
    form = FORMS[method.attention]
    fold_shards = form.fold_shards if method.global_buffer else None
    first = neighbourhood_queries(features, valid, origins, params.clip_spec.patch_size, fold_shards)
    return merged_rows(first, windows.overlaps, form) if method.merge_overlaps else first


@typed
def window_count(windows: Windows, method: MethodConfig) -> Float[Array, ""]:
    """W without padding, over all devices that share an image."""
    return FORMS[method.attention].sum_over_shards(jnp.asarray(windows.valid).astype(jnp.float32).sum())


@typed
def buffers(
    tokens: WindowTokens, windows: Windows, params: SegmenterParams, method: MethodConfig
) -> tuple[tuple[Buffer, Float[Array, "N D"]], ...]:
    """The buffer and the first queries of every pass of a baseline."""
    valid = jnp.asarray(windows.valid)
    passes = []
    for features in tokens.compared(method):
        buffer = image_buffer(features, tokens.values, valid, method, windows.overlaps)
        first = first_queries(features, windows, params, method)
        passes.append((buffer, buffer.keys if first is None else first))
    return tuple(passes)


@typed
def aggregate_windows(
    tokens: WindowTokens,
    windows: Windows,
    params: SegmenterParams,
    method: MethodConfig,
    count: Float[Array, ""] | None = None,
) -> Float[Array, "W S C"]:
    """Values of every patch as CLIP's last attention hands them to its output projection, by the method's rule.

    Args:
        tokens: outputs of the towers.
        windows: the same windows.
        params: for the sizes of CLIP's patches and heads.
        method: baseline and stages of GLA.
        count: W of the image, where these windows are a part of it.
    """
    return _aggregate(tokens, windows, params, method, count, counting=False).rows


def _aggregate(
    tokens: WindowTokens,
    windows: Windows,
    params: SegmenterParams,
    method: MethodConfig,
    count: Array | None,
    counting: bool,
) -> Counted:
    """aggregate_windows with the counts of every token of attention, where counting; other methods have none."""
    if not method.attends_by_features and tokens.qkv is None:
        return Counted(tokens.values)  # MaskCLIP's attention, the identity: the only one a foundation model alone takes
    if not method.attends_by_features:
        row = BASELINES[method.baseline]
        heads, prefix, precision = params.clip_spec.num_heads, tokens.prefix_tokens, method.plain_precision
        return Counted(tokens.patches(window_attention(tokens.qkv, row, heads, precision, prefix)))
    count, valid = window_count(windows, method) if count is None else count, jnp.asarray(windows.valid)

    def passes() -> Iterator[tuple[Attended, Array]]:
        """Every pass of a baseline, and which of its tokens are valid."""
        if method.global_buffer:
            for buffer, first in buffers(tokens, windows, params, method):
                yield attend_buffer(buffer, count, method, first, counting=counting), buffer.valid
            return
        for features in tokens.compared(method):
            first = first_queries(features, windows, params, method)
            yield attend_alone(features, tokens.values, count, method, first, counting), valid[:, None]

    rows, counts = 0, []
    for attended, tokens_valid in passes():  # they are summed (SCLIP compares queries, then keys)
        rows = rows + attended.values
        counts.append(one_key_count(attended.kept, tokens_valid))
    rows = by_window(rows, valid, method, windows.overlaps) if method.global_buffer else rows
    return Counted(rows, reduce(OneKeyCount.merge, counts) if counting else None)


@typed
def total_count(counts: OneKeyCount, method: MethodConfig) -> OneKeyCount:
    """The sums over all tokens, on all devices that share an image."""
    return OneKeyCount(*(FORMS[method.attention].sum_over_shards(each.sum(dtype=jnp.int32)) for each in counts))


@jax.named_scope("gla-projection")
@typed
def patch_features(
    attended: Float[Array, "W S C"],
    residual: Float[Array, "W t _"] | None,
    params: SegmenterParams,
    config: SegmenterConfig,
) -> Float[Array, "W S E"]:
    """Attended values to CLIP's joint space: out_proj, residual and MLP for whole-block baselines, ln_post, proj.

    Without a CLIP they are features already and stay as they are, and so do those that a baseline averages there.

    Args:
        attended: the weighted values.
        residual: input of CLIP's last block, prefix tokens first; read by whole-block baselines alone.
        params: of CLIP's image tower.
        config: baseline, dtype and precision.
    """
    dtype, precision = jnp.dtype(config.dtype), config.method.plain_precision
    if params.clip is None or config.method.pools_joint:
        return attended.astype(jnp.float32)
    if BASELINES[config.method.baseline].whole_block:
        residual = residual[:, params.clip_spec.prefix_tokens :]
        residual = resample_tokens(residual, attended.shape[1], precision).astype(dtype)
    else:
        residual = None
    clip = build_tower(params.clip_spec, dtype, precision=precision)
    joint = clip.apply({"params": params.clip}, attended.astype(dtype), residual, method="project")
    return joint.astype(jnp.float32)


@jax.named_scope("gla-labels")
@typed
def token_logits(
    features: Float[Array, "W S E"], text_embeddings: Float[Array, "Q E"], precision: str = "highest"
) -> Float[Array, "W S Q"]:
    """Cosine similarity of every patch with every prompt; rows of text_embeddings have length one."""
    features = features.astype(jnp.float32)
    # Norms are divided out afterwards: unit rows would be a second copy of all features.
    products = jnp.einsum("wse,qe->wsq", features, text_embeddings, precision=precision)
    return products * inverse_norms(features)


@typed
def segment_features(
    params: SegmenterParams, windows: Windows, config: SegmenterConfig, run: OneProgram | Steps = ONE_PROGRAM
) -> Float[Array, "W S E"]:
    """Windows to patch features in the joint space: everything that does not depend on the text.

    Args:
        params: both image towers.
        windows: of one image; padded windows give rows without meaning.
        config: method, dtype and what depends on the platform.
        run: as one program or in steps.
    """
    return counted_features(params, windows, config, run, counting=False).rows


@typed
def counted_features(
    params: SegmenterParams,
    windows: Windows,
    config: SegmenterConfig,
    run: OneProgram | Steps = ONE_PROGRAM,
    counting: bool = True,
) -> Counted:
    """segment_features and, by the same pass of attention, how many tokens keep one single key.

    Args:
        params: both image towers.
        windows: as in segment_features.
        config: a method that does not attend by features counts nothing.
        run: as one program or in steps.
        counting: False for features alone.
    """
    method, valid, overlaps = config.method, jnp.asarray(windows.valid), windows.overlaps
    if not (method.global_buffer or method.stitches):
        # Windows do not see each other: every chunk goes all the way by itself, with W as an argument.
        count = run.whole(window_count, windows, method)
        return _totalled(run.windows(_segment_alone, (windows,), params, config, count, counting=counting), method, run)
    cut = windows._replace(overlaps=None)  # which are of the image as a whole
    # Features of one or more passes (SCLIP compares queries, then keys), CLIP's values, and residual or None.
    if method.stitches:
        tokens = run.windows(_encode_part, (cut,), params, config)
        tokens = run.whole(stitch_windows, tokens, cut, params, config)
        if not method.global_buffer:
            count = run.whole(window_count, windows, method)
            rows = run.windows(segment_encoded, (tokens, cut), params, config, count, counting=counting)
            return _totalled(rows, method, run)
        *compared, values, residual = _read(tokens, config)
    else:
        *compared, values, residual = run.windows(_read_tokens, (cut,), params, config)
    total, counts = None, []  # [N C], summed over the passes; the counts of each
    while compared:
        first = run.whole(first_queries, compared[0], windows, params, method)
        # Features end here: in steps the buffer takes their place in memory.
        buffer = run.whole(image_buffer, compared.pop(0), values, valid, method, overlaps)
        attended = attend_buffer(buffer, run.whole(window_count, windows, method), method, first, run, counting)
        if counting:
            counts.append(run.whole(one_key_count, attended.kept, buffer.valid))
        del buffer
        total = attended.values if total is None else total + attended.values
    del values
    total = run.whole(by_window, total, valid, method, overlaps)
    rows = run.windows(patch_features, (total, residual), params, config)
    return _totalled(Counted(rows, reduce(OneKeyCount.merge, counts) if counting else None), method, run)


def _totalled(tokens: Counted, method: MethodConfig, run: OneProgram | Steps = ONE_PROGRAM) -> Counted:
    """The rows as they are with the sums of their counts."""
    return tokens if tokens.one_key is None else Counted(tokens.rows, run.whole(total_count, tokens.one_key, method))


@typed
def segment_images(
    params: SegmenterParams, windows: Windows, config: SegmenterConfig, counting: bool = False
) -> Counted:
    """counted_features of windows [B W ...] of several images: rows [B W S E], counts [B].

    The towers take the windows of all images in their batches; the rest goes one image after the other.
    """
    tokens = encode_alone(params, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), windows), config)
    tokens = jax.tree.map(lambda leaf: leaf.reshape(*windows.valid.shape, *leaf.shape[1:]), tokens)

    def one(image: tuple[WindowTokens, Windows]) -> Counted:
        rows = segment_encoded(stitch_windows(*image, params, config), image[1], params, config, counting=counting)
        return _totalled(rows, config.method)

    return jax.lax.map(one, (tokens, windows))


@typed
def segment_encoded(
    tokens: WindowTokens,
    windows: Windows,
    params: SegmenterParams,
    config: SegmenterConfig,
    count: Float[Array, ""] | None = None,
    counting: bool = False,
) -> Counted:
    """segment_features behind the towers: rows [W S E], and for every token the counts that total_count sums.

    Args:
        tokens: outputs of the towers.
        windows: the same windows.
        params: of CLIP's image tower.
        config: method and dtype.
        count: W of the image, where these windows are a part of it.
        counting: whether tokens that keep one single key are counted.
    """
    attended = _aggregate(tokens, windows, params, config.method, count, counting)
    return attended._replace(rows=patch_features(attended.rows, tokens.residual, params, config))


def _segment_alone(
    windows: Windows, params: SegmenterParams, config: SegmenterConfig, count: Array, counting: bool = False
) -> Counted:
    return segment_encoded(encode_alone(params, windows, config), windows, params, config, count, counting)


def _encode_part(windows: Windows, params: SegmenterParams, config: SegmenterConfig) -> WindowTokens:
    return encode_alone(params, windows, config)


def _read_tokens(windows: Windows, params: SegmenterParams, config: SegmenterConfig) -> tuple[Array | None, ...]:
    return _read(encode_alone(params, windows, config), config)


def _read(tokens: WindowTokens, config: SegmenterConfig) -> tuple[Array | None, ...]:
    """Of the towers' outputs what the global buffer reads: features of each pass, values, residual or None."""
    projects = BASELINES[config.method.baseline].whole_block and not config.method.pools_joint
    residual = tokens.residual if projects else None
    return *(features.astype(jnp.float32) for features in tokens.compared(config.method)), tokens.values, residual


@typed
def segment_in_steps(
    params: SegmenterParams, windows: Windows, config: SegmenterConfig, progress: Progress | None = None
) -> Float[Array, "W S E"]:
    """segment_features of a large image, in steps over chunks of windows and queries.

    Args:
        params: both image towers.
        windows: W is padded_to_steps; a chunk is step_batch of them, at most config.max_tower_batch.
        config: as in segment_features.
        progress: called with (steps done, steps in all) after each.
    """
    return segment_features(params, windows, config, steps_of(params, windows, config, progress))


def steps_of(
    params: SegmenterParams, windows: Windows, config: SegmenterConfig, progress: Progress | None = None
) -> Steps:
    """The steps of an image; arguments as in segment_in_steps."""
    count, merging = len(windows.valid), config.method.merge_overlaps
    queries = len(windows.overlaps.members) if merging else count * params.tokens(config)
    total, chunk = count_steps(count, queries, config), step_batch(count, config.max_tower_batch)
    return Steps(chunk, query_chunk(queries, config.method), total, progress)


def count_steps(windows: int, queries: int, config: SegmenterConfig) -> int:
    """Steps that an image of `windows` windows, padded to whole chunks, and `queries` tokens takes."""
    chunks, method = -(-windows // config.max_tower_batch), config.method
    if not method.global_buffer:
        return 2 * chunks if method.stitches else chunks
    # Queries go through the anchors' loop, where there is one, and through the attention.
    rounds = 2 if method.proxy_anchors or method.dynamic_scale is not None else 1
    query_chunks = -(-queries // query_chunk(queries, method))
    return 2 * chunks + len(BASELINES[method.baseline].features) * rounds * query_chunks


@typed
def segment_logits(
    params: SegmenterParams, windows: Windows, text_embeddings: Float[Array, "Q E"], config: SegmenterConfig
) -> Float[Array, "W S Q"]:
    """Windows and text to token logits before the logit scale, float32; rows of padded windows hold no meaning.

    Args:
        params: both image towers.
        windows: of one image.
        text_embeddings: a row of length one for every prompt.
        config: method, dtype and precision.
    """
    return token_logits(segment_features(params, windows, config), text_embeddings, config.method.plain_precision)
