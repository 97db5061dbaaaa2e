"""A tower without CLS under the methods: from q, k, v of its last block to the joint space, in NumPy float64."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gla_jax.bench.parts import random_params
from gla_jax.checkpoints.model_folder import ClipSpec, abstract_params
from gla_jax.config import METHODS, SegmenterConfig, WindowConfig
from gla_jax.pipeline import SegmenterParams, encode_windows, segment_features
from gla_jax.predict.cost import attention_flops, blank_windows, model_widths, projection_flops
from gla_jax.towers.dino import DinoSpec
from gla_jax.towers.kinds import build_tower
from gla_jax.towers.layers import stack_blocks
from gla_jax.towers.siglip import SiglipImageSpec, SiglipTextSpec
from tests import oracle

SPEC = SiglipImageSpec(image_size=24, patch_size=8, width=16, depth=2, num_heads=2, mlp_width=24)
VFM = DinoSpec(image_size=32, patch_size=8, width=12, depth=1, num_heads=2, mlp_width=16)
HEADS, WINDOWS, SIDE = 2, 3, 4


@pytest.fixture(scope="module")
def params() -> SegmenterParams:
    """Weights under which every part matters."""
    rng = np.random.default_rng(0)
    drawn = random_params(SPEC, VFM)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32), drawn)


def heads(x):
    """[W t C] -> [W H t K]."""
    return x.reshape(*x.shape[:2], HEADS, -1).swapaxes(1, 2)


def attended(left, right, values, bias=0.0):
    scores = heads(left) @ heads(right).swapaxes(-1, -2) / np.sqrt(left.shape[-1] / HEADS) + bias
    return (oracle.softmax(scores) @ heads(values)).swapaxes(1, 2).reshape(values.shape)


def linear(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def layer_norm(layer, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * layer["scale"] + layer["bias"]


def mlp(layer, x):
    x = linear(layer["up"], x)
    return linear(layer["down"], 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


def joint(params, x, residual=None):
    """out_proj, the rest of the block where there is a residual, post_layernorm, the head on each token alone."""
    block, head = params["blocks_1"], params["head"]
    x = linear(block["attention"]["out"], x)
    if residual is not None:
        x = x + residual
        x = x + mlp(block["mlp"], layer_norm(block["norm_2"], x))
    x = layer_norm(params["norm_post"], x)
    x = linear(head["attention"]["out"], linear(head["attention"]["value"], x))
    return x + mlp(head["mlp"], layer_norm(head["norm"], x))


def distance_bias():
    place = np.stack(np.mgrid[:SIDE, :SIDE], -1).reshape(-1, 2)
    return np.exp(-np.square(place[:, None] - place[None]).sum(-1) / (2 * 5.0**2))


def gla(features, values, method):
    keys = oracle.l2(features.reshape(-1, features.shape[-1]))
    return oracle.attend(keys, values.reshape(len(keys), -1), WINDOWS, method).reshape(values.shape)


EXPECTED = {
    "clip": lambda q, k, v, r, f, method: (attended(q, k, v), r),
    "maskclip": lambda q, k, v, r, f, method: (v, None),
    "sclip": lambda q, k, v, r, f, method: (attended(q, q, v) + attended(k, k, v), r),
    "clearclip": lambda q, k, v, r, f, method: (attended(q, q, v), None),
    "naclip": lambda q, k, v, r, f, method: (attended(k, k, v, distance_bias()), None),
    "gla": lambda q, k, v, r, f, method: (gla(f, v, method), None),
    "gla-on-clip-keys": lambda q, k, v, r, f, method: (gla(k, v, method), None),
}


@pytest.mark.parametrize(("name", "form"), [*((name, "blockwise") for name in EXPECTED), ("gla", "dense")])
def test_a_method_on_a_tower_without_a_class_token(params, name, form):
    """A first token left out, or taken for CLS, would shift every patch by one."""
    method = replace(METHODS[name], attention=form, block_size=20)
    config = SegmenterConfig(method, WindowConfig(None, 32, 16))
    windows = blank_windows(WINDOWS, config)
    tokens = encode_windows(params, windows, config)
    parts = (*tokens.qkv, tokens.residual, tokens.features)
    q, k, v, residual, features = (None if x is None else np.asarray(x, np.float64) for x in parts)
    assert q.shape == (WINDOWS, SIDE**2, SPEC.width)
    mixed, residual = EXPECTED[name](q, k, v, residual, features, method)
    expected = joint(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), dict(params.clip)), mixed, residual)
    found = np.asarray(jax.jit(segment_features)(params, windows, config))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_an_image_of_one_patch_has_the_feature_of_its_token(params):
    """Why the head on a token alone is no new map: an image that is one patch goes through the same."""
    tower = build_tower(SPEC).bind({"params": params.clip})
    tokens = tower.encode(jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 8, 8)), jnp.float32))
    one = tower.project(tokens.qkv.values, tokens.residual)[:, 0]
    np.testing.assert_allclose(tower.image_feature(tokens), one, rtol=1e-5, atol=1e-5)


def test_the_cost_counts_the_head_and_no_class_token(params):
    """Two maps of the head's attention and its MLP in place of a projection; attention over 16 patches, not 17."""
    config = SegmenterConfig(METHODS["clip"], WindowConfig(None, 32, 16))
    assert attention_flops(model_widths(params, config), WINDOWS, config.method) == WINDOWS * 4 * 16**2 * 16
    head = 2 * 16**2 + 2 * 16 * 24
    assert projection_flops(SPEC, 5, whole_block=False) == 2 * 5 * (16**2 + head)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_as_an_accelerator_runs_it(params, dtype, tolerance):
    """Blocks stacked and scanned, the attention in another form, the towers in half precision."""
    config = SegmenterConfig(METHODS["maskclip"], WindowConfig(None, 32, 16))
    windows = blank_windows(WINDOWS, config)
    expected = np.asarray(jax.jit(segment_features)(params, windows, config))
    stacked = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params.stacked())
    found = jax.jit(segment_features)(stacked, windows, replace(config, dtype=dtype, tower_attention="chunked"))
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


def test_the_text_tower_scans_its_blocks():
    spec = SiglipTextSpec(20, 6, 16, 3, 2, 24, 12, end_token=1, pad_token=0)
    rng, drawn = np.random.default_rng(0), abstract_params(ClipSpec(SPEC, spec))["text"]
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32), drawn)
    ids = jnp.asarray([[5, 7, 1, 0, 0, 0], [5, 7, 9, 8, 9, 1]], jnp.int32)
    given = params, stack_blocks(params, spec.depth)
    plain, scanned = (build_tower(spec).apply({"params": each}, ids) for each in given)
    np.testing.assert_allclose(scanned, plain, rtol=1e-4, atol=1e-5)
