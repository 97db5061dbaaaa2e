"""The method in order: buffer, anchors, normalisation, attention (DESIGN 3); dense, streaming or sharded by config."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gla_jax.attention import blockwise, dense, ring
from gla_jax.attention.anchors import Anchors, next_anchors
from gla_jax.attention.baselines import HOSTS
from gla_jax.attention.buffer import Buffer, fill_buffer, neighbourhood_queries
from gla_jax.attention.normalize import Normalization, normalization
from gla_jax.config import MethodConfig
from gla_jax.support.shapes import Array, Bool, Float, Int, typed

FORMS = {"dense": dense, "streaming": blockwise, "sharded": ring}


class Queries(NamedTuple):
    """What asks the buffer: rows [q D], the counts m [q] of their anchors (1 without), and their normalisation."""

    rows: Float[Array, "q D"]
    counts: Float[Array, " q"]
    norm: Normalization


@typed
def proxy_anchors(
    first: Float[Array, "q D"], own_keys: Float[Array, "q D"], buffer: Buffer, config: MethodConfig
) -> Anchors:
    """P and m of some tokens after T iterations that start from the queries `first`; own_keys are the tokens' keys.

    With T = 0 the queries stay as they are and m counts the first comparison.
    """
    form = FORMS[config.attention]
    anchors = Anchors(first, jnp.ones_like(first[:, 0]))
    for _ in range(config.anchor_iterations):
        anchors = next_anchors(form.sum_positives(anchors.queries, buffer, config), own_keys)
    if config.anchor_iterations == 0:
        counts = next_anchors(form.sum_positives(first, buffer, config), own_keys).counts
        anchors = Anchors(first, counts)
    return anchors


@typed
def prepare_queries(
    first: Float[Array, "q D"],
    own_keys: Float[Array, "q D"],
    buffer: Buffer,
    windows: Float[Array, ""],
    config: MethodConfig,
) -> Queries:
    """Anchors and normalisation of some tokens; without row_mean of all tokens, since they share one mean.

    first: the anchors' first queries; own_keys: the tokens' keys; windows is W.
    """
    rows, counts = own_keys, jnp.ones_like(own_keys[:, 0])
    if config.proxy_anchors or config.dynamic_scale is not None:
        anchors = proxy_anchors(first, own_keys, buffer, config)
        counts = anchors.counts
        rows = anchors.queries if config.proxy_anchors else rows
    return Queries(rows, counts, normalization(rows, counts, buffer, windows, config, FORMS[config.attention].total))


@typed
def attend(
    buffer: Buffer, windows: Float[Array, ""], config: MethodConfig, first: Float[Array, "N D"] | None = None
) -> Float[Array, "N C"]:
    """What every token of one buffer gathers; windows is W, first replaces the keys as the anchors' first queries.

    Rows of padded tokens hold finite numbers without meaning.
    """
    queries = prepare_queries(buffer.keys if first is None else first, buffer.keys, buffer, windows, config)
    return FORMS[config.attention].gather(queries.rows, queries.norm, buffer, config)


@typed
def gather_values(
    features: Float[Array, "W S D"],
    values: Float[Array, "W n C"],
    valid: Bool[Array, " W"],
    config: MethodConfig,
    first: Float[Array, "N D"] | None = None,
) -> Float[Array, "W S C"]:
    """Gather CLIP values by feature similarity, over all windows or each window alone (config.global_buffer).

    features: before normalisation; values: of the last CLIP block, on their own token grid.
    """
    windows, tokens, _ = features.shape
    count = FORMS[config.attention].total(valid.astype(jnp.float32).sum())
    if config.global_buffer:
        out = attend(fill_buffer(features, values, valid), count, config, first)
        return out.reshape(windows, tokens, -1)

    # A window lies on one device, whatever the mesh.
    config = replace(config, attention="streaming") if config.attention == "sharded" else config

    def alone(window: tuple[Array, Array, Array]) -> Array:
        own_features, own_values, own_first = window
        # A padded window attends to itself: its rows are dropped later, and no 0/0 can arise.
        buffer = fill_buffer(own_features[None], own_values[None], jnp.ones(1, bool))
        return attend(buffer, count, config, own_first)

    own_first = None if first is None else first.reshape(windows, tokens, -1)
    return jax.lax.map(alone, (features, values, own_first))


@typed
def clearclip_queries(
    features: Float[Array, "W S D"],
    valid: Bool[Array, " W"],
    origins: Int[Array, "W 2"],
    patch_size: int,
    config: MethodConfig,
) -> Float[Array, "N D"] | None:
    """The first queries of a host: ClearCLIP starts its anchors from neighbourhoods, all others from the keys.

    Without the global buffer a window sees no other one, so its neighbourhoods end with it.
    """
    if not (HOSTS[config.host].from_neighbours and config.proxy_anchors):
        return None
    every_part = FORMS[config.attention].every_part if config.global_buffer else None
    return neighbourhood_queries(features, valid, origins, patch_size, every_part)
