"""The pure functions: jit equals eager, padding and chunks leave no trace, vmap over images, gradients are right."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gla_jax.checkpoints.model_folder import ClipSpec, initial_params
from gla_jax.config import BASELINES, METHODS, MethodConfig, SegmenterConfig, WindowConfig, without_gla
from gla_jax.images.windows import Windows, cut_windows, window_grid
from gla_jax.pipeline import (
    SegmenterParams,
    WindowTokens,
    aggregate_windows,
    segment_features,
    segment_images,
    segment_logits,
)
from gla_jax.towers.attention import QKV
from gla_jax.towers.clip import ClipImageSpec, ClipTextSpec
from gla_jax.towers.dino import DinoSpec

CLIP = ClipSpec(ClipImageSpec(32, 8, 16, 2, 2, 32, 12), ClipTextSpec(20, 8, 16, 1, 2, 32, 12, 19))
DINO = DinoSpec(32, 4, 12, 2, 2, 24)
WINDOWS = WindowConfig(None, crop=32, stride=16)


@pytest.fixture(scope="module")
def params():
    clip, vfm = (initial_params(spec, jax.random.key(seed)) for seed, spec in enumerate((CLIP, DINO)))
    return SegmenterParams(clip=clip["image"], clip_spec=CLIP.image, vfm=vfm, vfm_spec=DINO)


@pytest.fixture(scope="module")
def bank():
    rows = np.random.default_rng(0).normal(size=(5, 12))
    return jnp.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), jnp.float32)


def windows_of(seed: int, padded: int | None = None) -> Windows:
    image = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return jax.tree.map(jnp.asarray, cut_windows(image, window_grid(48, 64, WINDOWS), padded))


def settings(**changes) -> SegmenterConfig:
    return SegmenterConfig(method=replace(MethodConfig(block_size=100), **changes), windows=WINDOWS)


jitted = jax.jit(segment_logits)


@pytest.mark.parametrize("name", ["gla", "gla-clearclip", "gla-sclip", "proxyclip", "naclip"])  # one of every path
def test_padding_and_batches_leave_no_trace(params, bank, name):
    config = SegmenterConfig(method=METHODS[name], windows=WINDOWS)
    exact = jitted(params, windows_of(0), bank, config)
    padded = jitted(params, windows_of(0, padded=9), bank, replace(config, tower_batch=4))
    assert exact.shape[0] == 6
    assert exact.shape[2] == 5
    np.testing.assert_allclose(padded[:6], exact, atol=1e-5)


@pytest.mark.parametrize("name", [row.gla for row in BASELINES.values() if row.gla])
def test_without_the_global_buffer_a_window_sees_no_other(params, name):
    """An ablation switches the buffer off: what leaks between windows all the same would be credited to others."""
    method, windows = replace(METHODS[name], global_buffer=False), windows_of(0)
    rng = np.random.default_rng(0)
    heads = QKV(*(rng.normal(size=(6, 17, 16)).astype(np.float32) for _ in range(3)))
    tokens = WindowTokens(heads, heads.queries, rng.normal(size=(6, 64, 12)).astype(np.float32))
    changed = jax.tree.map(lambda leaf: np.concatenate([leaf[:1], leaf[1:] + rng.normal(size=leaf[1:].shape)]), tokens)
    tokens, changed = (jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), made) for made in (tokens, changed))
    before, after = (jax.jit(aggregate_windows)(made, windows, params, method) for made in (tokens, changed))
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[1] - after[1]).max() > 1e-2


def test_jit_equals_eager(params, bank):
    eager = segment_logits(params, windows_of(0), bank, settings())
    np.testing.assert_allclose(jitted(params, windows_of(0), bank, settings()), eager, atol=1e-5)


def test_images_vmap(params, bank):
    config = settings()
    images = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(windows_of(seed) for seed in range(3)))
    together = jax.jit(jax.vmap(segment_logits, in_axes=(None, 0, None, None)))(params, images, bank, config)
    for seed in range(3):
        errors = np.abs(together[seed] - jitted(params, windows_of(seed), bank, config)).max(-1)
        # Rounding may bring a similarity over rho, which changes one token.
        assert (errors > 1e-5).mean() < 0.01
        assert errors.max() < 0.05


@pytest.mark.parametrize("name", ["gla-sclip", "proxyclip", "sclip"])
def test_a_batch_of_images_shares_the_towers_alone(params, name):
    """Nine windows in batches of four cross from image to image; nothing else does."""
    config = SegmenterConfig(METHODS[name], WINDOWS, tower_batch=4)
    one = [windows_of(seed, padded=9) for seed in range(3)]
    together = jax.jit(segment_images)(params, jax.tree.map(lambda *leaves: jnp.stack(leaves), *one), config).rows
    for windows, features in zip(one, together, strict=True):
        valid = np.asarray(windows.valid)
        expected = jax.jit(segment_features)(params, windows, config)[valid]
        errors = np.abs(features[valid] - expected).max(-1)
        assert (errors > 1e-4).mean() < 0.01
        assert errors.max() < 0.2 * np.abs(expected).max()


def test_settings_do_not_recompile(params):
    """A sweep over numbers is one program: users run hundreds of settings."""
    traces = []

    @jax.jit
    def counted(config):
        traces.append(config)
        return segment_features(params, windows_of(0), config)

    for threshold in (0.3, 0.5, 0.7):
        counted(settings(anchor_threshold=threshold))
    assert len(traces) == 1


def test_gradients_reach_text_image_and_settings(params, bank):
    """Finite and right against central differences along a random direction."""
    config, windows = settings(anchor_threshold=0.2), windows_of(1)

    @jax.jit
    def loss(pixels, text, scale):
        method = replace(config.method, dynamic_scale=scale)
        logits = segment_logits(params, windows._replace(pixels=pixels), text, replace(config, method=method))
        return jnp.square(logits).sum()

    point = windows.pixels, bank, jnp.float32(30.0)
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*point)
    for index, (gradient, step) in enumerate(zip(gradients, (1e-3, 1e-2, 0.5), strict=True)):
        assert np.isfinite(gradient).all()
        direction = jnp.sign(gradient)
        ends = [loss(*(*point[:index], point[index] + s * step * direction, *point[index + 1 :])) for s in (1, -1)]
        measured = float(ends[0] - ends[1]) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(measured, rel=0.05)


def test_gla_is_deterministic(params, bank):
    runs = [np.asarray(jitted(params, windows_of(2), bank, settings())) for _ in range(2)]
    np.testing.assert_array_equal(*runs)


def test_bfloat16_towers_stay_close(params, bank):
    """Towers in bfloat16, statistics in float32: patch logits move by rounding, not by much."""
    exact = jitted(params, windows_of(3), bank, settings())
    config = replace(settings(), dtype="bfloat16")
    half = SegmenterParams(
        clip=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params.clip),
        clip_spec=params.clip_spec,
        vfm=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params.vfm),
        vfm_spec=params.vfm_spec,
    )
    rounded = jitted(half, windows_of(3), bank, config)
    assert rounded.dtype == jnp.float32
    assert float(jnp.abs(rounded - exact).mean()) < 0.02


def test_a_missing_vfm_is_named(params, bank):
    alone = SegmenterParams(clip=params.clip, clip_spec=params.clip_spec)
    with pytest.raises(ValueError, match="vision foundation model"):
        segment_logits(alone, windows_of(0), bank, settings())
    assert jitted(alone, windows_of(0), bank, SegmenterConfig(method=without_gla("maskclip"))).shape[2] == 5
