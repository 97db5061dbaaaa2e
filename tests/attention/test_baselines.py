"""What each baseline does inside a window, against plain NumPy: a baseline's figure must be that baseline's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gla_jax.attention.baselines import neighbourhood_bias, window_attention
from gla_jax.config import BASELINES, METHODS, MethodConfig
from gla_jax.towers.attention import QKV

COUNT, WIDTH, SIDE = 2, 6, 3


def softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def expected(heads, pairs, bias=0.0):
    """softmax(left right^T / sqrt K + bias) values, head by head, in float64."""
    queries, keys, values = (np.asarray(x, np.float64) for x in heads)
    sides = {"q": queries, "k": keys}
    out = np.zeros_like(values)
    for head in range(COUNT):
        part = slice(head * WIDTH // COUNT, (head + 1) * WIDTH // COUNT)
        for left, right in pairs:
            scores = sides[left][..., part] @ sides[right][..., part].swapaxes(-1, -2) / (WIDTH // COUNT) ** 0.5
            out[..., part] += softmax(scores + bias) @ values[..., part]
    return out


def gaussian():
    bias = np.zeros((1 + SIDE**2, 1 + SIDE**2))
    for i in range(SIDE**2):
        for j in range(SIDE**2):
            squared = (i // SIDE - j // SIDE) ** 2 + (i % SIDE - j % SIDE) ** 2
            bias[1 + i, 1 + j] = np.exp(-squared / 50)
    return bias


RULES = {
    "clip": lambda heads: expected(heads, ["qk"]),
    "vanilla": lambda heads: expected(heads, ["qk"]),
    "maskclip": lambda heads: np.asarray(heads.values),
    "sclip": lambda heads: expected(heads, ["qq", "kk"]),
    "clearclip": lambda heads: expected(heads, ["qq"]),
    "naclip": lambda heads: expected(heads, ["kk"], gaussian()),
    "proxyclip": lambda heads: np.asarray(heads.values),
    "proxyclip-clip": lambda heads: np.asarray(heads.values),
    "ov-stitcher": lambda heads: np.asarray(heads.values),
    "clip-dinoiser": lambda heads: np.asarray(heads.values),
}


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_is_its_published_rule(name):
    rng = np.random.default_rng(0)
    heads = QKV(*(jnp.asarray(rng.normal(size=(2, 1 + SIDE**2, WIDTH)), jnp.float32) for _ in range(3)))
    found = jax.jit(window_attention, static_argnums=(1, 2))(heads, BASELINES[name], COUNT)
    np.testing.assert_allclose(found, RULES[name](heads), atol=1e-5)


def test_every_baseline_is_a_method_and_those_with_features_have_gla():
    """A baseline is one row: adding it adds it under --method, and GLA on it where that is defined."""
    for name, row in BASELINES.items():
        assert METHODS[name].baseline == name
        assert (row.gla is None) == (not row.features)
        if row.gla:
            assert METHODS[row.gla] == MethodConfig(baseline=name)


def test_an_unknown_baseline_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"'proxyclp' is not a baseline; there are .*proxyclip"):
        MethodConfig(baseline="proxyclp")


def test_neighbours_are_favoured_and_cls_is_not():
    bias = neighbourhood_bias(1 + 4, 5.0)
    np.testing.assert_allclose(bias[1], [0, 1, np.exp(-0.02), np.exp(-0.02), np.exp(-0.04)], rtol=1e-6)
    assert not bias[0].any()
