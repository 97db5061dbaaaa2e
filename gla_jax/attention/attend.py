"""The method in order: anchors, normalisation, attention over one buffer (DESIGN 3.1, 3.2), in any of three forms."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gla_jax.attention import blockwise, dense, ring
from gla_jax.attention.anchors import Anchors, next_anchors
from gla_jax.attention.buffer import Buffer, fill_buffer
from gla_jax.attention.merging import merge_tokens, spread_rows
from gla_jax.attention.normalize import Normalization, normalization
from gla_jax.attention.one_key import Attended
from gla_jax.config import MethodConfig
from gla_jax.images.windows import Overlaps
from gla_jax.support.arrays import Array, Bool, Float, typed
from gla_jax.support.steps import ONE_PROGRAM, OneProgram, Steps
from gla_jax.towers.placement import even_batch

# One protocol: sum_positives, attend, sum_over_shards, fold_shards, shard_index.
FORMS = {"dense": dense, "blockwise": blockwise, "ring": ring}


class Queries(NamedTuple):
    """Queries of attention: rows [q D], the counts m [q] of their anchors (1 without), and their normalisation."""

    rows: Float[Array, "q D"]
    counts: Float[Array, " q"]
    norm: Normalization


@typed
def image_buffer(
    features: Float[Array, "W S D"],
    values: Float[Array, "W n C"],
    valid: Bool[Array, " W"],
    method: MethodConfig,
    overlaps: Overlaps | None = None,
) -> Buffer:
    """fill_buffer of an image whose windows may lie on several devices; overlapping tokens are one if merge_overlaps.

    Args:
        features: before normalisation.
        values: of CLIP's last block, on their own token grid.
        valid: False for padded windows.
        method: precision, form and merge_overlaps.
        overlaps: of Windows, read by merge_overlaps alone, which raises ValueError without them.
    """
    form = FORMS[method.attention]
    buffer = fill_buffer(features, values, valid, method, form.sum_over_shards)
    return merge_tokens(buffer, overlaps, form) if method.merge_overlaps else buffer


@typed
def by_window(
    attended: Float[Array, "merged C"], valid: Bool[Array, " W"], method: MethodConfig, overlaps: Overlaps | None = None
) -> Float[Array, "W S C"]:
    """Rows of image_buffer by window; a merged token's row goes to all tokens that it stands for.

    Args:
        attended: a row for every token of the buffer.
        valid: False for padded windows.
        method: form and merge_overlaps.
        overlaps: as in image_buffer.
    """
    if method.merge_overlaps:
        attended = spread_rows(attended, overlaps, FORMS[method.attention])
    return attended.reshape(len(valid), -1, attended.shape[-1])


@jax.named_scope("gla-anchors")
@typed
def proxy_anchors(
    first: Float[Array, "q D"], own_keys: Float[Array, "q D"], buffer: Buffer, method: MethodConfig
) -> Anchors:
    """Anchors P and counts m of some tokens after T iterations (DESIGN 3.1).

    Args:
        first: queries of the first iteration.
        own_keys: the tokens' own keys, kept by a token that resembles none.
        buffer: all keys that are compared.
        method: T, rho and the form of attention; with T = 0 queries stay and m counts the first comparison.
    """
    form = FORMS[method.attention]
    anchors = Anchors(first, jnp.ones_like(first[:, 0]))
    for _ in range(method.anchor_iterations):
        anchors = next_anchors(form.sum_positives(anchors.queries, buffer, method), own_keys)
    if method.anchor_iterations == 0:  # the scale still needs counts
        anchors = Anchors(first, next_anchors(form.sum_positives(first, buffer, method), own_keys).counts)
    return anchors


@jax.named_scope("gla-attention")
def _attend(rows: Array, norm: Normalization, buffer: Buffer, method: MethodConfig, counting: bool = False) -> Attended:
    return FORMS[method.attention].attend(rows, norm, buffer, method, counting)


@jax.named_scope("gla-attention")
def _normalization(rows: Array, counts: Array, buffer: Buffer, windows: Array, method: MethodConfig) -> Normalization:
    return normalization(rows, counts, buffer, windows, method, FORMS[method.attention].sum_over_shards)


@typed
def prepare_queries(
    first: Float[Array, "q D"],
    own_keys: Float[Array, "q D"],
    buffer: Buffer,
    windows: Float[Array, ""],
    method: MethodConfig,
    run: OneProgram | Steps = ONE_PROGRAM,
) -> Queries:
    """Anchors, then normalisation, of some tokens; without row_mean of all tokens, since they share one mean.

    Args:
        first: queries of the anchors' first iteration.
        own_keys: the tokens' own keys, which are the queries where there are no anchors.
        buffer: all keys that are compared.
        windows: W.
        method: which stages are on, and their numbers.
        run: as one program or in steps.
    """
    rows, counts = own_keys, jnp.ones_like(own_keys[:, 0])
    if method.proxy_anchors or method.dynamic_scale is not None:
        anchors = run.queries(proxy_anchors, (first, own_keys), buffer, method)
        counts = anchors.counts
        rows = anchors.queries if method.proxy_anchors else rows
    return Queries(rows, counts, run.whole(_normalization, rows, counts, buffer, windows, method))


@typed
def attend_buffer(
    buffer: Buffer,
    windows: Float[Array, ""],
    method: MethodConfig,
    first: Float[Array, "N D"] | None = None,
    run: OneProgram | Steps = ONE_PROGRAM,
    counting: bool = False,
) -> Attended:
    """Weighted values [N C] of every token of one buffer; rows of padded tokens hold finite numbers without meaning.

    Args:
        buffer: keys and values of N tokens.
        windows: W.
        method: which stages are on, and their numbers.
        first: replaces the keys as queries of the anchors' first iteration.
        run: as one program or in steps.
        counting: the kept keys of every token too.
    """
    queries = prepare_queries(buffer.keys if first is None else first, buffer.keys, buffer, windows, method, run)
    return run.queries(_attend, (queries.rows, queries.norm), buffer, method, counting=counting)


@typed
def attend_alone(
    features: Float[Array, "W S D"],
    values: Float[Array, "W n C"],
    windows: Float[Array, ""],
    method: MethodConfig,
    first: Float[Array, "N D"] | None = None,
    counting: bool = False,
) -> Attended:
    """Every window attends over a buffer of its own tokens, as many together as have the similarities of one block.

    The values are [W S C], kept keys [W S].

    Args:
        features: before normalisation.
        values: of CLIP's last block, on their own token grid.
        windows: W, on which the dynamic shift depends.
        method: which stages are on, and their numbers.
        first: replaces the keys as queries of the anchors' first iteration.
        counting: the kept keys of every token too.
    """
    # A window lies on one device, whatever the mesh.
    method = replace(method, attention="blockwise") if method.attention == "ring" else method

    def alone(window: tuple[Array, Array, Array | None]) -> Attended:
        own_features, own_values, own_first = window
        # Mark padding as valid here: its rows are dropped later; an empty softmax would be 0/0.
        buffer = fill_buffer(own_features[None], own_values[None], jnp.ones(1, bool), method)
        return attend_buffer(buffer, windows, method, own_first, counting=counting)

    own_first = None if first is None else first.reshape(*features.shape[:2], -1)
    together = even_batch(len(features), max(1, method.max_block**2 // features.shape[1] ** 2))
    # A batch of one would be a vmap, under which a block that is skipped is computed all the same; inside shard_map JAX
    # refuses that branch.
    method = replace(method, skip_blocks=False) if together > 1 else method
    return jax.lax.map(alone, (features, values, own_first), batch_size=together if together > 1 else None)


@typed
def aggregate_values(
    features: Float[Array, "W S D"],
    values: Float[Array, "W n C"],
    valid: Bool[Array, " W"],
    method: MethodConfig,
    first: Float[Array, "N D"] | None = None,
    overlaps: Overlaps | None = None,
) -> Float[Array, "W S C"]:
    """CLIP values weighted by feature similarity, over all windows or each window alone (method.global_buffer).

    Args:
        features: before normalisation.
        values: of CLIP's last block, on their own token grid.
        valid: False for padded windows.
        method: which stages are on, and their numbers.
        first: replaces the keys as queries of the anchors' first iteration.
        overlaps: of Windows, where overlapping tokens are merged.
    """
    count = FORMS[method.attention].sum_over_shards(valid.astype(jnp.float32).sum())
    if not method.global_buffer:
        return attend_alone(features, values, count, method, first).values
    attended = attend_buffer(image_buffer(features, values, valid, method, overlaps), count, method, first)
    return by_window(attended.values, valid, method, overlaps)
