"""CLIP-DINOiser's averages against float64, in every form: alone, over the global buffer, from anchors."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from gla_jax.attention.buffer import fill_buffer
from gla_jax.attention.dense import attention_weights
from gla_jax.attention.normalize import Normalization
from gla_jax.config import METHODS, without_gla
from tests import oracle
from tests.attention.test_forms import clustered, gathered

ALONE = without_gla("clip-dinoiser")
METHODS_OF_IT = {
    "alone": ALONE,
    "global buffer": replace(ALONE, global_buffer=True),
    "anchors": replace(ALONE, global_buffer=True, proxy_anchors=True, anchor_threshold=0.8),
    "whole GLA": replace(METHODS["gla-clip-dinoiser"], anchor_threshold=0.8),
}


def expected(features, values, method):
    """[W S C] of the oracle."""
    windows, tokens, _ = features.shape
    keys, flat = (
        oracle.l2(features.astype(np.float64)).reshape(windows * tokens, -1),
        values.reshape(windows * tokens, -1),
    )
    if not method.global_buffer:
        own = oracle.l2(features.astype(np.float64))
        return np.stack([oracle.pooled(*window, 0.2) for window in zip(own, values, strict=True)])
    if method.row_mean:
        return oracle.attend(keys, flat, windows, method).reshape(values.shape)
    queries = (
        oracle.anchors(keys, method.anchor_threshold, method.anchor_iterations)[0] if method.proxy_anchors else keys
    )
    return oracle.pooled(keys, flat, 0.2, queries).reshape(values.shape)


@pytest.mark.parametrize("form", ["dense", "blockwise", "ring"])
@pytest.mark.parametrize("name", METHODS_OF_IT)
def test_every_form_is_the_published_average(form, name):
    """Padded windows, and blocks that do not divide the tokens, must leave no trace in another's average."""
    method = replace(METHODS_OF_IT[name], attention=form, block_size=7)
    features, values = clustered(3, 4)
    valid = np.array([True, True, True, False])

    found = gathered(*map(jnp.asarray, (features, values, valid)), method)
    np.testing.assert_allclose(found[:3], expected(features[:3], values[:3], method), atol=2e-5)


def test_nothing_above_the_cutoff_is_zero_and_not_nan():
    features = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 3)), jnp.float32)
    buffer = fill_buffer(features, features, jnp.zeros(1, bool), ALONE)
    norm = Normalization(jnp.ones(4), jnp.zeros(4))
    np.testing.assert_array_equal(attention_weights(buffer.keys, norm, buffer, ALONE), np.zeros((4, 4)))
