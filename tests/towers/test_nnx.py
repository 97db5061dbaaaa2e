"""Towers through flax.nnx.bridge.ToNNX: who trains in NNX gets the same numbers and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.nnx import bridge

from gla_jax.towers.kinds import build_tower
from gla_jax.towers.siglip import SiglipImageSpec
from tests.small_models import IMAGE, VFM, random_params, small_clip

SIGLIP = SiglipImageSpec(image_size=32, patch_size=16, width=16, depth=1, num_heads=2, mlp_width=16)


def bridged(tower, params, *inputs, **options):
    """An NNX module of a tower, with these parameters."""
    model = bridge.ToNNX(tower, rngs=nnx.Rngs(0)).lazy_init(*inputs, **options)
    state = nnx.state(model)
    nnx.replace_by_pure_dict(state, dict(params))
    nnx.update(model, state)
    return model


@pytest.mark.parametrize("spec", [IMAGE, SIGLIP, VFM], ids=["clip", "siglip", "dino"])
def test_an_image_tower_gives_the_same_tokens_and_gradients(spec):
    tower = build_tower(spec)
    params = random_params(small_clip(), 0)["image"] if spec is IMAGE else random_params(spec, 0)
    pixels = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 32, 32)), jnp.float32)
    model = bridged(tower, params, pixels)
    jax.tree.map(np.testing.assert_array_equal, model(pixels), tower.apply({"params": params}, pixels))

    def loss(module):
        return sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(module(pixels)))

    found = nnx.to_pure_dict(nnx.grad(loss)(model))
    expected = jax.grad(lambda params: loss(lambda pixels: tower.apply({"params": params}, pixels)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, dict(expected))


def test_the_methods_of_clip_are_reached():
    """The last block stays open: methods replace its attention."""
    tower, params = build_tower(IMAGE), random_params(small_clip(), 0)["image"]
    pixels = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 32, 32)), jnp.float32)
    model = bridged(tower, params, pixels)
    tokens = model.encode(pixels)
    expected = tower.apply({"params": params}, pixels, method="encode")
    jax.tree.map(np.testing.assert_array_equal, tokens, expected)
    joint = model.project(tokens.qkv.values, tokens.residual)
    again = tower.apply({"params": params}, tokens.qkv.values, tokens.residual, method="project")
    np.testing.assert_array_equal(joint, again)


def test_the_text_tower_gives_the_same_features():
    spec = small_clip().text
    tower, params = build_tower(spec), random_params(small_clip(), 0)["text"]
    ids = jnp.asarray([[1, 2, spec.end_token], [3, spec.end_token, spec.end_token]], jnp.int32)
    np.testing.assert_array_equal(bridged(tower, params, ids)(ids), tower.apply({"params": params}, ids))
