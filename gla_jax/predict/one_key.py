"""Tokens whose attention keeps one single key: above a fifth of them, most of the method has stopped working.

That happens where cosines of a foundation model are spread otherwise than DINO's, which the published numbers suit.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gla_jax import pipeline
from gla_jax.attention.attend import image_buffer, prepare_queries
from gla_jax.attention.buffer import Buffer, fill_buffer
from gla_jax.attention.dense import attention_weights
from gla_jax.config import MethodConfig
from gla_jax.images.windows import Windows
from gla_jax.predict.model import Model
from gla_jax.support.arrays import Array, Bool, Float, Int, UInt8, typed
from gla_jax.towers.dino import DinoSpec

MANY = 20.0  # percent
SAMPLE = 256  # tokens of an image, a few percent of all
ADVICE = "its numbers do not suit the features: try --preset centred, or another anchor_threshold (rho)"


_encode = jax.jit(pipeline.encode_windows)


def is_published(model: Model) -> bool:
    """True for features of DINO under the published numbers, which were chosen for them."""
    method = model.config.method
    published = MethodConfig()
    numbers = ("anchor_threshold", "dynamic_shift", "dynamic_scale", "shift", "scale", "temperature", "calibration")
    as_published = all(getattr(method, name) in (None, getattr(published, name)) for name in numbers)
    return as_published and isinstance(model.params.features_spec, DinoSpec)


def image_one_key(model: Model, image: UInt8[np.ndarray, "h w 3"]) -> float | None:
    """Percent of the tokens of an RGB image that keep one single key; runs the towers.

    None where the method does not attend by features, on a mesh, and for an image that goes through in steps.
    """
    method = model.config.method
    if not method.attends_by_features or model.mesh is not None or model.steps_through(image.shape[:2]):
        return None
    windows = model.prepare(image).windows
    tokens = _encode(model.params, windows, model.config)
    return 100 * float(one_key_share(model.params, tokens, windows, method))


def one_key_warning(percent: float | None) -> str | None:
    """A sentence without its full stop, None up to MANY percent."""
    if percent is None or percent <= MANY:
        return None
    return f"{percent:.0f}% of the tokens keep one single key, so most of the method is idle: {ADVICE}"


@typed
def keeps_one_key(weights: Float[Array, "*B N"]) -> Bool[Array, "*B"]:
    """True for rows of attention with one weight above 0."""
    return (weights > 0).sum(-1) == 1


@jax.jit
def one_key_share(
    params: pipeline.SegmenterParams, tokens: pipeline.WindowTokens, windows: Windows, method: MethodConfig
) -> Float[Array, ""]:
    """The share, 0 to 1, of up to SAMPLE tokens spread evenly over an image; of several passes, their mean.

    Args:
        params: for the size of CLIP's patches.
        tokens: outputs of the towers, on one device.
        windows: the same windows.
        method: one that attends by features.
    """
    count, shares = pipeline.window_count(windows, method), []
    for features in tokens.compared(method):
        first, side = pipeline.first_queries(features, windows, params, method), features.shape[1]
        size = min(SAMPLE, features.shape[0] * side)
        # Padded windows come last: places end before their tokens. Merged ones are as good a sample.
        last = (windows.overlaps.members[:, 0] >= 0).sum() if method.merge_overlaps else count * side
        places = (jnp.arange(size, dtype=jnp.float32) * (last / size)).astype(jnp.int32)
        if method.global_buffer:
            buffer = image_buffer(features, tokens.values, jnp.asarray(windows.valid), method, windows.overlaps)
            kept = _keep_one_key(buffer, first, places, count, method)
        else:

            def alone(window: tuple[Array, Array, Array | None]) -> Array:
                own_features, own_values, own_first = window
                buffer = fill_buffer(own_features[None], own_values[None], jnp.ones(1, bool), method)
                return _keep_one_key(buffer, own_first, slice(None), count, method)

            first = None if first is None else first.reshape(*features.shape[:2], -1)
            kept = jax.lax.map(alone, (features, tokens.values, first)).ravel()[places]
        shares.append(kept.mean(dtype=jnp.float32))
    return jnp.stack(shares).mean()


def _keep_one_key(
    buffer: Buffer, first: Array | None, places: Int[Array, " q"] | slice, count: Array, method: MethodConfig
) -> Bool[Array, " q"]:
    """True for the tokens at some places of a buffer that keep one key."""
    rows = (buffer.keys if first is None else first, buffer.keys)
    # Without row_mean all tokens share one mean, so that all are needed for it.
    if method.row_mean:
        queries = prepare_queries(rows[0][places], rows[1][places], buffer, count, method)
    else:
        queries = jax.tree.map(lambda leaf: leaf[places], prepare_queries(*rows, buffer, count, method))
    return keeps_one_key(attention_weights(queries.rows, queries.norm, buffer, method))
