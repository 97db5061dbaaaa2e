"""The pure functions for who differentiates, maps or jits them: gradients are those of the float64 oracle."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from gla_jax.attention.attend import aggregate_values
from gla_jax.attention.ring import WINDOW_AXIS
from gla_jax.config import METHODS, MethodConfig, SegmenterConfig, WindowConfig, without_gla
from gla_jax.images.windows import IMAGENET_MEAN, IMAGENET_STD, cut_windows, normalise, window_grid
from gla_jax.labels.label_map import class_probabilities, synonyms
from gla_jax.labels.stitch import stitch, stitch_plan, token_grid
from gla_jax.pipeline import SegmenterParams, segment_logits, token_logits
from tests import oracle
from tests.attention.test_forms import clustered, oracle_values
from tests.small_models import IMAGE, VFM, random_params, small_clip

SIZES = WindowConfig(None, crop=32, stride=16)
GLA = MethodConfig(anchor_threshold=0.8, block_size=24)
SOFT = replace(GLA, mask_temperature=0.1)
FIXED = replace(SOFT, dynamic_shift=None, dynamic_scale=None)
GATHERS = {
    "gla": GLA,
    "soft": SOFT,
    "soft, rows sum to less than one": replace(SOFT, anchor_threshold=1.2),
    "soft without iterations": replace(SOFT, anchor_iterations=0),
    "soft anchors, no masking": replace(SOFT, masking=False),
    "one mean": replace(without_gla("proxyclip"), global_buffer=True),
    "each window alone": without_gla("proxyclip"),
}


def slope(function, point, direction, step=1e-6):
    """The derivative of a float64 function along a direction, by central differences."""
    return (function(point + step * direction) - function(point - step * direction)) / (2 * step)


def over_devices(features, values, valid, method):
    """aggregate_values with one window on each of four devices."""
    by_window = PartitionSpec(WINDOW_AXIS)
    mesh = jax.make_mesh((4,), (WINDOW_AXIS,), (AxisType.Auto,), devices=jax.devices()[:4])
    specs = (by_window, by_window, by_window, PartitionSpec())
    form = jax.shard_map(aggregate_values, mesh=mesh, in_specs=specs, out_specs=by_window)
    return form(features, values, valid, method)


@pytest.mark.parametrize(
    ("form", "name"),
    [*(("blockwise", name) for name in GATHERS), ("dense", "soft"), ("ring", "gla"), ("ring", "soft")],
)
def test_features_and_values_have_the_gradients_of_the_oracle(form, name):
    """Whoever trains a tower through the method follows these: a wrong one trains towards nothing."""
    method = replace(GATHERS[name], attention=form)
    features, values = clustered(11, 4)
    rng = np.random.default_rng(1)
    weights, *directions = (rng.normal(size=x.shape) for x in (values, features, values))
    gather = over_devices if form == "ring" else aggregate_values

    def loss(features, values):
        return (gather(features, values, jnp.ones(4, bool), method) * weights.astype(np.float32)).sum()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.asarray(features), jnp.asarray(values))
    features, values = features.astype(np.float64), values.astype(np.float64)
    expected = (
        slope(lambda x: (oracle_values(x, values, method) * weights).sum(), features, directions[0]),
        slope(lambda x: (oracle_values(features, x, method) * weights).sum(), values, directions[1]),
    )
    for gradient, direction, wanted in zip(gradients, directions, expected, strict=True):
        assert np.isfinite(gradient).all()
        assert np.vdot(gradient, direction) == pytest.approx(wanted, rel=2e-3, abs=1e-4)


def patches(windows):
    """[W 3 c c] pixels as [W S 192] patches of 8 pixels, for arrays of either library."""
    count, _, side, _ = windows.shape
    cut = windows.reshape(count, 3, side // 8, 8, side // 8, 8)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(count, (side // 8) ** 2, -1)


@pytest.mark.parametrize("name", ["gla", "soft", "soft anchors, no masking", "each window alone"])
def test_pixels_have_the_gradient_of_the_oracle(name):
    """From the pixels of overlapping windows to the logits: who asks which pixels decide follows these. A linear map
    stands for the towers, so that all of it exists in float64.
    """
    method, rng = GATHERS[name], np.random.default_rng(5)
    colours = rng.integers(0, 256, (5, 8, 3)).repeat(8, 0).repeat(8, 1)
    image = np.clip(colours + rng.normal(0, 12, colours.shape), 0, 255).astype(np.uint8)
    windows = cut_windows(image, window_grid(40, 64, SIZES))
    to_features, to_values = rng.normal(size=(2, 192, 6)) / 14
    bank, weights = oracle.l2(rng.normal(size=(3, 6))), rng.normal(size=(len(windows.valid), 16, 3))
    direction = rng.normal(size=windows.pixels.shape)

    def loss(pixels):
        tokens = patches(normalise(pixels, IMAGENET_MEAN, IMAGENET_STD))
        features, values = (tokens @ one.astype(np.float32) for one in (to_features, to_values))
        gathered = aggregate_values(features, values, jnp.asarray(windows.valid), method)
        return (token_logits(gathered, jnp.asarray(bank, jnp.float32)) * weights.astype(np.float32)).sum()

    def expected(pixels):
        mean, deviation = (np.reshape(three, (3, 1, 1)) for three in (IMAGENET_MEAN, IMAGENET_STD))
        tokens = patches((pixels - mean) / deviation)
        gathered = oracle_values(tokens @ to_features, tokens @ to_values, method)
        return (oracle.l2(gathered) @ bank.T * weights).sum()

    pixels = windows.pixels.astype(np.float64)
    found = jax.jit(jax.grad(loss))(jnp.asarray(pixels, jnp.float32))
    wanted = slope(expected, pixels, direction)
    assert abs(wanted) > 1e-3
    assert np.vdot(found, direction) == pytest.approx(wanted, rel=1e-3)


NUMBERS = ("anchor_threshold", "dynamic_shift", "dynamic_scale", "temperature", "mask_temperature")
FIXED_NUMBERS = ("anchor_threshold", "shift", "scale", "temperature", "mask_temperature")


def settings_gradient(method, names):
    features, values = clustered(11, 4)
    weights = np.random.default_rng(1).normal(size=values.shape)

    def loss(method):
        out = aggregate_values(jnp.asarray(features), jnp.asarray(values), jnp.ones(4, bool), method)
        return (out * weights.astype(np.float32)).sum()

    def expected(name, value):
        return (oracle_values(features, values, replace(method, **{name: value})) * weights).sum()

    return jax.jit(jax.grad(loss))(method), {
        name: slope(partial(expected, name), getattr(method, name), 1.0) for name in names
    }


@pytest.mark.parametrize(
    ("form", "method", "names"),
    [("blockwise", SOFT, NUMBERS), ("dense", SOFT, NUMBERS), ("blockwise", FIXED, FIXED_NUMBERS)],
    ids=["blockwise", "dense", "fixed shift and scale"],
)
def test_every_number_of_the_soft_method_has_the_gradient_of_the_oracle(form, method, names):
    """gla-jax tune follows them: rho and the shift move through soft masks alone."""
    found, expected = settings_gradient(replace(method, attention=form), names)
    for name, wanted in expected.items():
        assert abs(wanted) > 1e-3
        assert float(getattr(found, name)) == pytest.approx(wanted, rel=2e-3, abs=1e-4)


def test_hard_masks_leave_rho_without_a_gradient():
    """Descending on rho under the published masks would stand still, as the oracle says: not NaN, not noise."""
    found, expected = settings_gradient(GLA, ("anchor_threshold", "dynamic_scale"))
    assert float(found.anchor_threshold) == expected["anchor_threshold"] == 0.0
    assert float(found.dynamic_scale) == pytest.approx(expected["dynamic_scale"], rel=2e-3)


def test_the_text_bank_has_the_gradient_of_the_oracle():
    """Prompt learning descends on the bank."""
    rng = np.random.default_rng(3)
    features, bank, weights = (rng.normal(size=size) for size in ((3, 4, 6), (5, 6), (3, 4, 5)))
    directions = [rng.normal(size=x.shape) for x in (features, bank)]

    def loss(features, bank):
        return (token_logits(features, bank) * weights.astype(np.float32)).sum()

    def expected(features, bank):
        return (oracle.l2(features) @ bank.T * weights).sum()

    found = jax.jit(jax.grad(loss, argnums=(0, 1)))(*(jnp.asarray(x, jnp.float32) for x in (features, bank)))
    wanted = (
        slope(lambda x: expected(x, bank), features, directions[0]),
        slope(partial(expected, features), bank, directions[1]),
    )
    for gradient, direction, value in zip(found, directions, wanted, strict=True):
        assert np.vdot(gradient, direction) == pytest.approx(value, rel=1e-4)


def test_pixel_probabilities_have_the_gradients_of_the_oracle():
    """Training on label maps goes through upsampling, overlaps, softmax and the best synonym."""
    rng = np.random.default_rng(4)
    grid = window_grid(40, 64, SIZES)
    logits = rng.normal(size=(grid.count, 4, 4))
    class_of_prompt = np.array([0, 0, 1, 2], np.int32)
    weights, direction = rng.normal(size=(3, 20, 30)), rng.normal(size=logits.shape)
    plan = stitch_plan(grid, 2, (20, 30))

    def loss(logits, logit_scale):
        placed = token_grid(logits, len(grid.row_starts), len(grid.column_starts))
        pixels = stitch(placed, plan).transpose(0, 2, 1)
        found = class_probabilities(pixels, synonyms(class_of_prompt, 3), logit_scale).transpose(1, 0, 2)
        return (found * weights.astype(np.float32)).sum()

    def expected(logits, logit_scale):
        places = len(grid.row_starts), len(grid.column_starts)
        stitched = oracle.stitch(logits, places, (40, 64), SIZES.crop, SIZES.stride, (20, 30))
        by_query = oracle.softmax(logit_scale * stitched.transpose(1, 2, 0))
        by_class = np.stack([by_query[..., class_of_prompt == index].max(-1) for index in range(3)])
        return (by_class * weights).sum()

    found = jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.asarray(logits, jnp.float32), jnp.float32(3.0))
    assert np.vdot(found[0], direction) == pytest.approx(slope(lambda x: expected(x, 3.0), logits, direction), rel=1e-3)
    assert float(found[1]) == pytest.approx(slope(partial(expected, logits), 3.0, 1.0), rel=1e-3)


@pytest.fixture(scope="module")
def params():
    clip, vfm = (random_params(spec, seed) for seed, spec in enumerate((small_clip(), VFM)))
    return jax.tree.map(jnp.asarray, SegmenterParams(clip["image"], IMAGE, vfm, VFM))


@pytest.fixture(scope="module")
def banks():
    return jnp.asarray(oracle.l2(np.random.default_rng(0).normal(size=(2, 5, IMAGE.embed_dim))), jnp.float32)


def windows_of(*images):
    made = [cut_windows(image, window_grid(*image.shape[:2], SIZES)) for image in images]
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *made)


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (32, 64, 3), dtype=np.uint8)


def config_of(method):
    return SegmenterConfig(replace(method, block_size=30), SIZES)


@pytest.mark.parametrize("name", ["gla", "gla-clearclip", "gla-sclip"])
def test_a_plain_image_has_finite_gradients(params, banks, name):
    """All patches of one colour resemble each other alike: the usual place for 0/0 in a gradient."""
    (windows,) = [jax.tree.map(lambda leaf: leaf[0], windows_of(np.full((32, 64, 3), 7, np.uint8)))]

    def loss(pixels, bank, config):
        return jnp.square(segment_logits(params, windows._replace(pixels=pixels), bank, config)).sum()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(windows.pixels, banks[0], config_of(METHODS[name]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert np.abs(gradients[0]).max() > 0


def test_images_banks_and_settings_vmap_together(params, banks):
    """One program for a sweep over images, class lists and several numbers at once: each as if run alone."""
    method = config_of(replace(SOFT, anchor_threshold=0.3)).method
    values = {"anchor_threshold": (0.2, 0.9), "dynamic_shift": (0.1, 0.6), "mask_temperature": (0.02, 0.3)}
    windows = windows_of(noise(0), noise(1))
    axes = replace(config_of(jax.tree.map(lambda _: None, method)), logit_scale=None, threshold=None)
    axes = replace(axes, method=replace(axes.method, **dict.fromkeys(values, 0)))
    swept = replace(method, **{name: jnp.asarray(pair, jnp.float32) for name, pair in values.items()})
    together = jax.jit(jax.vmap(segment_logits, in_axes=(None, 0, 0, axes)))(params, windows, banks, config_of(swept))
    alone = jax.jit(segment_logits)
    for index in range(2):
        one = config_of(replace(method, **{name: pair[index] for name, pair in values.items()}))
        expected = alone(params, jax.tree.map(lambda leaf, i=index: leaf[i], windows), banks[index], one)
        np.testing.assert_allclose(together[index], expected, atol=2e-5)
    assert np.abs(np.asarray(together[0] - together[1])).max() > 1e-2


@pytest.mark.parametrize("name", ["gla-clearclip", "gla-sclip", "naclip"])
def test_every_kind_of_host_is_the_same_under_jit(params, banks, name):
    """Who debugs without jit must see the numbers of the program."""
    windows = jax.tree.map(lambda leaf: leaf[0], windows_of(noise(2)))
    about = params, windows, banks[0], config_of(METHODS[name])
    np.testing.assert_allclose(jax.jit(segment_logits)(*about), segment_logits(*about), atol=2e-5)
