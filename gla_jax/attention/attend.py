"""The method in order: buffer, anchors, normalisation, attention (DESIGN 3); dense or streaming by config."""

import jax
import jax.numpy as jnp

from gla_jax.attention import dense, streaming
from gla_jax.attention.anchors import Anchors, next_anchors
from gla_jax.attention.buffer import Buffer, fill_buffer, neighbourhood_queries
from gla_jax.attention.normalize import normalization
from gla_jax.config import MethodConfig
from gla_jax.shapes import Array, Bool, Float, Int, typed

FORMS = {"dense": dense, "streaming": streaming}


@typed
def proxy_anchors(first: Float[Array, "N D"], buffer: Buffer, config: MethodConfig) -> Anchors:
    """P and m after T iterations that start from the queries `first`.

    With T = 0 the queries stay as they are and m counts the first comparison.
    """
    form = FORMS[config.attention]
    anchors = Anchors(first, jnp.ones_like(first[:, 0]))
    for _ in range(config.anchor_iterations):
        anchors = next_anchors(form.sum_positives(anchors.queries, buffer, config), buffer.keys)
    if config.anchor_iterations == 0:
        counts = next_anchors(form.sum_positives(first, buffer, config), buffer.keys).counts
        anchors = Anchors(first, counts)
    return anchors


@typed
def attend(
    buffer: Buffer, windows: Float[Array, ""], config: MethodConfig, first: Float[Array, "N D"] | None = None
) -> Float[Array, "N C"]:
    """What every token of one buffer gathers; windows is W, first replaces the keys as the anchors' first queries.

    Rows of padded tokens hold finite numbers without meaning.
    """
    queries, counts = buffer.keys, jnp.ones_like(buffer.keys[:, 0])
    if config.proxy_anchors or config.dynamic_scale is not None:
        anchors = proxy_anchors(queries if first is None else first, buffer, config)
        counts = anchors.counts
        queries = anchors.queries if config.proxy_anchors else queries
    norm = normalization(queries, counts, buffer, windows, config)
    return FORMS[config.attention].gather(queries, norm, buffer, config)


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
    count = valid.astype(jnp.float32).sum()
    if config.global_buffer:
        out = attend(fill_buffer(features, values, valid), count, config, first)
        return out.reshape(windows, tokens, -1)

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
    """The first queries of a host: ClearCLIP starts its anchors from neighbourhoods, all others from the keys."""
    if config.host != "clearclip" or not config.proxy_anchors:
        return None
    return neighbourhood_queries(features, valid, origins, patch_size)
