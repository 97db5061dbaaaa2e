"""What parity with PyTorch does not show: half precision, refusals, and which token is read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gla_jax.checkpoints.model_folder import ClipSpec, abstract_params
from gla_jax.convert.verify import random_texts
from gla_jax.towers.attention import attention_weights, merge_heads, split_heads
from gla_jax.towers.clip import ClipImage, ClipImageSpec, ClipText, ClipTextSpec
from gla_jax.towers.dino import DinoSpec, DinoV2Spec
from gla_jax.towers.kinds import build_tower
from gla_jax.towers.layers import LayerNorm

IMAGE = ClipImageSpec(image_size=32, patch_size=8, width=32, depth=2, num_heads=2, mlp_width=64, embed_dim=16)
TEXT = ClipTextSpec(vocabulary=50, context=9, width=32, depth=2, num_heads=2, mlp_width=64, embed_dim=16, end_token=49)
CLIP = ClipSpec(IMAGE, TEXT)
DINO = DinoSpec(image_size=32, patch_size=8, width=32, depth=2, num_heads=2, mlp_width=64)
DINOV2 = DinoV2Spec(image_size=28, patch_size=14, width=32, depth=2, num_heads=2, mlp_width=64, registers=3)


def random_params(spec):
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.2 * random.standard_normal(leaf.shape, np.float32), abstract_params(spec))


def apply(tower, params, given):
    return jax.jit(tower.apply)({"params": params}, given)


def pixels(*shape):
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape, np.float32))


@pytest.mark.parametrize("spec", [DINO, DINOV2], ids=["dino", "dinov2"])
def test_bfloat16_features_stay_close(spec):
    params, image = random_params(spec), pixels(1, 3, 56, 56)
    full, half = (apply(build_tower(spec, dtype), params, image) for dtype in (jnp.float32, jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}
    error = jnp.abs(half.patch_tokens.astype(jnp.float32) - full.patch_tokens)
    # bfloat16 keeps 8 bits: 0.4 % a rounding, of tokens around 1 after two blocks.
    assert float(error.max()) < 0.05 * float(jnp.abs(full.patch_tokens).max())


def test_bfloat16_clip_stays_close():
    params = random_params(CLIP)
    for tower, kind, spec, given in (
        ("image", ClipImage, IMAGE, pixels(2, 3, 32, 40)),
        ("text", ClipText, TEXT, jnp.asarray(random_texts(CLIP))),
    ):
        full, half = (apply(kind(spec, dtype), params[tower], given) for dtype in (jnp.float32, jnp.bfloat16))
        assert half.dtype == jnp.bfloat16
        error = jnp.abs(half.astype(jnp.float32) - full)
        assert float(error.max()) < 0.05 * float(jnp.abs(full).max())


def test_layer_norm_keeps_the_digits_of_a_large_offset():
    x = np.random.default_rng(0).standard_normal((4, 64)) + 1000
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    params = {"scale": jnp.ones(64), "bias": jnp.zeros(64)}
    found = LayerNorm(1e-6).apply({"params": params}, jnp.asarray(x, jnp.float32))
    # float32 holds 1000 to 6e-5; E[x^2] - E[x]^2 would be wrong in the first digit.
    np.testing.assert_allclose(np.asarray(found), expected, atol=3e-4)


def test_heads_are_split_side_by_side():
    x = jnp.arange(24, dtype=jnp.float32).reshape(1, 2, 12)
    heads = split_heads(x, 3)
    assert heads.shape == (1, 3, 2, 4)
    np.testing.assert_array_equal(np.asarray(heads[0, 1, 0]), [4, 5, 6, 7])
    np.testing.assert_array_equal(np.asarray(merge_heads(heads)), np.asarray(x))


def test_attention_weights_by_hand():
    queries, keys = jnp.zeros((1, 1, 2, 4)), pixels(1, 1, 2, 4)
    causal = jnp.tril(jnp.ones((2, 2), bool))
    np.testing.assert_allclose(np.asarray(attention_weights(queries, keys)[0, 0]), [[0.5, 0.5], [0.5, 0.5]])
    np.testing.assert_allclose(np.asarray(attention_weights(queries, keys, causal)[0, 0]), [[1, 0], [0.5, 0.5]])


def test_pixels_that_do_not_divide_into_patches_are_refused():
    tower = build_tower(DINO)
    with pytest.raises(ValueError, match="a 32x33 input does not divide into patches of 8x8"):
        tower.apply({"params": random_params(DINO)}, pixels(1, 3, 32, 33))


def test_a_text_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match="10 tokens are more than the text tower's context of 9"):
        ClipText(TEXT).apply({"params": random_params(CLIP)["text"]}, jnp.zeros((1, 10), jnp.int32))


def test_the_first_end_token_is_read_and_nothing_after_it():
    params = random_params(CLIP)["text"]
    rows = jnp.asarray([[5, 7, 49, 0, 0], [5, 7, 49, 49, 49], [5, 7, 49, 8, 49], [5, 49, 7, 0, 0]], jnp.int32)
    zeros, ends, others, different = np.asarray(apply(ClipText(TEXT), params, rows))
    np.testing.assert_allclose(ends, zeros, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(others, zeros, rtol=1e-5, atol=1e-6)
    assert np.abs(different - zeros).max() > 0.01


def test_attention_only_leaves_residual_and_mlp_out():
    tower = ClipImage(IMAGE).bind({"params": random_params(CLIP)["image"]})
    tokens = tower.encode(pixels(1, 3, 32, 32))
    whole, alone = tower.project(tokens.qkv.values, tokens.residual), tower.project(tokens.qkv.values)
    changed = jax.tree.map(lambda leaf: leaf, tower.variables["params"])
    changed["blocks_1"]["mlp"] = jax.tree.map(jnp.zeros_like, changed["blocks_1"]["mlp"])
    without_mlp = ClipImage(IMAGE).bind({"params": changed})
    np.testing.assert_array_equal(np.asarray(without_mlp.project(tokens.qkv.values)), np.asarray(alone))
    assert float(jnp.abs(whole - alone).max()) > 0.01


def test_gradients_reach_pixels_and_parameters():
    params = random_params(DINOV2)

    def loss(params, image):
        return build_tower(DINOV2).apply({"params": params}, image).patch_tokens.sum()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, pixels(1, 3, 28, 42))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))
    assert float(jnp.abs(gradients[1]).max()) > 0
